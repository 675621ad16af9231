"""Stop requests by signal, and the end of child processes.

Python runs a signal's handler in the main thread, between any two of its instructions. If these are part of waiting
for an event or of starting a thread, the main thread already holds the lock that ``Event.set`` takes: a deadlock.
``SimpleQueue.put`` is reentrant, so the handler uses that, and a second thread sets the event.
"""

import queue
import signal
import subprocess
import threading
from collections.abc import Callable


class DeferredCall(threading.Thread):
    """Calls ``action`` once, in its own thread, soon after ``begin``. ``join`` waits until it has returned."""

    def __init__(self, action: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._action = action
        self._begun: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.start()

    def begin(self) -> None:
        """Start the call. Reentrant: may be called from signal handlers, from any thread and repeatedly."""
        self._begun.put(None)

    def run(self) -> None:
        """The thread's body."""
        self._begun.get()
        self._action()


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set from now on. Must be called in the main thread."""
    stop = threading.Event()
    setter = DeferredCall(stop.set)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: setter.begin())
    return stop


def terminate(process: "subprocess.Popen[bytes]", grace_s: float) -> bool:
    """End a child process: SIGTERM, and SIGKILL if it still runs after ``grace_s`` seconds. Returns once it has ended.

    True if SIGTERM sufficed. Harmless if the process has ended already.
    """
    process.terminate()
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    return True
