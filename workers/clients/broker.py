"""The broker: the Celery application and its reliability settings, Redis clients, and the queues of the jobs.

Each job has its own queue, so that workers serve jobs in turn and one queue can be counted or deleted. Celery on Redis
can lose a message, for example if a worker is killed between BRPOP and the write to ``unacked``. The collector compares
each job with the bucket and re-enqueues missing tiles.
"""

import base64
import json
import os
import ssl
import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import redis
from celery import Celery
from kombu import Exchange, Queue
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from workers.contract.job import Task
from workers.contract.keys import RedisKeys
from workers.contract.settings import Settings

TASK_NAME = "filterfarm.render"

#: Most connections of a client. More threads than that wait for one.
_CONNECTIONS = 32


def make_app(settings: Settings, names: RedisKeys) -> Celery:
    """The Celery application of a farm's producer and workers. It connects on first use.

    It reads no configuration from the environment, which may belong to another Celery project: the variables that
    Celery prefers to its configuration are removed from this process.
    """
    for name in [name for name in os.environ if name.startswith("CELERY_")]:
        del os.environ[name]
    app = Celery("filterfarm", set_as_current=False, loader="app")
    # From an object: with ``conf.update`` alone Celery reads the module that CELERY_CONFIG_MODULE names.
    config = dict(
        broker_url=settings.broker_url,
        result_backend=None,
        task_ignore_result=True,
        # Acknowledged after the tile is stored: if the worker dies before, Redis redelivers the message.
        task_acks_late=True,
        task_serializer="json",
        accept_content=["json"],
        task_queues=[Queue(names.default_queue)],
        task_default_queue=names.default_queue,
        # Tasks in a misspelt queue would never be read.
        task_create_missing_queues=False,
        worker_pool="threads",
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_hijack_root_logger=False,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # If Redis is out of memory, each such retry would lose a message.
        broker_channel_error_retry=False,
        broker_connection_timeout=5,
        # redis-py verifies certificates by default, Kombu does not.
        broker_use_ssl={"ssl_cert_reqs": ssl.CERT_REQUIRED} if settings.broker_url.startswith("rediss://") else None,
        broker_transport_options={
            # One list per queue instead of four: all tasks of a job have the same priority.
            "priority_steps": [0],
            # Farms that share a Redis redeliver their own messages only, after their own timeouts.
            "unacked_key": names.unacked,
            "unacked_index_key": names.unacked_index,
            "unacked_mutex_key": names.unacked_mutex,
            "visibility_timeout": settings.visibility_timeout_s,
            # The defaults (10, 10 and 300) delay a redelivery by 100 s, and by 300 s if a worker dies while it holds
            # the lock for redelivering the messages of others.
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            "unacked_mutex_expire": 10,
            # Without these a connection without answers is never closed.
            "socket_timeout": 10,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 10,
        },
    )
    app.config_from_object(config)
    return app


def connect(settings: Settings, *, retries: int, answer_s: float = 10.0) -> "redis.Redis":
    """A Redis client for ledger and queue lengths; connects on first use. Any number of threads may use it.

    A command is retried ``retries`` times if the connection fails or no answer arrives within ``answer_s`` seconds.
    With 1, a command of a person fails within seconds; with 20, a worker's outlasts a restart of the server.
    """
    # With redis-py's default pool, the 101st thread at a time gets an error.
    pool = redis.BlockingConnectionPool.from_url(
        settings.broker_url,
        max_connections=_CONNECTIONS,
        socket_timeout=answer_s,
        socket_connect_timeout=5,
        socket_keepalive=True,
        health_check_interval=10,
        retry=Retry(ExponentialWithJitterBackoff(base=0.1, cap=5.0), retries),
    )
    return redis.Redis.from_pool(pool)


def job_queue(name: str) -> Queue:
    """A job's queue of that name. It has no exchange and no binding: a message names its list, also when requeued."""
    return Queue(name, Exchange(""), routing_key=name)


