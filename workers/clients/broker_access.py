"""What the farm needs of Redis: a check that tries it, and the meaning of Redis's errors."""

import contextlib
import uuid
from collections.abc import Iterator

import redis
from kombu.exceptions import KombuError
from redis import exceptions

from workers.contract import keys
from workers.contract.errors import BrokerDenied, BrokerFull, BrokerUnreachable, FilterfarmError, one_line
from workers.contract.keys import RedisKeys
from workers.contract.settings import Settings


def check_broker(client: "redis.Redis") -> None:
    """Try what producer, workers and collector do in Redis. Leaves nothing behind. Raises redis.RedisError."""
    probe = f"probe-{uuid.uuid4().hex}"
    names = RedisKeys(probe)
    queue, own, more = names.queue(probe), names.claim(probe, 0), names.field(probe, "done")
    # The set in which Kombu holds the queues of an exchange has the name of the default queue.
    binding = f"_kombu.binding.{names.default_queue}"
    client.time()
    unacked, index = names.unacked, names.unacked_index
    commands = (
        ("SADD", binding, probe), ("SMEMBERS", binding), ("SREM", binding, probe),
        ("LPUSH", queue, probe), ("RPUSH", queue, probe), ("LLEN", queue), ("LRANGE", queue, 0, 0),
        ("BRPOP", queue, 1), ("UNLINK", queue),
        ("ZADD", index, 0, probe), ("ZREVRANGEBYSCORE", index, 0, 0, "LIMIT", 0, 1), ("ZREM", index, probe),
        ("HSET", unacked, probe, probe), ("HGET", unacked, probe), ("HVALS", unacked), ("HLEN", unacked),
        ("HDEL", unacked, probe),
        ("SET", own, probe, "NX", "PX", 1000), ("GET", own), ("PEXPIRE", own, 1000), ("EXISTS", own), ("DEL", own),
        ("SETBIT", own, 0, 1), ("BITCOUNT", own), ("BITOP", "NOT", more, own), ("EXPIRE", more, 1), ("PERSIST", more),
        ("UNLINK", own, more),
        ("HINCRBY", own, probe, 1), ("HGETALL", own), ("HEXISTS", own, probe), ("UNLINK", own),
        ("ZREMRANGEBYSCORE", names.workers, 0, 0), ("ZRANGE", names.workers, 0, 0), ("SMEMBERS", names.jobs),
        ("HGETALL", keys.FARMS),
    )  # fmt: skip
    # One transaction, so that no worker sees these messages, and nothing is left if a command is refused.
    pipe = client.pipeline(transaction=True)
    for command in commands:
        pipe.execute_command(*command)  # type: ignore[no-untyped-call]
    pipe.execute()
    with client.pipeline() as watching:
        watching.watch(names.unacked)  # type: ignore[no-untyped-call]
    client.register_script('return redis.call("EXISTS", KEYS[1])')(keys=[names.unacked_mutex], client=client)


@contextlib.contextmanager
def broker_errors(settings: Settings) -> Iterator[None]:
    """Convert errors of redis-py and Kombu raised inside to BrokerUnreachable, BrokerDenied or BrokerFull."""
    try:
        yield
    except (redis.RedisError, KombuError, ConnectionError, TimeoutError) as error:
        raise _explain(error, settings) from error


def _explain(error: BaseException, settings: Settings) -> FilterfarmError:
    """The error that describes one of redis-py or Kombu: BrokerUnreachable, BrokerDenied or BrokerFull."""
    cause = _redis_error(error)
    server, variable = f"Redis at {settings.public_broker_url}", settings.variable("broker_url")
    text = f"{type(cause).__name__}: {one_line(cause)}"
    if isinstance(cause, (exceptions.AuthenticationError, exceptions.AuthorizationError)):
        return BrokerDenied(f"{server} refuses the credentials; correct {variable}")
    if isinstance(cause, exceptions.NoPermissionError):
        return BrokerDenied(
            f"{server} does not permit its user what the farm does ({one_line(cause, 300)}); permit it, "
            "with the keys filterfarm*, unacked* and _kombu*"
        )
    if isinstance(cause, (exceptions.ReadOnlyError, exceptions.MasterDownError)):
        return BrokerUnreachable(f"{server} is a replica, which cannot be written to; name the primary in {variable}")
    if isinstance(cause, (exceptions.ClusterError, exceptions.AskError, exceptions.ClusterCrossSlotError)):
        return BrokerDenied(f"{server} is a cluster, which Celery cannot use; name a plain Redis in {variable}")
    if isinstance(cause, exceptions.OutOfMemoryError) or str(cause).startswith("MISCONF"):
        return BrokerFull(
            f"{server} is full ({one_line(cause)}); give it more memory or disk, then the same command again"
        )
    if isinstance(cause, exceptions.ResponseError) and not str(cause).startswith("NOREPLICAS"):
        return BrokerDenied(f"{server} refuses a command ({text}); check {variable}")
    return BrokerUnreachable(f"no answer from {server} ({text}); check {variable} and that the server runs")


def _redis_error(error: BaseException) -> BaseException:
    """The error of redis-py among the causes of ``error``, which may be Kombu's; else ``error`` itself."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, redis.RedisError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return error
