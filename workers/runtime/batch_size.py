"""How many tiles of a layer go to the device at once: what fits into its memory, and of that what was fastest."""

from dataclasses import dataclass, field

from workers.contract.recipe import Recipe

#: Model, layer and recipe: what it takes to render a tile depends on these, whatever the job.
Kind = tuple[str, str, Recipe]

#: Parts of each size that are timed before one is chosen. The faster counts: the first also loads what it needs, and
#: filters that are rescued take longer.
_TRIES = 2

#: Tiles that may be at work at once where nobody chose, on a CPU and elsewhere.
_CPU_MOST, _GPU_MOST = 16, 32


def max_batch_size(device: str) -> int:
    """Tiles that a worker takes on for a device: the largest batch that is tried."""
    return _GPU_MOST if device.startswith(("cuda", "mps", "xpu")) else _CPU_MOST


@dataclass
class _Known:
    """About tiles of one kind."""

    #: tiles that fit into memory at once; None while none was too many
    fitting: int | None = None
    #: size -> seconds per tile of each part of that size
    seconds: dict[int, list[float]] = field(default_factory=dict)


def candidate_sizes(batch: int, device: str) -> tuple[int, ...]:
    """What the setting FILTERFARM_BATCH leaves open: nothing, unless it is 0."""
    most = max_batch_size(device)
    return () if batch else (most, most // 2, most // 4)


class BatchSizer:
    """What one renderer has learnt. ``sizes`` are tried for each layer, the first one first, to go on with the best.

    Without any, a batch goes as it comes, as far as it fits.
    """

    def __init__(self, sizes: tuple[int, ...] = ()) -> None:
        self._sizes = sizes
        self._known: dict[Kind, _Known] = {}

    def size(self, kind: Kind, waiting: int) -> int:
        """How many of the tiles that wait should go at once."""
        known = self._known.get(kind, _Known())
        most = min(waiting, known.fitting or waiting)
        sizes = [size for size in self._sizes if size <= most]
        if not sizes:
            return most
        untried = [size for size in sizes if len(known.seconds.get(size, ())) < _TRIES]
        return untried[0] if untried else min(sizes, key=lambda size: min(known.seconds[size]))

    def note(self, kind: Kind, tiles: int, seconds: float) -> None:
        """A part of so many tiles took that long."""
        taken = self._of(kind).seconds.setdefault(tiles, [])
        if len(taken) < _TRIES:
            taken.append(seconds / tiles)

    def record_oom(self, kind: Kind, tiles: int) -> None:
        """The device's memory could not hold so many: from now on half, or fewer where that is known."""
        known = self._of(kind)
        known.fitting = max(1, min(known.fitting or tiles, tiles // 2))

    def _of(self, kind: Kind) -> _Known:
        return self._known.setdefault(kind, _Known())
