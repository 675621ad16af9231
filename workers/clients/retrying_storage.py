"""The object store as a worker uses it: a circuit breaker around Store.

While the store fails, one thread at a time retries after a pause, and the others wait for its result. A worker with
many tiles therefore sends a few requests a minute, renders no batch that it could not store, and continues after the
first request that succeeds.
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from workers.clients.s3_client import CONNECTIONS
from workers.clients.storage import Store
from workers.contract.errors import STORAGE_ERRORS, Draining, FilterfarmError, StorageUnreachable
from workers.contract.settings import Settings

log = logging.getLogger(__name__)

Result = TypeVar("Result")

#: Seconds for which each thread retries by itself, before the circuit opens. Longer than a restart of a server takes.
OWN_RETRY_S = 15.0

#: Pause between two requests of all threads together while the circuit is open.
PAUSE_S = 5.0


class RetryingStore:
    """Like Store, but also retries after denied access and a missing bucket, which a person may fix. Thread-safe.

    Every method raises the last StorageUnreachable, StorageDenied or NoBucket after ``settings.storage_retry_s``
    seconds of retries, and Draining once ``stop`` is set. ``report`` is called with the error at each failure, and with
    None at the first success after it.
    """

    def __init__(
        self, settings: Settings, *, stop: threading.Event, report: Callable[[FilterfarmError | None], None]
    ) -> None:
        self._retry_s = settings.storage_retry_s
        self._store = Store(settings, retry_s=min(OWN_RETRY_S, self._retry_s), stop=stop)
        self._stop = stop
        self._report = report
        #: held by each request, because hundreds of threads may have a tile at a time
        self._requests = threading.BoundedSemaphore(CONNECTIONS)
        #: the last error, if the circuit is open
        self._error: FilterfarmError | None = None
        #: whether it was a write that failed last: then only a write closes the circuit
        self._write_failed = False
        #: held by the thread that retries while the circuit is open
        self._probe = threading.Lock()

    def get(self, key: str) -> bytes | None:
        """The object's bytes, or None if there is none."""
        return self._retrying(lambda: self._store.get(key))

    def get_file(self, key: str, path: Path) -> bool:
        """Write the object into ``path``; False if there is none. Raises OSError as Store does."""
        return self._retrying(lambda: self._store.get_file(key, path))

    def exists(self, key: str) -> bool:
        """True if there is such an object."""
        return self._retrying(lambda: self._store.exists(key))

    def put(self, key: str, body: bytes, content_type: str) -> None:
        """Store ``body`` under ``key``."""
        self._retrying(lambda: self._store.put(key, body, content_type), writes=True)

    def wait_until_ready(self) -> None:
        """Return at once if the circuit is closed, otherwise once the store does again what failed."""
        if self._error is not None:
            self._retrying(self._store.check_writable, writes=True)

    def _retrying(self, call: Callable[[], Result], *, writes: bool = False) -> Result:
        deadline = time.monotonic() + self._retry_s
        while True:
            if self._error is None:
                try:
                    with self._requests:
                        return call()
                except STORAGE_ERRORS as error:
                    self._set(error, writes)
            if not self._probe.acquire(timeout=max(0.0, deadline - time.monotonic())):
                raise self._error or StorageUnreachable("the object store fails")
            try:
                if self._error is None:  # another thread has closed the circuit
                    continue
                if self._stop.wait(min(PAUSE_S, max(0.0, deadline - time.monotonic()))):
                    raise Draining("the worker is stopping")
                result = call()
                if writes or not self._write_failed:
                    self._set(None)
                return result
            except STORAGE_ERRORS as error:
                self._set(error, writes)
                if time.monotonic() >= deadline:
                    raise
            finally:
                self._probe.release()

    def _set(self, error: FilterfarmError | None, writes: bool = False) -> None:
        if error is None:
            log.info("object store available again")
        elif self._error is None:
            log.warning("object store unavailable reason=%s", error)
        self._error = error
        # A read that fails too does not make the failed write irrelevant.
        self._write_failed = error is not None and (writes or self._write_failed)
        self._report(error)
