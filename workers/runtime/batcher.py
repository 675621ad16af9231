"""Tasks come one by one, devices want batches: one future per task, one batch per (job, layer).

Every Celery task is a thread that waits here for its tile. While one batch computes, the threads of the last one
encode and upload, and the messages of the next are already here. The threads of a batch are told of its end once the
next one is on the device: with 16 of them at work, it took 50 ms to get there.
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
    """Collects filters per group and hands them to ``run`` in batches, one batch at a time, from its own thread.

    ``run(group, filters)`` returns a result or an error for each filter. It calls ``settle`` as soon as the device is
    at work.
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
        #: how long an incomplete batch waits for more messages while the device is idle
        self._wait_s = wait_s
        self._waiting: OrderedDict[Group, dict[int, list[Future[Result]]]] = OrderedDict()
        self._since: dict[Group, float] = {}
        #: job -> number of its last batch
        self._ran: dict[str, int] = {}
        self._changed = threading.Condition()
        self._closed = False
        #: what the callers of the last batch are still to be told
        self._ended: tuple[dict[int, list[Future[Result]]], dict[int, Result | FilterfarmError]] = {}, {}
        self._thread = threading.Thread(target=self._loop, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, group: Group, filter_: int) -> "Future[Result]":
        """A future for one tile; a filter that is asked for twice is rendered once. Draining once closed."""
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
        """Take no more work and hand back what has not begun; the batch that runs goes on."""
        with self._changed:
            self._closed = True
            waiting, self._waiting = self._waiting, OrderedDict()
            self._changed.notify()
        for futures in waiting.values():
            handed_back: dict[int, Result | FilterfarmError] = dict.fromkeys(
                futures, Draining("the worker is stopping")
            )
            _settle(futures, handed_back)

    def join(self, timeout_s: float) -> bool:
        """Wait for the batch that runs; whether it ended in time."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def settle(self) -> None:
        """Tell the callers of the last batch what became of it; for ``run`` alone, in its thread."""
        ended, self._ended = self._ended, ({}, {})
        _settle(*ended)

    def _loop(self) -> None:
        while True:
            taken = self._take(wait=False)
            if taken is None:
                self.settle()
                taken = self._take(wait=True)
            if taken is None:
                return
            group, futures = taken
            try:
                results = self._run(group, tuple(futures))
            except FilterfarmError as error:
                results = dict.fromkeys(futures, error)
            except Exception as error:  # the thread must outlive any error, or every later task waits for ever
                log.exception("unexpected, in a batch of %s %s", *group)
                results = dict.fromkeys(futures, FilterfarmError(f"{type(error).__name__}: {error}"))
            self.settle()  # for a batch that never came to the device
            self._ended = futures, results

    def _take(self, *, wait: bool) -> tuple[Group, dict[int, list["Future[Result]"]]] | None:
        """The batch to run now, None when closed, or when there is none to run and it is not to be waited for."""
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
        """The job whose last batch is longest ago; of that a full batch; else what has waited longest."""
        return self._ran.get(group[0], 0), not self._is_full(group), self._since[group]

    def _first_of(self, group: Group) -> dict[int, list["Future[Result]"]]:
        """As many tiles of a group as a batch holds, for it to begin. It is full or has lingered; jobs take turns."""
        filters = self._waiting.pop(group)
        taken = sorted(filters)[: self._size]
        rest = {filter_: futures for filter_, futures in filters.items() if filter_ not in taken}
        del self._since[group]
        self._ran[group[0]] = max(self._ran.values(), default=0) + 1
        if rest:
            self._waiting[group] = rest
            self._since[group] = time.monotonic()
        return {filter_: filters[filter_] for filter_ in taken}


def _settle(futures: dict[int, list["Future[Result]"]], results: dict[int, Result | FilterfarmError]) -> None:
    for filter_, waiting in futures.items():
        result = results.get(filter_, RenderFailed(f"the renderer returned nothing for filter {filter_}"))
        for future in waiting:
            if isinstance(result, FilterfarmError):
                future.set_exception(result)
            else:
                future.set_result(result)
