"""The parent's side of the render process, which isolates the worker from crashes of the renderer.

A CUDA assertion, a segmentation fault, an out-of-memory kill or a hang ends only the child. The parent then starts a
new child and splits the batch until the tile that causes it is alone; only that tile fails.
If a fresh child fails a trivial computation, the device is broken (DeviceLost).
A batch that does not fit into device memory is halved, and the size that fits is remembered; see batch_size.py.
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

#: A tile fails after it was in this many renderers that died or hung. At the last attempt it is alone, so that it is
#: not blamed for another tile.
MAX_ATTEMPTS = 3

#: Seconds between two checks of the child: a crash or a hang is noticed at most this much later.
_POLL_S = 0.5
CONSTS.sleep_unit = _POLL_S  # pebble's default polls five times as often, which takes 2 % of a core

#: Longest wait in seconds for the child to start a batch, before ``on_start`` is called anyway. It takes a few
#: milliseconds unless other threads of this process are busy.
_START_S = 0.1

Result = TypeVar("Result")

#: Spawned, because neither CUDA nor OpenMP survives a fork.
_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Tiles of one layer of one job, to be rendered together."""

    job: Job
    layer: str
    filters: tuple[int, ...]
    #: local path of the job's own checkpoint, if it has one
    checkpoint: Path | None
    device: str

    @property
    def kind(self) -> Kind:
        """What the time and memory per tile depend on: neither the weights nor the start image."""
        return self.job.address, self.layer, self.job.recipe.model_copy(update={"seed": 0, "directions": None})


