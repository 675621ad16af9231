"""Celery's consumer, which drops messages that are not tasks of filterfarm.

Celery logs a dump of an unknown message. On a body that is JSON but not a task's three parts, it ends with a traceback
and leaves the message in the queue, where it ends the next worker too. Here, each is logged in one line and dropped.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

from celery.bootsteps import RUN  # type: ignore[attr-defined]  # missing in the stubs
from celery.exceptions import InvalidTaskError
from celery.worker import state
from celery.worker.consumer import Consumer as CeleryConsumer
from kombu.exceptions import DecodeError

from workers.runtime.job_queues import JobQueues

log = logging.getLogger(__name__)


class _Strategies(dict[str, Any]):
    """Celery's mapping from the name of a task to its strategy. A name that cannot be a key is unknown: KeyError."""

    def __getitem__(self, name: Any) -> Any:
        if not isinstance(name, str):
            raise KeyError(name)
        return super().__getitem__(name)


class Consumer(CeleryConsumer):
    """Reads the queues of all jobs and validates messages. Named in Celery's ``worker_consumer`` setting."""

    Strategies = _Strategies

    # Celery's own attributes, which its stubs leave out.
    strategies: dict[str, Any]
    task_consumer: Any
    blueprint: Any
    connection_errors: Any

    def update_strategies(self) -> None:
        """Make Celery's unpacking of a message body raise InvalidTaskError, which its caller handles."""
        super().update_strategies()
        for name, strategy in self.strategies.items():
            self.strategies[name] = _raising_invalid_task(strategy)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Any:
        """Called once per broker connection. The channel then refreshes the list of queues before it reads."""
        queues = JobQueues(self.task_consumer, self.connection_errors, self._is_running)
        self.task_consumer.channel.before_read = queues.refresh
        return super().create_task_handler(*args, **kwargs)

    def _is_running(self) -> bool:
        return self.blueprint.state == RUN and state.should_stop is None and state.should_terminate is None

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """Drop a message without the headers of a task."""
        _drop(message, "not a Celery task")

    def on_unknown_task(self, body: Any, message: Any, exc: BaseException) -> None:
        """Drop a task of another name."""
        _drop(message, f"unknown task {str(exc)[:80]}")

    def on_invalid_task(self, body: Any, message: Any, exc: BaseException) -> None:
        """Drop a task with malformed arguments or content that is not JSON. Pickle is never decoded."""
        _drop(message, f"content of type {str(message.content_type)[:80]} holds no task arguments")

    def on_decode_error(self, message: Any, exc: BaseException) -> None:
        """Drop a message whose content does not decode."""
        _drop(message, f"content of type {str(message.content_type)[:80]} does not decode")


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


def _drop(message: Any, reason: str) -> None:
    log.error("dropped message reason=%s", reason)
    message.ack()
