"""Where Celery meets the service: the task, the worker's life, the heartbeat. Nothing else in here knows pictures."""

import functools
import logging
import os
import signal
import threading
import time
from typing import Any

import redis
from celery import Celery, signals
from celery.exceptions import Reject

from workers.clients.broker import TASK_NAME, connect, refresh_visibility
from workers.clients.clock import check_clock
from workers.clients.ledger import Ledger
from workers.clients.presence import Presence
from workers.clients.signals import DeferredCall
from workers.contract.errors import ClockWrong, DeviceLost, ExitCode
from workers.contract.settings import Settings
from workers.runtime.batch_size import max_batch_size
from workers.runtime.message_handler import MessageHandler, Requeue
from workers.runtime.queue_order import QueueOrder

log = logging.getLogger(__name__)

#: At least this often a worker says that it is alive.
SEEN_EVERY_S = 2.0

#: A worker that has heard nothing from Redis for this long ends. Kombu may wait for minutes on connections that lead
#: nowhere; the next process, which the supervisor starts, makes new ones. And what this one holds goes to others.
MOST_SILENCE_S = 18.0

#: What one heartbeat waits for an answer, and who asks for the time at the start.
_ANSWER_S = 3.0


class Farmhand:
    """The service of this Celery process, made when the worker starts and drained when it is told to stop."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings = settings
        self._name = name
        self._in_flight: set[str] = set()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self.service = MessageHandler(settings, name)
        self._drainer = DeferredCall(lambda: self.service.drain(settings.drain_s))
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def handle(self, tag: str, body: object) -> None:
        """Deal with one message while its visibility is kept fresh; Reject(requeue) hands it back."""
        with self._lock:
            self._in_flight.add(tag)
        try:
            self.service.handle(body)
        except Requeue as error:
            raise Reject(str(error), requeue=True) from error
        except redis.RedisError as error:
            log.warning("the ledger is out of reach, a message goes back: %s", error)
            raise Reject("the ledger is out of reach", requeue=True) from error
        finally:
            with self._lock:
                self._in_flight.discard(tag)

    def drain(self) -> None:
        """Begin to stop; returns at once, because Celery calls this from its signal handler."""
        self._drainer.begin()

    def end(self) -> None:
        """Wait for the drain to end, and leave."""
        self.drain()
        self._drainer.join(self._settings.drain_s + 10.0)
        self._ended.set()
        try:
            self.service.presence.remove_worker(self._name)
        except redis.RedisError as error:
            log.warning("could not sign off: %s", error)

    def _beat(self) -> None:
        """Kombu starts a message's visibility clock at delivery and never refreshes it; a long batch needs that."""
        pause_s = min(SEEN_EVERY_S, self._settings.visibility_timeout_s / 4)
        # The service's own connection outlasts a restart of Redis in silence; this one tells.
        client = connect(self._settings, retries=1, answer_s=_ANSWER_S)
        ledger, presence = Ledger(client), Presence(client)
        heard = time.monotonic()
        while not self._ended.is_set():
            with self._lock:
                tags = list(self._in_flight)
            try:
                refresh_visibility(client, tags, check_clock(client, self._settings.visibility_timeout_s))
                self.service.renew_claims(ledger)
                presence.worker_heartbeat(self._name)
                heard = time.monotonic()
            except redis.RedisError as error:
                log.warning("no heartbeat: %s", error)
                if not _is_silence(error):
                    heard = time.monotonic()
                elif time.monotonic() - heard > MOST_SILENCE_S:
                    log.error("stopping: Redis has not answered for %.0f s", time.monotonic() - heard)
                    # At once: an orderly end would ask Redis. The renderer sees it and ends, too.
                    os._exit(ExitCode.BROKER_UNREACHABLE)
            except ClockWrong as error:
                # The next process, if there is one, finds out whether it has been set right.
                log.error("stopping: %s", error)
                os.kill(os.getpid(), signal.SIGTERM)
                return
            self._ended.wait(pause_s)


def _is_silence(error: redis.RedisError) -> bool:
    """Whether there was no answer at all; one that says no, or not yet, is one."""
    return isinstance(error, (redis.ConnectionError, redis.TimeoutError)) and not isinstance(
        error, redis.BusyLoadingError
    )


def _compare_clocks(settings: Settings) -> None:
    """Raise ClockWrong as check_clock does, where Redis answers."""
    try:
        check_clock(connect(settings, retries=1, answer_s=_ANSWER_S), settings.visibility_timeout_s)
    except redis.RedisError as error:  # Celery waits for it, and the heartbeat asks again
        log.warning("cannot ask Redis for the time: %s", error)


def install(app: Celery, settings: Settings) -> None:
    """Give ``app`` the render task, and the service to run it with once a worker starts."""
    app.conf.worker_consumer = "workers.runtime.consumer:Consumer"
    turns = functools.partial(QueueOrder, settings.batch or max_batch_size(settings.device))
    app.conf.broker_transport_options = {**app.conf.broker_transport_options, "queue_order_strategy": turns}
    farmhands: list[Farmhand] = []

    @app.task(name=TASK_NAME, bind=True)
    def render(self: Any, /, *unnamed: object, **body: object) -> None:
        farmhands[0].handle(self.request.properties["delivery_tag"], [unnamed, body] if unnamed else body)

    def begin(instance: Any, **_: object) -> None:
        try:
            _compare_clocks(settings)
            farmhands.append(Farmhand(settings, instance.hostname))
        except (ClockWrong, DeviceLost) as error:
            log.error("not starting: %s", error)
            raise SystemExit(int(error.exit_code)) from error

    # There is none yet where a worker is stopped before it has begun.
    def drain(**_: object) -> None:
        for farmhand in farmhands:
            farmhand.drain()

    def end(**_: object) -> None:
        for farmhand in farmhands:
            farmhand.end()

    # weak=False: these functions have no other owner.
    signals.celeryd_after_setup.connect(begin, weak=False)
    signals.worker_shutting_down.connect(drain, weak=False)
    signals.worker_shutdown.connect(end, weak=False)
