"""The state of each job in Redis: which tiles are done, failed or claimed.

The ledger is a cache of the bucket: after a loss, the collector fills it again from the stored objects. Its operations
are idempotent, so that a client may repeat one after a timeout.
"""

import uuid
from collections.abc import Iterable
from typing import cast

import redis

from workers.clients.claims import Attempts, Claim
from workers.contract import keys
from workers.contract.job import Job

#: A submission renews its mark within this many seconds. The collector re-enqueues no tile of a job with a mark.
SUBMITTING_S = 30

# Lua scripts: one round trip instead of four. Idempotent per token, so a client may retry after a timeout. The number
# of attempts is at least 1, because a Redis that lost its data may have counted fewer.

#: Keys: the claim, done, failed, cancelled, starts, attempts. Arguments: token, milliseconds, the tile's number.
_CLAIM = """
local claim, number, starts = KEYS[1], ARGV[3], 0
if redis.call("GETBIT", KEYS[2], number) == 1 or redis.call("HEXISTS", KEYS[3], number) == 1
   or redis.call("EXISTS", KEYS[4]) == 1 then
  return {0, ""}
end
if redis.call("SET", claim, ARGV[1], "NX", "PX", ARGV[2]) then
  starts = math.max(1, redis.call("HINCRBY", KEYS[5], number, 1))
elseif redis.call("GET", claim) == ARGV[1] then
  starts = math.max(1, tonumber(redis.call("HGET", KEYS[5], number) or 1))
end
return {starts, redis.call("HGET", KEYS[6], number) or ""}
"""

#: Keys: the claim, done, failed, starts, attempts. Arguments: token, the tile's number, 1 if it is stored.
_END_CLAIM = """
local number = ARGV[2]
if ARGV[3] == "1" then
  redis.call("SETBIT", KEYS[2], number, 1)
  for place = 3, 5 do
    redis.call("HDEL", KEYS[place], number)
  end
end
if redis.call("GET", KEYS[1]) == ARGV[1] then
  redis.call("DEL", KEYS[1])
end
"""


