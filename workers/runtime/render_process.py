"""The renderer's own process, seen from the Celery process that owns it.

A CUDA assertion, a segmentation fault, an out-of-memory kill or a hang takes only the child. The parent knows the
batch, starts a new child, splits the batch until the tile that did it stands alone, and gives up on that one only.
Where a new child cannot even compute something small, no tile has done it: the device is lost.
A batch that the device's memory cannot hold is halved, and the size that fits is remembered; see pace.py.
"""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pebble import CONSTS, ProcessExpired, ProcessPool

from workers.contract.errors import (
    DeviceFailed,
    DeviceFull,
    DeviceLost,
    Draining,
    FilterfarmError,
    RendererLost,
    RenderFailed,
)
from workers.contract.job import Job
from workers.runtime import render_child
from workers.runtime.batch_size import BatchSizer, Kind

if TYPE_CHECKING:
    from workers.rendering.tile import Tile

#: How often a tile may be in the renderer when that dies or hangs. The last time it is alone, so that no other tile is
#: given up in its place.
MAX_ATTEMPTS = 3

#: How often the parent looks whether the child lives and goes on; a death or a hang is noticed that much later.
_LOOK_S = 0.5
CONSTS.sleep_unit = _LOOK_S  # pebble looks five times as often, and so with 2 % of a core

#: The child takes up a batch within a few milliseconds, as long as no other thread of this process has much to do; what
#: waits for that waits no longer than this.
_START_S = 0.1

Result = TypeVar("Result")

#: Spawned, because neither CUDA nor OpenMP survives a fork.
_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What is to be rendered: tiles of one layer of one job."""

    job: Job
    layer: str
    filters: tuple[int, ...]
    #: where the job's own checkpoint lies on this machine, if it has one
    checkpoint: Path | None
    device: str

    @property
    def kind(self) -> Kind:
        """What the time and the memory that a tile takes depend on: not what the weights and the start noise are."""
        return self.job.model, self.layer, self.job.recipe.model_copy(update={"seed": 0, "directions": None})


class Renderer:
    """One child process that renders one batch at a time. ``render`` is called by one thread, ``stop`` by any."""

    def __init__(self, *, hang_s: float, sizes: tuple[int, ...] = ()) -> None:
        self._hang_s = hang_s
        self._stopped = False
        self._lock = threading.Lock()
        self._pace = BatchSizer(sizes)
        #: to be called once the device is at work
        self._begun: Callable[[], None] | None = None
        #: counts what the child has done; that it changes is all that is asked of it
        self._progress = _SPAWN.Value("Q", 0, lock=False)
        for name, value in render_child.ENVIRONMENT.items():
            os.environ.setdefault(name, value)  # a child inherits it
        self._pool = self._new_pool()

    def render(self, batch: Batch, begun: Callable[[], None] | None = None) -> "dict[int, Tile | FilterfarmError]":
        """Filter -> its tile, or why it has none. Raises DeviceLost, and Draining once the renderer was stopped.

        ``begun`` is called when the device has something to do.
        """
        self._begun = begun
        return self._in_parts(batch, len(batch.filters), deaths=0)

    def check(self, device: str) -> None:
        """Raises DeviceLost where the child cannot compute on the device, and Draining as ``render`` does."""
        try:
            self._call(render_child.check, device)
        except Draining:
            raise
        except FilterfarmError as error:
            raise DeviceLost(f"{device} does not compute: {error}") from None

    def _in_parts(self, batch: Batch, size: int, deaths: int) -> "dict[int, Tile | FilterfarmError]":
        results: dict[int, Tile | FilterfarmError] = {}
        rest = batch.filters
        while rest:
            now = self._pace.size(batch.kind, min(size, len(rest)))
            part, rest = rest[:now], rest[now:]
            results |= self._part(replace(batch, filters=part), deaths)
        return results

    def _part(self, batch: Batch, deaths: int) -> "dict[int, Tile | FilterfarmError]":
        """A batch, or what it has to be split into. Each of its tiles has seen the renderer die ``deaths`` times."""
        count, began = len(batch.filters), time.monotonic()
        half = max(1, count // 2)
        try:
            tiles = self._once(batch)
            self._pace.note(batch.kind, count, time.monotonic() - began)
            return {tile.filter: tile for tile in tiles}
        except Draining:
            raise
        except (RendererLost, DeviceFailed) as error:
            self.check(batch.device)
            deaths += 1
            if deaths >= MAX_ATTEMPTS:
                given_up = RenderFailed(f"{error}, and so {MAX_ATTEMPTS} times in a row")
                return {batch.filters[0]: error if isinstance(error, DeviceFailed) else given_up}
            results = self._in_parts(batch, 1 if deaths == MAX_ATTEMPTS - 1 else half, deaths)
            if count > 1 and not any(isinstance(result, FilterfarmError) for result in results.values()):
                # No tile's own fault, so most likely it was killed for its memory.
                self._pace.record_oom(batch.kind, count)
            return results
        except (DeviceFull, RenderFailed) as error:
            if count == 1:
                return {batch.filters[0]: error}
            if isinstance(error, DeviceFull):
                self._pace.record_oom(batch.kind, count)
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
        # The job itself stays here: the index of all of its tiles would take longer to send than some tiles take.
        job = batch.job
        network = job.model, job.weights, batch.checkpoint, job.recipe.seed, batch.device
        return self._call(render_child.render, network, job.recipe, batch.layer, list(batch.filters))

    def _call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """What the function returns in the child; raises RendererLost where that dies, Draining, and what it raises."""
        with self._lock:
            if self._stopped:
                raise Draining("the worker is stopping")
            if not self._pool.active:  # pebble gives a pool up whose child died before it took any work
                self._pool = self._new_pool()
            future: Future[Result] = self._pool.schedule(function, args=arguments)
        begun, self._begun = self._begun, None
        if begun is not None:
            until = time.monotonic() + _START_S
            while not future.running() and time.monotonic() < until:
                time.sleep(0.001)
            begun()
        try:
            return self._await(future)
        except DeviceFailed:
            self._replace_pool()
            raise
        except FilterfarmError:
            raise
        except (ProcessExpired, CancelledError, RuntimeError) as error:
            if self._stopped:
                raise Draining("the worker is stopping") from None
            code = getattr(error, "exitcode", None)
            raise RendererLost(f"the renderer died ({_cause(code)})") from None

    def _await(self, future: "Future[Result]") -> Result:
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
        return ProcessPool(max_workers=1, context=_SPAWN, initializer=render_child.begin, initargs=(self._progress,))


def _cause(code: int | None) -> str:
    if code is None:
        return "before it began"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
