"""The renderer's own process, seen from the Celery process that owns it.

A CUDA assertion, a segmentation fault, an out-of-memory kill or a hang takes only the child. The parent knows the
batch, starts a new child, splits the batch until the tile that did it stands alone, and gives up on that one only.
A batch that the device's memory cannot hold is halved, and the size that fits is remembered; see pace.py.
This module imports torch in the child alone.
"""

import functools
import multiprocessing
import os
import threading
import time
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pebble import ProcessExpired, ProcessPool

from workers.contract.errors import DeviceFull, Draining, FilterfarmError, RendererLost, RenderFailed
from workers.contract.job import Job, Weights
from workers.contract.tile import Precision
from workers.pace import Pace

if TYPE_CHECKING:
    from workers.rendered import Tile

#: How often a tile may be in the renderer when that dies or hangs. The last time it is alone, so that no other tile is
#: given up in its place.
MAX_ATTEMPTS = 3

#: How often the parent looks whether the child goes on; a hang is noticed that much later.
_LOOK_S = 0.5

#: Spawned, because neither CUDA nor OpenMP survives a fork.
_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What goes to the child: tiles of one layer of one job."""

    job: Job
    layer: str
    filters: tuple[int, ...]
    #: where the job's own checkpoint lies on this machine, if it has one
    checkpoint: Path | None
    device: str


class Renderer:
    """One child process that renders one batch at a time. ``render`` is called by one thread, ``stop`` by any."""

    def __init__(self, *, hang_s: float, sizes: tuple[int, ...] = ()) -> None:
        self._hang_s = hang_s
        self._stopped = False
        self._lock = threading.Lock()
        self._pace = Pace(sizes)
        #: counts what the child has done; that it changes is all that is asked of it
        self._progress = _SPAWN.Value("Q", 0, lock=False)
        self._pool = self._new_pool()

    def render(self, batch: Batch) -> "dict[int, Tile | FilterfarmError]":
        """Filter -> its tile, or why it has none. Raises Draining once the renderer has been stopped."""
        return self._in_parts(batch, len(batch.filters), deaths=0)

    def _in_parts(self, batch: Batch, size: int, deaths: int) -> "dict[int, Tile | FilterfarmError]":
        results: dict[int, Tile | FilterfarmError] = {}
        rest = batch.filters
        while rest:
            now = self._pace.size((batch.job.id, batch.layer), min(size, len(rest)))
            part, rest = rest[:now], rest[now:]
            results |= self._part(replace(batch, filters=part), deaths)
        return results

    def _part(self, batch: Batch, deaths: int) -> "dict[int, Tile | FilterfarmError]":
        """A batch, or what it has to be split into. Each of its tiles has seen the renderer die ``deaths`` times."""
        alone, half = len(batch.filters) == 1, max(1, len(batch.filters) // 2)
        group, began = (batch.job.id, batch.layer), time.monotonic()
        try:
            tiles = self._once(batch)
            self._pace.note(group, len(tiles), time.monotonic() - began)
            return {tile.filter: tile for tile in tiles}
        except Draining:
            raise
        except RendererLost as error:
            deaths += 1
            if deaths >= MAX_ATTEMPTS:
                return {batch.filters[0]: RenderFailed(f"{error}, and so {MAX_ATTEMPTS} times in a row")}
            return self._in_parts(batch, 1 if deaths == MAX_ATTEMPTS - 1 else half, deaths)
        except (DeviceFull, RenderFailed) as error:
            if alone:
                return {batch.filters[0]: error}
            if isinstance(error, DeviceFull):
                self._pace.too_many(group, len(batch.filters))
            return self._in_parts(batch, half, deaths)
        except FilterfarmError as error:  # of the job, such as weights that are not here: no tile's own fault
            return dict.fromkeys(batch.filters, error)

    def stop(self) -> None:
        """Kill the child; a batch in it is lost."""
        with self._lock:
            self._stopped = True
            self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()

    def _once(self, batch: Batch) -> "list[Tile]":
        with self._lock:
            if self._stopped:
                raise Draining("the worker is stopping")
            if not self._pool.active:  # pebble gives a pool up whose child died before it took any work
                self._pool = self._new_pool()
            future = self._pool.schedule(_render, args=(batch,))
        try:
            return self._await(future)
        except FilterfarmError:
            raise
        except (ProcessExpired, CancelledError, RuntimeError) as error:
            if self._stopped:
                raise Draining("the worker is stopping") from None
            code = getattr(error, "exitcode", None)
            raise RendererLost(f"the renderer died ({_cause(code)})") from None

    def _await(self, future: "Future[list[Tile]]") -> "list[Tile]":
        """The child's answer; raises RendererLost once it has not gone on for too long, and whatever it raises."""
        seen, since = self._progress.value, time.monotonic()
        while True:
            try:
                return future.result(_LOOK_S)
            except TimeoutError:
                pass
            if self._stopped:  # pebble leaves the futures of a stopped pool without an answer
                raise Draining("the worker is stopping")
            if self._progress.value != seen:
                seen, since = self._progress.value, time.monotonic()
            elif time.monotonic() - since > self._hang_s:
                self._replace_pool()
                raise RendererLost(f"the renderer did not go on for {self._hang_s:g} s")

    def _replace_pool(self) -> None:
        """Kill the child, whatever it does. Cancelling its task would not kill one that has not taken it up yet."""
        with self._lock:
            if not self._stopped:
                self._pool.stop()  # type: ignore[no-untyped-call]
                self._pool.join()
                self._pool = self._new_pool()

    def _new_pool(self) -> ProcessPool:
        return ProcessPool(max_workers=1, context=_SPAWN, initializer=_begin, initargs=(self._progress,))


