"""The Celery task, and the life of a worker process: made at start-up, drained on SIGTERM."""

import functools
import logging
from typing import Any

import redis
from celery import Celery, signals
from celery.exceptions import Reject

from workers.clients.broker import TASK_NAME, connect
from workers.clients.broker_access import broker_errors, check_broker
from workers.clients.clock import check_clock
from workers.clients.signals import DeferredCall
from workers.contract.errors import BrokerDenied, BrokerFull, BrokerUnreachable, ClockWrong, DeviceLost
from workers.contract.keys import RedisKeys
from workers.contract.settings import Settings
from workers.runtime import job_queues, transport
from workers.runtime.batch_size import max_batch_size
from workers.runtime.heartbeat import ANSWER_S, Heartbeat
from workers.runtime.message_handler import MessageHandler, Requeue
from workers.runtime.queue_order import QueueOrder

log = logging.getLogger(__name__)


class WorkerProcess:
    """The message handler of this Celery process and its heartbeat. Raises DeviceLost as MessageHandler does."""

    def __init__(self, settings: Settings, names: RedisKeys, name: str) -> None:
        self._settings = settings
        self._name = name
        self._handler = MessageHandler(settings, names, name)
        self._drain = DeferredCall(lambda: self._handler.drain(settings.drain_s))
        self._heartbeat = Heartbeat(settings, names, name, self._handler)

    def handle(self, tag: str, body: object) -> None:
        """Handle one message, whose visibility is renewed meanwhile. Raises Reject(requeue=True) to requeue it."""
        self._heartbeat.add(tag)
        try:
            self._handler.handle(body)
        except Requeue as error:
            raise Reject(str(error), requeue=True) from error
        except redis.RedisError as error:
            log.warning("requeued reason=no answer from the ledger: %s", error)
            raise Reject("no answer from the ledger", requeue=True) from error
        finally:
            self._heartbeat.remove(tag)

    @property
    def unfit(self) -> bool:
        """True if the worker stops because nothing that it tried succeeded."""
        return bool(self._handler.health.unfit)

    def drain(self) -> None:
        """Begin to stop; returns at once, because Celery calls this from its signal handler."""
        self._drain.begin()

    def end(self) -> None:
        """Wait until drained, then remove this worker from Redis."""
        self.drain()
        self._drain.join(self._settings.drain_s + 10.0)
        self._heartbeat.stop()
        try:
            self._handler.presence.remove_worker(self._name)
        except redis.RedisError as error:
            log.warning("cannot remove worker=%s from Redis reason=%s", self._name, error)


def _check_redis(settings: Settings) -> None:
    """Raise ClockWrong as check_clock does, and BrokerDenied if a command is refused.

    If Redis does not answer, Celery waits for it, and the heartbeat checks the clock later.
    """
    client = connect(settings, retries=1, answer_s=ANSWER_S)
    try:
        with broker_errors(settings):
            check_clock(client, settings.visibility_timeout_s)
            check_broker(client)
    except (BrokerUnreachable, BrokerFull) as error:
        log.warning("starting without a check of Redis reason=%s", error)


def install(app: Celery, settings: Settings, names: RedisKeys) -> list[WorkerProcess]:
    """Add the render task to ``app``, and the signal handlers that make and drain its WorkerProcess.

    Returns a list that holds the WorkerProcess once it has started.
    """
    job_queues.names = names
    app.conf.worker_consumer = "workers.runtime.consumer:Consumer"
    app.conf.broker_transport = transport.NAME
    app.conf.broker_transport_options = {
        **app.conf.broker_transport_options,
        "polling_interval": job_queues.REFRESH_S,  # the timeout of a BRPOP
        "queue_order_strategy": functools.partial(QueueOrder, settings.batch or max_batch_size(settings.device)),
    }
    processes: list[WorkerProcess] = []

    @app.task(name=TASK_NAME, bind=True)
    def render(self: Any, /, *unnamed: object, **body: object) -> None:
        processes[0].handle(self.request.properties["delivery_tag"], [unnamed, body] if unnamed else body)

    def start(instance: Any, **_: object) -> None:
        transport.check_kombu_version()
        try:
            _check_redis(settings)
            processes.append(WorkerProcess(settings, names, instance.hostname))
        except (BrokerDenied, ClockWrong, DeviceLost) as error:
            log.error("not starting reason=%s", error)
            raise SystemExit(int(error.exit_code)) from error

    def drain(**_: object) -> None:
        for process in processes:
            process.drain()

    def end(**_: object) -> None:
        for process in processes:
            process.end()

    # weak=False: these functions have no other owner.
    signals.celeryd_after_setup.connect(start, weak=False)
    signals.worker_shutting_down.connect(drain, weak=False)
    signals.worker_shutdown.connect(end, weak=False)
    return processes
