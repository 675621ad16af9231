"""The Redis transport of the workers: Kombu's own, with three changes to how a channel reads its queues.

Chosen by the ``broker_transport`` setting of the Celery application, and only by workers. It overrides private methods
of ``kombu.transport.redis.Channel``; tests/unit/runtime/test_private_parts.py names them.
"""

import contextlib
import logging
import socket
import weakref
from collections.abc import Callable
from importlib.metadata import version
from queue import Empty
from typing import Any

from kombu.transport import redis as kombu_redis
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads

from workers.runtime.queue_order import QueueOrder

#: The value of Celery's ``broker_transport`` setting.
NAME = f"{__name__}:Transport"

#: The Kombu versions whose private methods are known to match the overrides below.
_KNOWN_VERSION = "5.7."

#: Seconds for which a read waits if other queues may hold a message.
_SHORT_S = 0.01

log = logging.getLogger(__name__)

_redis: Any = kombu_redis  # its stubs leave out the private methods


#: the open channels of this process
_channels: "weakref.WeakSet[Channel]" = weakref.WeakSet()


class Channel(_redis.Channel):  # type: ignore[misc]
    """A Redis channel that shares one client, calls ``before_read`` and drops entries that are no messages."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        _channels.add(self)

    #: Called in the thread of the event loop before each BRPOP is sent. None: nothing is called.
    before_read: Callable[[], None] | None = None

    _shared_client: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        """Return one shared client where Kombu makes a new one for each message and for each acknowledgement.

        redis-py's clients are thread-safe and share the pool of the channel anyway. Making them took a sixth of the
        time that a tile costs outside the engine.
        """
        if asynchronous:
            return super()._create_client(asynchronous=True)
        if self._shared_client is None or self._shared_client.connection_pool is not self.pool:
            self._shared_client = super()._create_client()
        return self._shared_client

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Call ``before_read``, then send one BRPOP. Kombu sends none while the worker may take no more messages."""
        if self.before_read is not None:
            self.before_read()
        order = self._queue_cycle
        if isinstance(order, QueueOrder):
            order.consume(len(self.active_queues))  # which the original repeats
            timeout = _SHORT_S if order.has_more else timeout
        super()._brpop_start(timeout)

    def _brpop_read(self, **options: Any) -> bool:
        """Read the answer to a BRPOP and deliver its message. Raises Empty if no queue held a message.

        As in Kombu, but an entry that cannot be decoded is logged and dropped: it has left the queue already, and
        Kombu's error would end the worker. Errors of the delivery itself are raised.
        """
        try:
            try:
                answer = self.client.parse_response(self.client.connection, "BRPOP", **options)
            except self.connection_errors:
                self.client.connection.disconnect()  # the event loop connects again
                raise
            if not answer:
                if isinstance(self._queue_cycle, QueueOrder):
                    self._queue_cycle.pass_over()
                raise Empty
            name, entry = answer
            queue = bytes_to_str(name).rsplit(self.sep, 1)[0]
            self._queue_cycle.rotate(queue)
            payload = self._decode(entry)
            if payload is not None:
                self.connection._deliver(payload, queue)
            return True
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()

    def _decode(self, entry: bytes) -> Any:
        """The message in a queue entry, or None if it is not JSON or has not the fields of a Kombu message."""
        try:
            payload = loads(bytes_to_str(entry))
            message = self.Message(payload, channel=self)
            # What the delivery reads of a message. The tag is a key in Redis.
            _ = message.delivery_info["exchange"], message.delivery_info["routing_key"]
            if not isinstance(message.delivery_tag, str):
                raise TypeError("delivery tag")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            log.error("dropped message reason=not a Kombu message (%s)", type(error).__name__)
            return None
        return payload


class Transport(_redis.Transport):  # type: ignore[misc]
    """Kombu's Redis transport with the channel above."""

    Channel = Channel


def drop_connections() -> None:
    """Shut down the sockets of all channels. Their threads get an error and connect again. Called by any thread.

    Sockets are not closed: the event loop would not notice, and wait on a number that another file may get.
    """
    for channel in list(_channels):
        for pool in (channel._pool, channel._async_pool):
            for connection in [*getattr(pool, "_in_use_connections", ()), *getattr(pool, "_available_connections", ())]:
                with contextlib.suppress(OSError, AttributeError):
                    connection._sock.shutdown(socket.SHUT_RDWR)


def check_kombu_version(installed: str | None = None) -> None:
    """Log a warning if ``installed``, by default the version here, is not one that this module was written for."""
    installed = installed or version("kombu")
    if not installed.startswith(_KNOWN_VERSION):
        log.warning(
            "Kombu %s is installed, but the workers' transport was written for Kombu %sx; install kombu>=5.7,<5.8",
            installed,
            _KNOWN_VERSION,
        )