def _cause(code: int | None) -> str:
    if code is None:
        return "before it began"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


# What follows runs in the child.


def _begin(progress: Any) -> None:
    progress.value += 1  # before torch is loaded, which can take a while
    from torch.nn.modules.module import register_module_forward_pre_hook

    from workers import tuning

    def go_on(*_: object) -> None:
        progress.value += 1

    _die_with_parent()
    tuning.tune()
    # Every call of any part of a network is progress. For as long as this process lives, which does nothing else.
    register_module_forward_pre_hook(go_on)


def _die_with_parent() -> None:
    """A renderer without its worker would hold the device for nobody."""

    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("a renderer is always some process's child")

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _render(batch: Batch) -> "list[Tile]":
    import torch

    from workers import devices
    from workers.render import render_tapped

    job, recipe = batch.job, batch.job.recipe
    try:
        device = torch.device(devices.available()[0] if batch.device == "auto" else batch.device)
        network = job.model, job.weights, batch.checkpoint, recipe.seed, device
        tap = _tap(network, batch.layer, recipe.tap, devices.precision(recipe.precision, device))
        return render_tapped(tap, batch.layer, list(batch.filters), recipe, device)
    except FilterfarmError:
        raise
    except Exception as error:  # as text: the parent has no torch to unpickle torch's exceptions with
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise (DeviceFull if _is_out_of_memory(error) else RenderFailed)(reason) from None


def _is_out_of_memory(error: Exception) -> bool:
    """CUDA has an error of its own for it; MPS and the CPU's allocator raise RuntimeError with these words."""
    return isinstance(error, MemoryError) or any(
        words in str(error) for words in ("out of memory", "can't allocate memory")
    )


#: Model, weights, checkpoint, seed, device: what makes a network what it is.
_Network = tuple[str, Weights, Path | None, int, Any]


# The child's only state, with the networks: a few taps, because layers and jobs take turns.
@functools.lru_cache(maxsize=4)
def _tap(network: _Network, layer: str, tap: str, precision: Precision) -> Any:
    from workers.tap import Tap

    model, graph, kernels = _load(network)
    return Tap(model, graph, layer, tap, precision, kernels)


# Two, so that two jobs that take turns load once each.
@functools.lru_cache(maxsize=2)
def _load(network: _Network) -> tuple[Any, Any, Any]:
    import torch

    from workers import weights as loading
    from workers.graph import trace
    from workers.trunk import Kernels

    name, weights, checkpoint, seed, device = network
    model = loading.load(name, weights, checkpoint, seed=seed).to(device).to(memory_format=torch.channels_last)
    return model, trace(model), Kernels()
