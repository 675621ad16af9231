"""The size of pictures, where the network takes no other."""

from dataclasses import replace

from producer.planning.options import Options
from producer.planning.recipe_builder import chosen_size


def in_network_size(options: Options) -> Options:
    """The options, with the size of the pictures that the network takes if it takes no other; raises UnknownModel."""
    from workers.networks import registry

    fixed = registry.get(options.model).size_px
    if fixed is None or chosen_size(options) == fixed:
        return options
    return replace(options, recipe={**options.recipe, "size": _text(fixed)})


def size_notes(options: Options) -> list[str]:
    """A line for people if the network takes no pictures of the chosen size."""
    wanted, taken = chosen_size(options), chosen_size(in_network_size(options))
    if wanted == taken:
        return []
    return [f"{options.model} takes no pictures but those of {_text(taken)}; --size {_text(wanted)} is not used"]


def _text(size_px: tuple[int, int]) -> str:
    return f"{size_px[0]}x{size_px[1]}"
