"""Celery's consumer, made to follow the jobs' queues, and hardened against what else may lie on them.

Each job has a queue of its own, which is read from soon after it is registered until it has ended.

Celery answers a foreign message with a dump of it, and some with its own end: a body that is JSON but no triple stops
the worker and stays on the queue, and so stops the next one. Here each is one clear line in the log, and dropped.
"""

import functools
import logging
import time
from collections.abc import Callable
from typing import Any

from celery.bootsteps import RUN  # type: ignore[attr-defined]  # missing in the stubs
from celery.exceptions import InvalidTaskError
from celery.worker import state
from celery.worker.consumer import Consumer as CeleryConsumer
from kombu.exceptions import DecodeError

from workers.clients.broker import job_queue
from workers.contract import keys

#: How soon an idle worker learns of new jobs and of ended ones: for so long it waits at the queues that it knows. Redis
#: looks ten times a second for waits that are over, so it may be twice that.
FOLLOW_S = 0.1

log = logging.getLogger(__name__)


class Consumer(CeleryConsumer):
    """Reads the queues of all jobs, and drops what is no task of ours. Named in ``worker_consumer``."""

    # Celery's own attributes, which its stubs leave out.
    strategies: dict[str, Any]
    task_consumer: Any
    blueprint: Any
    connection_errors: Any

    #: When to look for new jobs again, by the monotonic clock.
    _follow_at = 0.0

    def update_strategies(self) -> None:
        """Make Celery's own unpacking of a message's body raise what its caller expects."""
        super().update_strategies()
        for name, strategy in self.strategies.items():
            self.strategies[name] = _raising_invalid_task(strategy)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Any:
        """Called on every new connection, whose channel then reads with care, not for long, and by one client."""
        channel = self.task_consumer.channel
        # Kombu makes one for every message that it takes, and one more to acknowledge it: a sixth of all that a tile
        # costs around the engine. They are thread-safe, and share their pool anyway.
        channel._create_client = functools.cache(channel._create_client)
        channel.brpop_timeout = FOLLOW_S
        channel._brpop_start = functools.partial(self._begin_reading, channel._brpop_start)
        handlers = channel.handlers
        handlers["BRPOP"] = functools.partial(_read_with_care, handlers["BRPOP"])
        return super().create_task_handler(*args, **kwargs)

    def _begin_reading(self, begin: Callable[[], None]) -> None:
        """Kombu's sending of one BRPOP, in the loop's own thread. While the worker holds all it may, there is none."""
        if time.monotonic() >= self._follow_at:
            self._follow_jobs()
            self._follow_at = time.monotonic() + FOLLOW_S
        begin()

    def _follow_jobs(self) -> None:
        """Read from the queues of all jobs there are now, and no others."""
        if self.blueprint.state != RUN or state.should_stop is not None or state.should_terminate is not None:
            return
        try:
            with self.task_consumer.channel.conn_or_acquire() as client:
                jobs = {member.decode() for member in client.smembers(keys.JOBS)}
        except self.connection_errors:  # the loop itself finds that out, and connects anew
            return
        wanted = {keys.QUEUE, *map(keys.queue, jobs)}
        for name in {queue.name for queue in self.task_consumer.queues} - wanted:
            self.task_consumer.cancel_by_queue(name)
        for job_id in sorted(jobs):
            if not self.task_consumer.consuming_from(keys.queue(job_id)):
                self.task_consumer.add_queue(job_queue(job_id))
        self.task_consumer.consume()

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """Drop what has no task's headers."""
        _drop(message, "it is no Celery task")

    def on_unknown_task(self, body: Any, message: Any, exc: BaseException) -> None:
        """Drop a task of another name."""
        _drop(message, f"there is no task {str(exc)[:80]}")

    def on_invalid_task(self, body: Any, message: Any, exc: BaseException) -> None:
        """Drop a task whose arguments are no arguments, or come as anything but JSON: pickle is never looked at."""
        _drop(message, f"{str(message.content_type)[:80]!r} content that is no task's arguments")

    def on_decode_error(self, message: Any, exc: BaseException) -> None:
        """Drop what does not decode."""
        _drop(message, f"{str(message.content_type)[:80]!r} content that does not decode")


def _raising_invalid_task(strategy: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(strategy)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return strategy(*args, **kwargs)
        except (InvalidTaskError, DecodeError):
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InvalidTaskError(str(error)) from error

    return guarded


def _read_with_care(read: Callable[..., Any], **options: Any) -> Any:
    """Kombu's reading of one queue entry. One that is no JSON envelope is off the queue already when that shows."""
    try:
        return read(**options)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        log.error("dropped a message: it is no Kombu message (%s)", type(error).__name__)
        return True


def _drop(message: Any, reason: str) -> None:
    log.error("dropped a message: %s", reason)
    message.ack()
