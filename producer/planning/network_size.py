"""The pictures that a network takes: their channels, and their size where it takes no other. Defaults for classes."""

import re
from dataclasses import replace
from typing import Any

from producer.planning.layers import KINDS, input_channels, layers, select
from producer.planning.options import Options
from producer.planning.recipe_builder import chosen_method, chosen_size, is_chosen
from workers.contract.errors import BadOption

#: Steps of ``fourier`` for logits. After 64, other networks recognise fewer of the pictures (tests/benchmarks/README).
_CLASS_STEPS = 128


def in_network_size(options: Options) -> Options:
    """The options, with the size of ``--input``, or of the network if it takes no other.

    Raises UnknownModel, and BadOption if ``--input`` is none of this network.
    """
    from workers.networks import registry

    text = options.recipe.get("input")
    if text is not None:
        match = re.fullmatch(r"([0-9]{1,4})x([0-9]{1,6})x([0-9]{1,6})", text)
        if match is None:
            raise BadOption(f"cannot read --input {text[:40]!r}; write channels x height x width as in 1x28x28")
        channels = input_channels(options.model)
        if int(match[1]) != channels:
            raise BadOption(
                f"--input {text} has {int(match[1])} channels, and the first convolution of {options.model} reads "
                f"{channels}"
            )
        options = _sized(options, f"{match[2]}x{match[3]}")
    fixed = registry.get(options.model).size_px
    if fixed is None or chosen_size(options) == fixed:
        return options
    return _sized(options, _text(fixed))


def with_class_defaults(options: Options) -> Options:
    """The options; if all layers are logits, with the network's own input size and more steps, unless they are chosen.

    At 150 px other networks recognise half as many classes. Raises UnknownModel and UnknownLayer.
    """
    from workers.networks import registry

    chosen = select(layers(options.model, chosen_size(options), KINDS), options.layers, options.model)
    if {plan.kind for plan in chosen} != {"logits"}:
        return options
    defaults: dict[str, Any] = {}
    side_px = registry.get(options.model).input_px
    if side_px is not None and not is_chosen(options, "size"):
        defaults["size"] = _text((side_px, side_px))
    if chosen_method(options) == "fourier" and not is_chosen(options, "steps"):
        defaults["steps"] = _CLASS_STEPS
    return replace(options, recipe={**defaults, **options.recipe})


def size_notes(options: Options) -> list[str]:
    """A line for people if the network takes no pictures of the chosen size."""
    if options.recipe.get("input") is not None and options.recipe.get("size") is None:
        return []
    wanted, taken = chosen_size(options), chosen_size(in_network_size(options))
    if wanted == taken:
        return []
    return [f"{options.model} takes no pictures but those of {_text(taken)}; --size {_text(wanted)} is not used"]


def _sized(options: Options, size: str) -> Options:
    return replace(options, recipe={**options.recipe, "size": size})


def _text(size_px: tuple[int, int]) -> str:
    return f"{size_px[0]}x{size_px[1]}"
