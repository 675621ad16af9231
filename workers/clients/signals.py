"""Stopping on a signal without a deadlock.

A signal's handler runs in the main thread, between any two of its instructions. Where those are within the wait for an
event, or within the start of a thread, the main thread already holds the lock that the handler is to take, and then
waits for itself for ever. ``SimpleQueue.put`` is the one way of telling a thread something that may interrupt itself.
"""

import queue
import signal
import threading
from collections.abc import Callable


class DeferredCall(threading.Thread):
    """Calls ``action`` once, in a thread of its own, soon after ``begin``. ``join`` waits for its end."""

    def __init__(self, action: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._action = action
        self._told: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.start()

    def begin(self) -> None:
        """May be called from a signal handler, from any thread, and again."""
        self._told.put(None)

    def run(self) -> None:
        """What the thread does."""
        self._told.get()
        self._action()


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set from now on; to be called by the main thread."""
    stop = threading.Event()
    told = DeferredCall(stop.set)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.begin())
    return stop
