"""Who is there, and what they hear from the object store: what workers and the collector say of themselves in Redis."""

import json
import time
from dataclasses import asdict, dataclass
from typing import cast

import redis

from workers.contract import keys
from workers.contract.errors import FilterfarmError, StorageUnreachable

#: A worker that has not been seen for this long is not counted as running.
WORKER_SEEN_S = 30.0

#: What a process says of the object store counts for this long; while it lasts, it says so several times a minute.
_TROUBLE_S = 60.0

#: What the collector calls itself; workers have names with an "@".
COLLECTOR = "collector"


@dataclass(frozen=True, kw_only=True)
class StorageErrorReport:
    """What a worker or the collector hears from the object store instead of answers."""

    #: it is refused, and not merely without an answer: somebody has to do something
    refused: bool
    reason: str
    #: Unix seconds
    at: float


class Presence:
    """Workers and collector as seen in Redis. Raises redis.RedisError; thread-safe, as redis-py's client is."""

    def __init__(self, client: "redis.Redis") -> None:
        self._client = client

    def worker_heartbeat(self, name: str) -> None:
        """Note that a worker is alive."""
        now = time.time()
        pipe = self._client.pipeline()
        pipe.zadd(keys.WORKERS, {name: now})
        pipe.zremrangebyscore(keys.WORKERS, 0, now - 86400)
        pipe.execute()

    def remove_worker(self, name: str) -> None:
        """Note that a worker has left in good order."""
        pipe = self._client.pipeline()
        pipe.zrem(keys.WORKERS, name)
        pipe.hdel(keys.STORAGE, name)
        pipe.execute()

    def workers(self) -> dict[str, float]:
        """Worker name -> seconds since it was last seen, of the last day."""
        now = time.time()
        seen = cast("list[tuple[bytes, float]]", self._client.zrange(keys.WORKERS, 0, -1, withscores=True))
        return {name.decode(): max(0.0, now - when) for name, when in seen}

    def report_storage_error(self, name: str, error: FilterfarmError | None) -> None:
        """Note what a worker, or the collector, hears from the object store; None once it answers again."""
        if error is None:
            self._client.hdel(keys.STORAGE, name)
            return
        trouble = StorageErrorReport(
            refused=not isinstance(error, StorageUnreachable), reason=str(error), at=time.time()
        )
        self._client.hset(keys.STORAGE, name, json.dumps(asdict(trouble)))

    def storage_error(self) -> StorageErrorReport | None:
        """What keeps the farm from its object store: the collector, or every worker there is, says so. Else None."""
        entries = cast("dict[bytes, bytes]", self._client.hgetall(keys.STORAGE))
        now = time.time()
        troubles = {name.decode(): StorageErrorReport(**json.loads(text)) for name, text in entries.items()}
        fresh = {name: trouble for name, trouble in troubles.items() if now - trouble.at <= _TROUBLE_S}
        here = {name for name, ago in self.workers().items() if ago <= WORKER_SEEN_S}
        if COLLECTOR in fresh:
            return fresh[COLLECTOR]
        return fresh[min(here)] if here and here <= fresh.keys() else None
