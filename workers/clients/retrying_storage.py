"""The object store as a worker uses it: a tile that is rendered is worth waiting for.

While the store refuses or fails, one caller at a time asks it again, after a pause; the others wait for what it hears.
So a worker with a full load of tiles sends a handful of requests a minute, renders nothing that it could not store,
and goes on as soon as one request has succeeded.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from workers.clients.storage import Store
from workers.contract.errors import STORAGE_ERRORS, Draining, FilterfarmError, StorageUnreachable
from workers.contract.settings import Settings

log = logging.getLogger(__name__)

Result = TypeVar("Result")

#: Each caller's own retries, which outlast a server's hiccup; after that they take turns. Also how long they wait for
#: an answer, so it is far above what a server that is merely slow takes for one.
OWN_RETRY_S = 15.0

#: Between two requests of all callers together while the store fails.
PAUSE_S = 5.0


class RetryingStore:
    """Like Store, but refusals are retried too: policies are mended, and buckets come back. Thread-safe.

    Every method raises the last StorageUnreachable, StorageDenied or NoBucket after ``storage_patience_s`` seconds of
    retries, and Draining once ``stop`` is set. ``report`` is called with the error at each failure, and with None at
    the first success after it.
    """

    def __init__(
        self, settings: Settings, *, stop: threading.Event, report: Callable[[FilterfarmError | None], None]
    ) -> None:
        self._retry_s = settings.storage_patience_s
        self._store = Store(settings, retry_s=min(OWN_RETRY_S, self._retry_s), stop=stop)
        self._stop = stop
        self._report = report
        self._trouble: FilterfarmError | None = None
        self._turn = threading.Lock()

    def get(self, key: str) -> bytes | None:
        """The object's bytes, or None where there is none."""
        return self._insist(lambda: self._store.get(key))

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        return self._insist(lambda: self._store.exists(key))

    def put(self, key: str, body: bytes, content_type: str) -> None:
        """Store ``body`` whole under ``key``."""
        self._insist(lambda: self._store.put(key, body, content_type))

    def wait_until_ready(self) -> None:
        """Return at once where nothing is known to be wrong, and else once the store answers again."""
        if self._trouble is not None:
            self._insist(self._store.check)

    def _insist(self, call: Callable[[], Result]) -> Result:
        deadline = time.monotonic() + self._retry_s
        while True:
            if self._trouble is None:
                try:
                    return call()
                except STORAGE_ERRORS as error:
                    self._note(error)
            if not self._turn.acquire(timeout=max(0.0, deadline - time.monotonic())):
                raise self._trouble or StorageUnreachable("the object store fails")
            try:
                if self._trouble is None:  # somebody else has heard that it is over
                    continue
                if self._stop.wait(min(PAUSE_S, max(0.0, deadline - time.monotonic()))):
                    raise Draining("the worker is stopping")
                result = call()
                self._note(None)
                return result
            except STORAGE_ERRORS as error:
                self._note(error)
                if time.monotonic() >= deadline:
                    raise
            finally:
                self._turn.release()

    def _note(self, trouble: FilterfarmError | None) -> None:
        if trouble is None:
            log.info("the object store answers again")
        elif self._trouble is None:
            log.warning("waiting for the object store: %s", trouble)
        self._trouble = trouble
        self._report(trouble)
