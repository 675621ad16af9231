"""Celery's consumer, hardened against what else may lie on the queue.

Celery answers a foreign message with a dump of it, and some with its own end: a body that is JSON but no triple stops
the worker and stays on the queue, and so stops the next one. Here each is one clear line in the log, and dropped.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

from celery.exceptions import InvalidTaskError
from celery.worker.consumer import Consumer as CeleryConsumer
from kombu.exceptions import DecodeError

log = logging.getLogger(__name__)


class Consumer(CeleryConsumer):
    """Drops what is no task of ours. Named in ``worker_consumer``."""

    # Celery's own attributes, which its stubs leave out.
    strategies: dict[str, Any]
    task_consumer: Any

    def update_strategies(self) -> None:
        """Make Celery's own unpacking of a message's body raise what its caller expects."""
        super().update_strategies()
        for name, strategy in self.strategies.items():
            self.strategies[name] = _raising_invalid_task(strategy)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Any:
        """Called on every new connection, whose channel then reads the queue with care."""
        handlers = self.task_consumer.channel.handlers
        handlers["BRPOP"] = functools.partial(_read_with_care, handlers["BRPOP"])
        return super().create_task_handler(*args, **kwargs)

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