class Ledger:
    """The jobs' state in Redis. Raises redis.RedisError; thread-safe, as redis-py's client is."""

    def __init__(self, client: "redis.Redis") -> None:
        self.client = client
        self._claim = client.register_script(_CLAIM)
        self._end_claim = client.register_script(_END_CLAIM)

    # Jobs

    def register(self, job_id: str) -> None:
        """Add the job to the open jobs under a new submission id, and withdraw a cancellation."""
        pipe = self.client.pipeline()
        pipe.sadd(keys.JOBS, job_id)
        pipe.set(keys.redis(job_id, "submission"), uuid.uuid4().hex)
        pipe.delete(keys.redis(job_id, "cancelled"))
        pipe.execute()

    def submission(self, job_id: str) -> str:
        """Id of the latest submission of the job, which may have deleted records; empty if there is none."""
        return _text(cast("bytes | None", self.client.get(keys.redis(job_id, "submission"))) or b"")

    def unregister(self, job_id: str) -> None:
        """Remove a job that has ended from the open jobs, and delete its remaining messages."""
        pipe = self.client.pipeline()
        pipe.srem(keys.JOBS, job_id)
        pipe.delete(keys.queue(job_id))
        pipe.execute()

    def jobs(self) -> set[str]:
        """Ids of the open jobs."""
        return {_text(member) for member in self.client.smembers(keys.JOBS)}

    def begin_submission(self, job_id: str) -> None:
        """Mark the job as being enqueued, for SUBMITTING_S seconds."""
        self.client.set(keys.redis(job_id, "submitting"), 1, ex=SUBMITTING_S)

    def end_submission(self, job_id: str) -> None:
        """Remove that mark: all messages are enqueued."""
        self.client.delete(keys.redis(job_id, "submitting"))

    def is_submitting(self, job_id: str) -> bool:
        """True if the job is being enqueued."""
        return bool(self.client.exists(keys.redis(job_id, "submitting")))

    def cancel(self, job_id: str) -> None:
        """Close the job and delete its messages. Workers drop those that they hold."""
        pipe = self.client.pipeline()
        pipe.set(keys.redis(job_id, "cancelled"), 1)
        pipe.srem(keys.JOBS, job_id)
        pipe.delete(keys.queue(job_id))
        pipe.execute()

    def is_cancelled(self, job_id: str) -> bool:
        """True if the job was cancelled and has not been submitted again."""
        return bool(self.client.exists(keys.redis(job_id, "cancelled")))

    # Tiles

    def claim(self, job_id: str, number: int, token: str, seconds: float) -> Claim | None:
        """Claim a tile. Returns None if the claim was refused.

        It is refused if the tile is done or failed, its job is cancelled, or another token holds it. The claim expires
        after ``seconds``, which must be less than the visibility timeout: the claim of a worker that died has expired
        when its message is redelivered.
        """
        fields = (keys.redis(job_id, name) for name in ("done", "failed", "cancelled", "starts", "attempts"))
        found = self._claim([keys.claim(job_id, number), *fields], [token, int(1000 * seconds), number])
        starts, attempts = cast("tuple[int, bytes]", found)
        return Claim(starts=int(starts), attempts=Attempts.from_json(attempts)) if starts else None

    def renew_claims(self, tiles: Iterable[tuple[str, int]], seconds: float) -> None:
        """Let the claims on these tiles, as (job id, number), expire ``seconds`` from now."""
        pipe = self.client.pipeline(transaction=False)
        for job_id, number in tiles:
            pipe.pexpire(keys.claim(job_id, number), int(1000 * seconds))
        pipe.execute()

    def end_claim(self, job_id: str, number: int, token: str, *, stored: bool) -> None:
        """Release the claim on a tile if ``token`` still holds it. ``stored``: also mark the tile as done."""
        fields = (keys.redis(job_id, name) for name in ("done", "failed", "starts", "attempts"))
        self._end_claim([keys.claim(job_id, number), *fields], [token, number, int(stored)])

    def undo_start(self, job_id: str, number: int) -> None:
        """Subtract an attempt whose message was requeued: a preemption is no attempt."""
        self.client.hincrby(keys.redis(job_id, "starts"), str(number), -1)

    def record_attempts(self, job_id: str, number: int, attempts: Attempts) -> None:
        """Record which machines could not render a tile. Called by the holder of the claim on it."""
        self.client.hset(keys.redis(job_id, "attempts"), str(number), attempts.as_json())

    def mark_failed(self, job_id: str, number: int, reason: str) -> None:
        """Mark a tile as failed."""
        pipe = self.client.pipeline()
        pipe.hset(keys.redis(job_id, "failed"), str(number), reason)
        pipe.hdel(keys.redis(job_id, "starts"), str(number))
        pipe.execute()

    def reopen(self, job_id: str, numbers: set[int]) -> None:
        """Mark tiles as neither done nor failed, so that they are rendered again."""
        if not numbers:
            return
        pipe = self.client.pipeline()
        for number in numbers:
            pipe.setbit(keys.redis(job_id, "done"), number, 0)
        for name in ("failed", "starts", "attempts"):
            pipe.hdel(keys.redis(job_id, name), *map(str, numbers))
        pipe.execute()

    def done(self, job_id: str) -> set[int]:
        """Numbers of all stored tiles."""
        return _bits(cast("bytes | None", self.client.get(keys.redis(job_id, "done"))))

    def failed(self, job_id: str) -> dict[int, str]:
        """Tile number -> reason, of all failed tiles."""
        entries = self.client.hgetall(keys.redis(job_id, "failed"))
        return {int(number): _text(reason) for number, reason in entries.items()}

    def record_requeued(self, job_id: str, numbers: set[int]) -> None:
        """Record that the collector re-enqueued these tiles."""
        pipe = self.client.pipeline()
        for number in numbers:
            pipe.setbit(keys.redis(job_id, "requeued"), number, 1)
        pipe.execute()

    def requeued(self, job_id: str) -> int:
        """Number of tiles that the collector has re-enqueued."""
        return int(self.client.bitcount(keys.redis(job_id, "requeued")))

    # Rebuilding from the bucket

    def is_synced(self, job_id: str) -> bool:
        """True if the job's state was read from the bucket since Redis last lost its data."""
        return self.planned(job_id) is not None

    def planned(self, job_id: str) -> int | None:
        """Number of tiles of the job, or None if it is not synced."""
        count = cast("bytes | None", self.client.get(keys.redis(job_id, "synced")))
        return None if count is None else int(count)

    def sync(self, job: Job, done: set[int], failed: dict[int, str]) -> None:
        """Replace the job's state by the bucket's: numbers of stored tiles, and number -> reason of failed ones."""
        pipe = self.client.pipeline()
        pipe.delete(*(keys.redis(job.id, field) for field in ("done", "failed", "attempts", "starts")))
        for number in done:
            pipe.setbit(keys.redis(job.id, "done"), number, 1)
        for number, reason in failed.items():
            pipe.hset(keys.redis(job.id, "failed"), str(number), reason)
        pipe.set(keys.redis(job.id, "synced"), len(job.tiles))
        pipe.execute()


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _bits(data: bytes | None) -> set[int]:
    """Numbers of the set bits; Redis counts them from the most significant bit of the first byte."""
    return {8 * place + bit for place, byte in enumerate(data or b"") for bit in range(8) if byte & (128 >> bit)}