def enqueue(app: Celery, names: RedisKeys, tasks: Iterable[Task]) -> int:
    """Publish one message per task, in order; returns their number. Workers skip tiles that are stored already.

    Celery makes one message, in which id and content are replaced for each task: ``send_task`` takes three times as
    long.
    """
    count = 0
    template = app.amqp.create_task_message("", TASK_NAME, ignore_result=True)
    _, _, embedded = template.body
    with app.producer_pool.acquire(block=True) as producer, producer.batch():  # type: ignore[attr-defined]
        for task in tasks:
            identity = uuid.uuid4().hex
            producer.publish(
                ((), task.model_dump(), embedded),
                exchange="",
                routing_key=names.queue(task.job),
                headers={**template.headers, "id": identity, "root_id": identity},
                correlation_id=identity,
                serializer="json",
                delivery_mode=2,
                retry=False,
            )
            count += 1
    return count


@dataclass(frozen=True, kw_only=True)
class Outstanding:
    """Numbers of messages of one job."""

    #: in the queue
    queued: int
    #: delivered to a worker and not acknowledged
    in_flight: int

    @property
    def total(self) -> int:
        """Number of all messages."""
        return self.queued + self.in_flight


def outstanding(client: "redis.Redis", names: RedisKeys, job_ids: Iterable[str]) -> dict[str, Outstanding]:
    """Messages of each of these jobs at one moment. Reads all messages in flight: some kB per device of the farm."""
    ids = list(job_ids)
    pipe = client.pipeline(transaction=True)
    for job_id in ids:
        pipe.llen(names.queue(job_id))
    pipe.hvals(names.unacked)
    *lengths, entries = pipe.execute()
    in_flight = Counter(map(_queue_of, cast("list[bytes]", entries)))
    return {
        job_id: Outstanding(queued=length, in_flight=in_flight[names.queue(job_id)])
        for job_id, length in zip(ids, lengths, strict=True)
    }


def message_counts(client: "redis.Redis", names: RedisKeys, job_ids: Iterable[str]) -> tuple[dict[str, int], int]:
    """Queued messages of each of these jobs, and the messages in flight of all jobs. Reads no message."""
    ids = list(job_ids)
    pipe = client.pipeline(transaction=True)
    for job_id in ids:
        pipe.llen(names.queue(job_id))
    pipe.hlen(names.unacked)
    *lengths, in_flight = pipe.execute()
    return dict(zip(ids, lengths, strict=True)), int(in_flight)


def tasks_in_redis(client: "redis.Redis", names: RedisKeys, job_ids: Iterable[str]) -> dict[str, set[tuple[str, int]]]:
    """Job -> (layer, filter) of each of its messages, queued or in flight, at one moment. Reads all of them."""
    ids = list(job_ids)
    pipe = client.pipeline(transaction=True)
    for job_id in ids:
        pipe.lrange(names.queue(job_id), 0, -1)
    pipe.hvals(names.unacked)
    *queued, in_flight = pipe.execute()
    messages = {names.queue(job_id): list(entries) for job_id, entries in zip(ids, queued, strict=True)}
    for entry in in_flight:
        if _queue_of(entry) in messages:
            messages[_queue_of(entry)].append(json.loads(entry)[0])
    return {job_id: set(filter(None, map(_tile_of, messages[names.queue(job_id)]))) for job_id in ids}


def refresh_visibility(client: "redis.Redis", names: RedisKeys, tags: Iterable[str], now: float) -> None:
    """Restart the visibility timeout of messages in flight at ``now`` (Unix seconds). Kombu starts it at delivery."""
    scores = dict.fromkeys(tags, now)
    if scores:
        client.zadd(names.unacked_index, scores, xx=True)


def _queue_of(entry: bytes) -> str:
    """Name of a message's queue. An entry of ``unacked`` is [message, exchange, routing key]."""
    try:
        return str(json.loads(entry)[2])
    except (ValueError, LookupError, TypeError):
        return ""


def _tile_of(message: Any) -> tuple[str, int] | None:
    """(layer, filter) of a message, as Kombu stores it or already decoded from JSON; None if it is no task."""
    try:
        content = message if isinstance(message, dict) else json.loads(message)
        _, task, _ = json.loads(base64.b64decode(content["body"]))
        return str(task["layer"]), int(task["filter"])
    except (ValueError, LookupError, TypeError):
        return None
