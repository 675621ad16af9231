"""Sets of filters as text: ``all``, ``0-63``, ``3,5,8-11``."""

import re
from collections.abc import Iterable

from workers.contract.errors import BadFilters


def parse_filters(text: str, channels: int, layer: str) -> tuple[int, ...]:
    """The filters that ``text`` names in a layer of ``channels`` filters, ascending and without repeats.

    Raises BadFilters if ``text`` is malformed or exceeds 0..channels-1.
    """
    if text.strip() == "all":
        return tuple(range(channels))
    chosen: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,9})(?:\s*-\s*([0-9]{1,9}))?\s*", part)
        if match is None:
            raise BadFilters(f"cannot read filters {text[:80]!r}; write 'all', a range '0-63', or a list '3,5,8-11'")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise BadFilters(f"the range {part.strip()!r} runs backwards; write {last}-{first}")
        if last >= channels:
            raise absent(str(last), channels, layer)
        chosen.update(range(first, last + 1))
    return tuple(sorted(chosen))


def absent(filters: str, channels: int, layer: str) -> BadFilters:
    """The error for filters that a layer of ``channels`` filters does not have."""
    return BadFilters(f"no filter {filters} in {layer}; it has {channels} filters, 0-{channels - 1}")


def format_filters(filters: Iterable[int]) -> str:
    """The shortest text that :func:`parse_filters` reads back as ``filters``."""
    runs: list[list[int]] = []
    for number in sorted(set(filters)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)
