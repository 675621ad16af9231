"""Chooses the batch size per layer: the fastest of those that fit into device memory."""

from dataclasses import dataclass, field

from workers.contract.recipe import Recipe

#: Model, layer and recipe: time and memory per tile depend on these.
Kind = tuple[str, str, Recipe]

#: Batches timed per size before one is chosen. The fastest counts: the first batch also loads the network, and dead
#: filters take longer.
_TRIES = 2

#: Largest batch of a process without the setting FILTERFARM_BATCH, on a CPU and on other devices. On a GPU several
#: processes have such a batch each: see tests/benchmarks/README.md for the counts that decided it.
_CPU_MOST, _GPU_MOST = 16, 128

#: Largest number of processes of one GPU without the setting FILTERFARM_PROCESSES, and the processor cores of each: one
#: for the worker around the engine, one for the engine.
_MOST_PROCESSES, _CORES = 4, 2


def is_gpu(device: str) -> bool:
    """True for a device apart from the processor."""
    return device.startswith(("cuda", "mps", "xpu"))


def max_batch_size(device: str) -> int:
    """The largest batch size that is tried on a device by one process."""
    return _GPU_MOST if is_gpu(device) else _CPU_MOST


def process_count(device: str, *, cores: int, devices: int) -> int:
    """Number of worker processes for one of ``devices`` devices of a machine with ``cores`` processor cores.

    One process spends 3 to 7 ms of a core around each tile, and a fast GPU renders a tile in less. While one process
    makes start images or hands tiles over, the GPU renders the batch of another.
    """
    return min(_MOST_PROCESSES, max(1, cores // devices // _CORES)) if device.startswith("cuda") else 1


@dataclass
class _Known:
    """Measurements of one kind of tile."""

    #: largest batch that fits into memory; None as long as each did
    fitting: int | None = None
    #: batch size -> seconds per tile of each timed batch
    seconds: dict[int, list[float]] = field(default_factory=dict)


def candidate_sizes(batch: int, device: str) -> tuple[int, ...]:
    """The batch sizes to try if the setting FILTERFARM_BATCH is 0 (automatic); empty otherwise."""
    most = max_batch_size(device)
    return () if batch else (most, most // 2, most // 4)


class BatchSizer:
    """Batch sizes of one renderer. ``sizes`` are tried in order for each layer, then the fastest is used.

    If ``sizes`` is empty, all waiting tiles form one batch, limited by memory alone.
    """

    def __init__(self, sizes: tuple[int, ...] = ()) -> None:
        self._sizes = sizes
        self._known: dict[Kind, _Known] = {}

    def size(self, kind: Kind, waiting: int) -> int:
        """Batch size for ``waiting`` tiles of one kind, from 1 to ``waiting``."""
        known = self._known.get(kind, _Known())
        most = min(waiting, known.fitting or waiting)
        sizes = [size for size in self._sizes if size <= most]
        if not sizes:
            return most
        untried = [size for size in sizes if len(known.seconds.get(size, ())) < _TRIES]
        return untried[0] if untried else min(sizes, key=lambda size: min(known.seconds[size]))

    def note(self, kind: Kind, tiles: int, seconds: float) -> None:
        """Record that a batch of ``tiles`` took ``seconds``."""
        taken = self._of(kind).seconds.setdefault(tiles, [])
        if len(taken) < _TRIES:
            taken.append(seconds / tiles)

    def record_oom(self, kind: Kind, tiles: int) -> None:
        """Record that ``tiles`` did not fit into memory: the limit becomes half of that, or stays if it is lower."""
        known = self._of(kind)
        known.fitting = max(1, min(known.fitting or tiles, tiles // 2))

    def _of(self, kind: Kind) -> _Known:
        return self._known.setdefault(kind, _Known())
