"""The size of pictures, where the network takes no other, and where they are of classes."""

from dataclasses import replace

from producer.planning.layers import KINDS, layers, select
from producer.planning.options import Options
from producer.planning.recipe_builder import chosen_size, is_sized


def in_network_size(options: Options) -> Options:
    """The options, with the size of the pictures that the network takes if it takes no other; raises UnknownModel."""
    from workers.networks import registry

    fixed = registry.get(options.model).size_px
    if fixed is None or chosen_size(options) == fixed:
        return options
    return replace(options, recipe={**options.recipe, "size": _text(fixed)})


def in_class_size(options: Options) -> Options:
    """The options, with the network's own input size if all layers are logits and no size is chosen.

    At 150 px other networks recognise half as many classes. Raises UnknownModel and UnknownLayer.
    """
    from workers.networks import registry

    if is_sized(options):
        return options
    chosen = select(layers(options.model, chosen_size(options), KINDS), options.layers, options.model)
    side_px = registry.input_px(options.model) if {plan.kind for plan in chosen} == {"logits"} else None
    if side_px is None:
        return options
    return replace(options, recipe={**options.recipe, "size": _text((side_px, side_px))})


def size_notes(options: Options) -> list[str]:
    """A line for people if the network takes no pictures of the chosen size."""
    wanted, taken = chosen_size(options), chosen_size(in_network_size(options))
    if wanted == taken:
        return []
    return [f"{options.model} takes no pictures but those of {_text(taken)}; --size {_text(wanted)} is not used"]


def _text(size_px: tuple[int, int]) -> str:
    return f"{size_px[0]}x{size_px[1]}"
