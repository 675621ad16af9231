"""The heartbeat thread of a worker process: message visibility, claims and presence, renewed every few seconds.

Kombu starts the visibility timeout of a message at delivery and never renews it, but a batch may take longer. After
MAX_SILENCE_S without any answer from Redis the process ends.
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
from workers.contract.settings import Settings
from workers.runtime.message_handler import MessageHandler

log = logging.getLogger(__name__)

#: Longest interval between two heartbeats, in seconds.
INTERVAL_S = 2.0

#: A worker that gets no answer from Redis for this many seconds ends. Kombu may wait for minutes on dead connections;
#: the next process, which the supervisor starts, makes new ones. Redis redelivers the messages this one holds.
MAX_SILENCE_S = 18.0

#: Timeout in seconds of one command of the heartbeat, and of the clock check at start-up.
ANSWER_S = 3.0


class Heartbeat:
    """A thread that runs from construction until ``stop``. ``add`` and ``remove`` are called by any thread.

    ``name``: the name of this worker in Redis. ``handler``: whose claims are renewed.
    """

    def __init__(self, settings: Settings, name: str, handler: MessageHandler) -> None:
        self._settings = settings
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
        ledger, presence = Ledger(client), Presence(client)
        answered = time.monotonic()
        while not self._stopped.is_set():
            with self._lock:
                tags = list(self._in_flight)
            try:
                refresh_visibility(client, tags, check_clock(client, self._settings.visibility_timeout_s))
                self._handler.renew_claims(ledger)
                presence.worker_heartbeat(self._name)
                answered = time.monotonic()
            except redis.RedisError as error:
                log.warning("heartbeat failed reason=%s", error)
                silence_s = time.monotonic() - answered
                if not _is_silence(error):
                    answered = time.monotonic()
                elif silence_s > MAX_SILENCE_S:
                    log.error("stopping reason=Redis has not answered for %.0f s", silence_s)
                    # Not in order, which would need Redis. The render process notices and ends too.
                    os._exit(ExitCode.BROKER_UNREACHABLE)
            except ClockWrong as error:
                # The supervisor starts another process, which checks the clock again.
                log.error("stopping reason=%s", error)
                os.kill(os.getpid(), signal.SIGTERM)
                return
            self._stopped.wait(interval_s)


def _is_silence(error: redis.RedisError) -> bool:
    """True if Redis sent no answer at all. A refusal is an answer, and so is "loading"."""
    return isinstance(error, (redis.ConnectionError, redis.TimeoutError)) and not isinstance(
        error, redis.BusyLoadingError
    )
