"""Sets of filters as text: ``all``, ``0-63``, ``3,5,8-11``."""

import bisect
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from workers.contract.errors import BadFilters


class Filters(Sequence[int]):
    """Ascending filters, held as ranges: a layer of a million filters takes no memory.

    Equal to any sequence of the same numbers.
    """

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        """``ranges``: (first, last) of each, in any order; they may overlap."""
        merged: list[tuple[int, int]] = []
        for first, last in sorted(ranges):
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = merged[-1][0], max(last, merged[-1][1])
            else:
                merged.append((first, last))
        self.ranges = tuple(merged)
        #: number of filters in the ranges up to and including each
        self._ends = tuple(itertools.accumulate(last - first + 1 for first, last in merged))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[int]:
        for first, last in self.ranges:
            yield from range(first, last + 1)

    def __contains__(self, filter_: object) -> bool:
        return isinstance(filter_, int) and self.position(filter_) is not None

    @overload
    def __getitem__(self, position: int) -> int: ...
    @overload
    def __getitem__(self, position: slice) -> tuple[int, ...]: ...
    def __getitem__(self, position: int | slice) -> int | tuple[int, ...]:
        if isinstance(position, slice):
            return tuple(self[place] for place in range(len(self))[position])
        if not -len(self) <= position < len(self):
            raise IndexError(position)
        position %= len(self)
        place = bisect.bisect_right(self._ends, position)
        first, last = self.ranges[place]
        return last - (self._ends[place] - 1 - position)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Filters):
            return self.ranges == other.ranges
        return isinstance(other, Sequence) and len(other) == len(self) and all(map(int.__eq__, self, other))

    def __hash__(self) -> int:
        return hash(self.ranges)

    def __repr__(self) -> str:
        return f"Filters({self.text!r})"

    def position(self, filter_: int) -> int | None:
        """Position of a filter in this sequence, or None if it is not in it."""
        place = bisect.bisect_right(self.ranges, filter_, key=lambda both: both[0]) - 1
        if place < 0 or filter_ > self.ranges[place][1]:
            return None
        return self._ends[place] - 1 - (self.ranges[place][1] - filter_)

    @property
    def text(self) -> str:
        """The shortest text that :func:`parse_filters` reads back as these filters."""
        return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in self.ranges)


def parse_filters(text: str, channels: int, layer: str) -> Filters:
    """The filters that ``text`` names in a layer of ``channels`` filters.

    Raises BadFilters if ``text`` is malformed or exceeds 0..channels-1.
    """
    if text.strip() == "all":
        return Filters([(0, channels - 1)])
    ranges = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,9})(?:\s*-\s*([0-9]{1,9}))?\s*", part)
        if match is None:
            raise BadFilters(f"cannot read filters {text[:80]!r}; write 'all', a range '0-63', or a list '3,5,8-11'")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise BadFilters(f"the range {part.strip()!r} runs backwards; write {last}-{first}")
        if last >= channels:
            raise absent(str(last), channels, layer)
        ranges.append((first, last))
    return Filters(ranges)


def absent(filters: str, channels: int, layer: str) -> BadFilters:
    """The error for filters that a layer of ``channels`` filters does not have."""
    return BadFilters(f"no filter {filters} in {layer}; it has {channels} filters, 0-{channels - 1}")


def format_filters(filters: Iterable[int]) -> str:
    """The shortest text that :func:`parse_filters` reads back as ``filters``."""
    return Filters((filter_, filter_) for filter_ in filters).text
