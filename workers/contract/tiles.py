"""The tiles of a job as numbers: those of a layer are a range."""

import bisect
import itertools
from collections.abc import Iterator, Sequence
from typing import Protocol, overload

from workers.contract.filter_ranges import Filters


class Layer(Protocol):
    """What is needed of a job's layer."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def selected(self) -> Filters:
        """The rendered filters."""


class Tiles(Sequence[tuple[str, int]]):
    """Every (layer, filter) of a job, in order. The position of a tile is its number in the ledger.

    A layer's tiles are a range of numbers, so that a job of a million tiles needs no memory for them. Equal to any
    sequence of the same pairs.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = layers
        #: layer -> number of its first tile
        self.starts = dict(
            zip(
                (layer.name for layer in layers),
                itertools.accumulate((len(layer.selected) for layer in layers), initial=0),
                strict=False,
            )
        )
        self._selected = {layer.name: layer.selected for layer in layers}
        self._starts = tuple(self.starts.values())
        self._count = sum(len(layer.selected) for layer in layers)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return ((layer.name, filter_) for layer in self._layers for filter_ in layer.selected)

    @overload
    def __getitem__(self, number: int) -> tuple[str, int]: ...
    @overload
    def __getitem__(self, number: slice) -> tuple[tuple[str, int], ...]: ...
    def __getitem__(self, number: int | slice) -> tuple[str, int] | tuple[tuple[str, int], ...]:
        if isinstance(number, slice):
            return tuple(self[place] for place in range(len(self))[number])
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        number %= len(self)
        place = bisect.bisect_right(self._starts, number) - 1
        return self._layers[place].name, self._layers[place].selected[number - self._starts[place]]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(other) == len(self) and all(a == b for a, b in zip(self, other))  # noqa: B905

    def __hash__(self) -> int:
        return hash(tuple(self._selected.items()))

    def __contains__(self, tile: object) -> bool:
        try:
            self.number(*tile)  # type: ignore[misc]  # TypeError if it is no pair
        except (KeyError, TypeError):
            return False
        return True

    def number(self, layer: str, filter_: int) -> int:
        """The number of a tile. Raises KeyError if the job does not render it."""
        position = self._selected[layer].position(filter_)
        if position is None:
            raise KeyError(filter_)
        return self.starts[layer] + position

    def of_layer(self, layer: Layer) -> range:
        """The numbers of a layer's tiles."""
        start = self.starts[layer.name]
        return range(start, start + len(layer.selected))
