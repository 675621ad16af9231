"""The heartbeat thread of a worker process: message visibility, claims and presence, renewed every few seconds.

Kombu starts the visibility timeout of a message at delivery and never renews it, but a batch may take longer. What
makes no progress is not renewed: if the renderer hangs and cannot be killed, the process ends, and its messages are
delivered to others. If Redis is silent, connections are dropped first; the process ends only once its messages have
been delivered to others anyway.
"""

import logging
import os
import signal
import threading
import time

import redis

from workers.clients.broker import connect, refresh_visibility
from workers.clients.clock import check_clock
from workers.clients.ledger import Ledger
from workers.clients.presence import Presence
from workers.contract.errors import ClockWrong, ExitCode
from workers.contract.keys import RedisKeys
from workers.contract.settings import Settings
from workers.runtime import transport
from workers.runtime.message_handler import MessageHandler

log = logging.getLogger(__name__)

#: Longest interval between two heartbeats, in seconds.
INTERVAL_S = 2.0

#: Without an answer from Redis for this many seconds, all connections are dropped: Kombu may wait for minutes on dead
#: ones. Again after the same time.
MAX_SILENCE_S = 18.0

#: Without an answer for this many seconds, and for longer than the visibility timeout, the process ends.
END_SILENCE_S = 60.0

#: Seconds beyond ``hang_s`` after which a renderer that cannot be killed ends the process; ``hang_s`` if that is less.
STUCK_MARGIN_S = 60.0

#: Timeout in seconds of one command of the heartbeat, and of the clock check at start-up.
ANSWER_S = 3.0


class Heartbeat:
    """A thread that runs from construction until ``stop``. ``add`` and ``remove`` are called by any thread.

    ``name``: the name of this worker in Redis. ``handler``: whose claims are renewed.
    """

    def __init__(self, settings: Settings, names: RedisKeys, name: str, handler: MessageHandler) -> None:
        self._settings = settings
        self._names = names
        self._name = name
        self._handler = handler
        self._in_flight: set[str] = set()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def add(self, tag: str) -> None:
        """Renew the visibility of the message with this delivery tag from now on."""
        with self._lock:
            self._in_flight.add(tag)

    def remove(self, tag: str) -> None:
        """Renew it no longer."""
        with self._lock:
            self._in_flight.discard(tag)

    def stop(self) -> None:
        """Make no further heartbeat; returns at once."""
        self._stopped.set()

    def _run(self) -> None:
        interval_s = min(INTERVAL_S, self._settings.visibility_timeout_s / 4)
        # The handler's own connection retries for as long as Redis takes to restart. This one fails fast.
        client = connect(self._settings, retries=1, answer_s=ANSWER_S)
        ledger, presence = Ledger(client, self._names), Presence(client, self._names)
        answered = dropped = time.monotonic()
        while not self._stopped.is_set():
            self._end_if_stuck()
            try:
                self._beat(client, ledger, presence)
                answered = dropped = time.monotonic()
            except redis.RedisError as error:
                log.warning("heartbeat failed reason=%s", error)
                now = time.monotonic()
                if not _is_silence(error):
                    answered = dropped = now
                elif now - answered > max(END_SILENCE_S, self._settings.visibility_timeout_s):
                    log.error("stopping reason=Redis has not answered for %.0f s", now - answered)
                    # Not in order, which would need Redis. The render process notices and ends too.
                    os._exit(ExitCode.BROKER_UNREACHABLE)
                elif now - dropped > MAX_SILENCE_S:
                    log.warning("dropping connections reason=Redis has not answered for %.0f s", now - answered)
                    transport.drop_connections()
                    dropped = now
            except ClockWrong as error:
                # The supervisor starts another process, which checks the clock again.
                log.error("stopping reason=%s", error)
                os.kill(os.getpid(), signal.SIGTERM)
                return
            except Exception:  # without this thread, messages would be delivered to others while they are rendered
                log.exception("heartbeat failed")
            self._stopped.wait(interval_s)

    def _beat(self, client: "redis.Redis", ledger: Ledger, presence: Presence) -> None:
        with self._lock:
            tags = list(self._in_flight)
        now = check_clock(client, self._settings.visibility_timeout_s)
        refresh_visibility(client, self._names, tags, now)
        self._handler.renew_claims(ledger)
        presence.worker_heartbeat(self._name, now)

    def _end_if_stuck(self) -> None:
        silent_s = self._handler.silent_s
        hang_s = self._settings.hang_s
        if silent_s > hang_s + min(hang_s, STUCK_MARGIN_S):
            log.error("stopping reason=the renderer has made no progress for %.0f s and cannot be killed", silent_s)
            # Not in order: the thread that waits for the renderer would wait for ever.
            os._exit(ExitCode.UNEXPECTED)


def _is_silence(error: redis.RedisError) -> bool:
    """True if Redis sent no answer at all. A refusal is an answer, and so is "loading"."""
    return isinstance(error, (redis.ConnectionError, redis.TimeoutError)) and not isinstance(
        error, redis.BusyLoadingError
    )