class Renderer:
    """One child process that renders one batch at a time. ``render`` is called by one thread, ``stop`` by any.

    ``hang_s``: seconds without progress after which the child is killed. ``sizes``: batch sizes to try, see BatchSizer.
    """

    def __init__(self, *, hang_s: float, sizes: tuple[int, ...] = ()) -> None:
        self._hang_s = hang_s
        self._stopped = False
        self._lock = threading.Lock()
        self._sizer = BatchSizer(sizes)
        #: called once the device is busy
        self._on_start: Callable[[], None] | None = None
        #: monotonic time of the child's last sign of life; None if it has nothing to do
        self._alive_at: float | None = None
        #: counted up by the child; only changes matter
        self._progress = _SPAWN.Value("Q", 0, lock=False)
        for name, value in render_child.ENVIRONMENT.items():
            os.environ.setdefault(name, value)  # a child inherits it
        self._pool = self._new_pool()

    @property
    def silent_s(self) -> float:
        """Seconds for which the child has had a task and shown no progress. Read by any thread.

        More than ``hang_s`` means that the child cannot be killed either, as in the driver of a broken GPU.
        """
        alive_at = self._alive_at
        return 0.0 if alive_at is None else time.monotonic() - alive_at

    def render(self, batch: Batch, on_start: Callable[[], None] | None = None) -> "dict[int, Tile | FilterfarmError]":
        """Filter -> its tile or its error. Raises DeviceLost, and Draining once the renderer was stopped.

        If it is stopped after a part of the batch is finished, Draining is the error of the other tiles instead.

        ``on_start`` is called once, when the device is busy with the first part of the batch.
        """
        self._on_start = on_start
        return self._in_parts(batch, len(batch.filters), deaths=0)

    def check(self, device: str) -> None:
        """Raises DeviceLost if the child cannot compute on the device, and Draining as ``render`` does."""
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
            now = self._sizer.size(batch.kind, min(size, len(rest)))
            part, rest = rest[:now], rest[now:]
            try:
                results |= self._part(replace(batch, filters=part), deaths)
            except Draining as error:
                if not results:
                    raise
                return results | dict.fromkeys((*part, *rest), error)
        return results

    def _part(self, batch: Batch, deaths: int) -> "dict[int, Tile | FilterfarmError]":
        """Render a batch, or its halves if it fails. Each of its tiles was in ``deaths`` renderers that died."""
        count, started = len(batch.filters), time.monotonic()
        half = max(1, count // 2)
        try:
            tiles = self._once(batch)
            self._sizer.note(batch.kind, count, time.monotonic() - started)
            return {tile.filter: tile for tile in tiles}
        except Draining:
            raise
        except (RendererLost, DeviceFailed) as error:
            self.check(batch.device)
            deaths += 1
            if deaths >= MAX_ATTEMPTS:
                failed = RenderFailed(f"{error} ({MAX_ATTEMPTS} attempts)")
                return {batch.filters[0]: error if isinstance(error, DeviceFailed) else failed}
            results = self._in_parts(batch, 1 if deaths == MAX_ATTEMPTS - 1 else half, deaths)
            if count > 1 and not any(isinstance(result, FilterfarmError) for result in results.values()):
                # All tiles of the batch render in smaller parts: most likely the kernel's out-of-memory killer.
                self._sizer.record_oom(batch.kind, count)
            return results
        except (DeviceFull, RenderFailed) as error:
            if count == 1:
                return {batch.filters[0]: error}
            if isinstance(error, DeviceFull):
                self._sizer.record_oom(batch.kind, count)
            return self._in_parts(batch, half, deaths)
        except FilterfarmError as error:  # of the whole job, such as missing weights
            return dict.fromkeys(batch.filters, error)

    def stop(self) -> None:
        """Kill the child; a batch in it is lost."""
        with self._lock:
            self._stopped = True
            self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()

    def _once(self, batch: Batch) -> "list[Tile]":
        # Not the whole job: sending the index of all its tiles takes longer than some tiles.
        job = batch.job
        # Networks with trained weights are the same for every seed.
        seed = job.recipe.seed if job.weights.source == "none" else 0
        network = job.address, job.weights, batch.checkpoint, seed, batch.device
        return self._call(render_child.render, network, job.recipe, batch.layer, list(batch.filters))

    def _call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function in the child. Raises RendererLost if the child dies or hangs, Draining, and its errors."""
        self._alive_at = time.monotonic()
        try:
            return self._call_in_child(function, *arguments)
        finally:
            self._alive_at = None

    def _call_in_child(self, function: Callable[..., Result], *arguments: Any) -> Result:
        with self._lock:
            if self._stopped:
                raise Draining("the worker is stopping")
            if not self._pool.active:  # pebble closes a pool whose child died before its first task
                self._pool = self._new_pool()
            future: Future[Result] = self._pool.schedule(function, args=arguments)
        on_start, self._on_start = self._on_start, None
        if on_start is not None:
            until = time.monotonic() + _START_S
            while not future.running() and time.monotonic() < until:
                time.sleep(0.001)
            on_start()
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
            raise RendererLost(f"renderer died: {_cause(code)}") from None

    def _await(self, future: "Future[Result]") -> Result:
        """The child's result. Raises RendererLost after ``hang_s`` without progress, and the child's errors."""
        progress, since = self._progress.value, time.monotonic()
        while True:
            try:
                return future.result(_POLL_S)
            except TimeoutError:
                pass
            if self._stopped:  # pebble never resolves the futures of a stopped pool
                raise Draining("the worker is stopping")
            if self._progress.value != progress:
                progress, since = self._progress.value, time.monotonic()
                self._alive_at = since
            elif time.monotonic() - since > self._hang_s:
                self._replace_pool()
                raise RendererLost(f"renderer made no progress for {self._hang_s:g} s")

    def _replace_pool(self) -> None:
        """Kill the child and start another. Cancelling its task would not kill a child that has not started it."""
        with self._lock:
            if not self._stopped:
                self._pool.stop()  # type: ignore[no-untyped-call]
                self._pool.join()
                self._pool = self._new_pool()

    def _new_pool(self) -> ProcessPool:
        return ProcessPool(max_workers=1, context=_SPAWN, initializer=render_child.begin, initargs=(self._progress,))


def _cause(code: int | None) -> str:
    if code is None:
        return "before its first batch"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
