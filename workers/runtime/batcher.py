"""Collects single tiles into batches: one future per tile, one batch per (job, layer).

Each Celery task is a thread that waits here for its tile. While one batch is on the device, the threads of the previous
batch encode and upload, and the messages of the next batch arrive. The futures of a batch are resolved only once the
next batch is on the device: 16 threads that encode delay its start by about 50 ms.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from workers.contract.errors import Draining, FilterfarmError, RenderFailed

log = logging.getLogger(__name__)

Result = TypeVar("Result")

#: (job id, layer): tiles of one batch share both.
Group = tuple[str, str]


class Batcher(Generic[Result]):
    """Collects filters per group and calls ``run`` with one batch at a time, in a thread of its own.

    ``run(group, filters)`` returns a result or an error for each filter. It calls ``resolve_previous`` as soon as the
    device is busy. ``size``: largest batch. ``wait_s``: seconds that an incomplete batch waits for more tiles.
    """

    def __init__(
        self,
        run: Callable[[Group, tuple[int, ...]], dict[int, Result | FilterfarmError]],
        *,
        size: int,
        wait_s: float,
    ) -> None:
        self._run = run
        self._size = size
        self._wait_s = wait_s
        self._waiting: OrderedDict[Group, dict[int, list[Future[Result]]]] = OrderedDict()
        self._since: dict[Group, float] = {}
        #: job -> sequence number of its last batch
        self._ran: dict[str, int] = {}
        self._changed = threading.Condition()
        self._closed = False
        #: futures and results of the previous batch, not resolved yet
        self._previous: tuple[dict[int, list[Future[Result]]], dict[int, Result | FilterfarmError]] = {}, {}
        self._thread = threading.Thread(target=self._loop, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, group: Group, filter_: int) -> "Future[Result]":
        """A future for one tile. A filter submitted twice is rendered once. Once closed, the future raises Draining."""
        future: Future[Result] = Future()
        with self._changed:
            if self._closed:
                future.set_exception(Draining("the worker is stopping"))
                return future
            self._since.setdefault(group, time.monotonic())
            self._waiting.setdefault(group, {}).setdefault(filter_, []).append(future)
            self._changed.notify()
        return future

    def close(self) -> None:
        """Accept no more tiles. Those that wait fail with Draining; the batch that runs is finished."""
        with self._changed:
            self._closed = True
            waiting, self._waiting = self._waiting, OrderedDict()
            self._changed.notify()
        for futures in waiting.values():
            errors: dict[int, Result | FilterfarmError] = dict.fromkeys(futures, Draining("the worker is stopping"))
            _resolve(futures, errors)

    def join(self, timeout_s: float) -> bool:
        """Wait for the batch that runs. Returns False if it takes longer than ``timeout_s`` seconds."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def resolve_previous(self) -> None:
        """Resolve the futures of the previous batch. Called by ``run`` alone, in its thread."""
        previous, self._previous = self._previous, ({}, {})
        _resolve(*previous)

    def _loop(self) -> None:
        while True:
            taken = self._take(wait=False)
            if taken is None:
                self.resolve_previous()
                taken = self._take(wait=True)
            if taken is None:
                return
            group, futures = taken
            try:
                results = self._run(group, tuple(futures))
            except FilterfarmError as error:
                results = dict.fromkeys(futures, error)
            except Exception as error:  # if this thread ended, all later tasks would wait for ever
                log.exception("unexpected job=%s layer=%s reason=%s", *group, type(error).__name__)
                results = dict.fromkeys(futures, FilterfarmError(f"{type(error).__name__}: {error}"))
            self.resolve_previous()  # if ``run`` has failed before it did
            self._previous = futures, results

    def _take(self, *, wait: bool) -> tuple[Group, dict[int, list["Future[Result]"]]] | None:
        """The next batch. None if closed, or if no batch is ready and ``wait`` is false."""
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                ready = [group for group in self._waiting if self._is_full(group) or self._left_s(group, now) <= 0]
                if ready:
                    group = min(ready, key=self._rank)
                    return group, self._first_of(group)
                if not wait:
                    return None
                self._changed.wait(min((self._left_s(group, now) for group in self._waiting), default=None))
        return None

    def _is_full(self, group: Group) -> bool:
        return len(self._waiting[group]) >= self._size

    def _left_s(self, group: Group, now: float) -> float:
        return self._since[group] + self._wait_s - now

    def _rank(self, group: Group) -> tuple[int, bool, float]:
        """Round robin over jobs. Within a job, full batches first, then those that have waited longest."""
        return self._ran.get(group[0], 0), not self._is_full(group), self._since[group]

    def _first_of(self, group: Group) -> dict[int, list["Future[Result]"]]:
        """Take at most one batch of a group from those that wait, and count it as the turn of its job."""
        filters = self._waiting.pop(group)
        taken = sorted(filters)[: self._size]
        rest = {filter_: futures for filter_, futures in filters.items() if filter_ not in taken}
        del self._since[group]
        self._ran[group[0]] = max(self._ran.values(), default=0) + 1
        if rest:
            self._waiting[group] = rest
            self._since[group] = time.monotonic()
        return {filter_: filters[filter_] for filter_ in taken}


def _resolve(futures: dict[int, list["Future[Result]"]], results: dict[int, Result | FilterfarmError]) -> None:
    for filter_, waiting in futures.items():
        result = results.get(filter_, RenderFailed(f"renderer returned no result for filter {filter_}"))
        for future in waiting:
            if isinstance(result, FilterfarmError):
                future.set_exception(result)
            else:
                future.set_result(result)
