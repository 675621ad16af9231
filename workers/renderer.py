"""The renderer's own process, seen from the Celery process that owns it.

A CUDA assertion, a segmentation fault, an out-of-memory kill or a hang takes only the child. The parent knows the
batch, starts a new child, splits the batch until the tile that did it stands alone, and gives up on that one only.
This module imports torch in the child alone.
"""

import functools
import multiprocessing
import os
import threading
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pebble import ProcessExpired, ProcessPool

from workers.contract.errors import Draining, FilterfarmError, RendererLost, RenderFailed
from workers.contract.job import Job, Weights

if TYPE_CHECKING:
    from workers.render import Tile

#: How often one tile, alone, may kill the renderer or overrun its deadline before it is given up.
MAX_ATTEMPTS = 3


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

    def __init__(self, *, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._stopped = False
        self._lock = threading.Lock()
        self._pool = _new_pool()

    def render(self, batch: Batch) -> "dict[int, Tile | FilterfarmError]":
        """Filter -> its tile, or why it has none. Raises Draining once the renderer has been stopped."""
        try:
            return {tile.filter: tile for tile in self._once(batch)}
        except Draining:
            raise
        except (RendererLost, RenderFailed) as error:
            if len(batch.filters) == 1:
                return {batch.filters[0]: self._alone(batch, error)}
            middle = len(batch.filters) // 2
            first = self.render(replace(batch, filters=batch.filters[:middle]))
            return first | self.render(replace(batch, filters=batch.filters[middle:]))
        except FilterfarmError as error:  # of the job, such as weights that are not here: no tile's own fault
            return dict.fromkeys(batch.filters, error)

    def stop(self) -> None:
        """Kill the child; a batch in it is lost."""
        with self._lock:
            self._stopped = True
            self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()

    def _alone(self, batch: Batch, error: FilterfarmError) -> "Tile | FilterfarmError":
        for _ in range(MAX_ATTEMPTS - 1):
            if not isinstance(error, RendererLost):
                return error
            try:
                return self._once(batch)[0]
            except Draining:
                raise
            except FilterfarmError as next_error:
                error = next_error
        return RenderFailed(f"{error}, {MAX_ATTEMPTS} times in a row")

    def _once(self, batch: Batch) -> "list[Tile]":
        with self._lock:
            if self._stopped:
                raise Draining("the worker is stopping")
            if not self._pool.active:  # pebble gives a pool up whose child died before it took any work
                self._pool = _new_pool()
            future = self._pool.schedule(_render, args=(batch,), timeout=self._deadline_s)
        try:
            return future.result()
        except TimeoutError:
            raise RendererLost(f"the renderer took longer than {self._deadline_s:g} s") from None
        except FilterfarmError:
            raise
        except (ProcessExpired, CancelledError, RuntimeError) as error:
            if self._stopped:
                raise Draining("the worker is stopping") from None
            code = getattr(error, "exitcode", None)
            raise RendererLost(f"the renderer died ({_cause(code)})") from None


def _new_pool() -> ProcessPool:
    # Spawned, because neither CUDA nor OpenMP survives a fork.
    return ProcessPool(max_workers=1, context=multiprocessing.get_context("spawn"), initializer=_begin)


def _cause(code: int | None) -> str:
    if code is None:
        return "before it began"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


# What follows runs in the child.


def _begin() -> None:
    from workers import cpu

    _die_with_parent()
    cpu.tune()


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
    from workers.render import render

    try:
        model, graph, device = _network(
            batch.job.model, batch.job.weights, batch.checkpoint, batch.job.recipe.seed, batch.device
        )
        return render(model, graph, batch.layer, list(batch.filters), batch.job.recipe, device)
    except FilterfarmError:
        raise
    except Exception as error:  # as text: the parent has no torch to unpickle torch's exceptions with
        raise RenderFailed(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from None


#: The child's only state: the networks of the last jobs. Two, so that two jobs that take turns load once each.
@functools.lru_cache(maxsize=2)
def _network(model: str, weights: Weights, checkpoint: Path | None, seed: int, device: str) -> tuple[Any, Any, Any]:
    import torch

    from workers import weights as loading
    from workers.devices import available
    from workers.graph import trace

    target = torch.device(available()[0] if device == "auto" else device)
    network = loading.load(model, weights, checkpoint, seed=seed).to(target).to(memory_format=torch.channels_last)
    return network, trace(network), target
