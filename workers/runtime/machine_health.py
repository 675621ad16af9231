"""Whether this machine renders at all. A worker on which nothing succeeds stops, so that it takes no more messages."""

import logging
from collections.abc import Callable

import redis

from workers.clients.presence import Presence

log = logging.getLogger(__name__)

#: A worker stops after this many failures in a row without a success.
MOST_FAILURES = 3


class MachineHealth:
    """Counts failures in a row and publishes the last reason. Thread-safe as far as it needs to be: a count may be off.

    ``machine``: the name in Redis. ``stop`` is called once, after MOST_FAILURES failures without a success.
    """

    def __init__(self, machine: str, presence: Presence, stop: Callable[[], None]) -> None:
        self._machine = machine
        self._presence = presence
        self._stop = stop
        self._failures = 0
        self._published = True  # perhaps by an earlier process: the first success removes it
        #: the reason, once the worker has stopped because of it
        self.unfit = ""

    def succeeded(self) -> None:
        """Note that tiles were rendered."""
        self._failures = 0
        if self._published and not self.unfit:
            self._publish(None)

    def failed(self, reason: str) -> None:
        """Note that nothing could be rendered, for a reason that lies with this machine."""
        self._failures += 1
        self._publish(reason)
        if self._failures >= MOST_FAILURES and not self.unfit:
            self.unfit = reason
            log.error(
                "stopping machine=%s reason=%d failures in a row, the last: %s", self._machine, self._failures, reason
            )
            self._stop()

    def _publish(self, reason: str | None) -> None:
        try:
            self._presence.report_trouble(self._machine, reason)
            self._published = reason is not None
        except redis.RedisError as error:
            log.warning("cannot publish the trouble of machine=%s reason=%s", self._machine, error)
