"""What has been done of each job, in Redis: bits and sets only, so doing anything twice changes nothing.

The ledger is a cache of the bucket. Where it was lost, the collector fills it again from what is stored.
"""

import uuid
from collections.abc import Iterable
from typing import cast

import redis

from workers.contract import keys
from workers.contract.job import Job

#: Whoever enqueues a job says so at least this often; the collector waits that long before it mends the queue.
SUBMITTING_S = 30

# Scripts, because every round trip costs a worker as much as all of its own code around a tile. A client that had no
# answer sends one again: the same token then has what it had. What has begun counts at least itself, though a Redis
# that lost its data meanwhile may count fewer.

#: Keys: the claim, done, failed, cancelled, starts. Arguments: token, milliseconds, the tile's number.
_CLAIM = """
local claim, number = KEYS[1], ARGV[3]
if redis.call("GETBIT", KEYS[2], number) == 1 or redis.call("HEXISTS", KEYS[3], number) == 1
   or redis.call("EXISTS", KEYS[4]) == 1 then
  return 0
end
if redis.call("SET", claim, ARGV[1], "NX", "PX", ARGV[2]) then
  return math.max(1, redis.call("HINCRBY", KEYS[5], number, 1))
end
if redis.call("GET", claim) == ARGV[1] then
  return math.max(1, tonumber(redis.call("HGET", KEYS[5], number) or 1))
end
return 0
"""

#: Keys: the claim, done, failed, starts, attempts. Arguments: token, the tile's number, 1 where it is stored.
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
        """Put the job before the collector, uncancelled, as a submission of its own."""
        pipe = self.client.pipeline()
        pipe.sadd(keys.JOBS, job_id)
        pipe.set(keys.redis(job_id, "submission"), uuid.uuid4().hex)
        pipe.delete(keys.redis(job_id, "cancelled"))
        pipe.execute()

    def submission(self, job_id: str) -> str:
        """Which submission of the job is the latest; another one may have taken sheets back."""
        return _text(cast("bytes | None", self.client.get(keys.redis(job_id, "submission"))) or b"")

    def unregister(self, job_id: str) -> None:
        """Take a job that has ended off the list, with what messages it may have left."""
        pipe = self.client.pipeline()
        pipe.srem(keys.JOBS, job_id)
        pipe.delete(keys.queue(job_id))
        pipe.execute()

    def jobs(self) -> set[str]:
        """Ids of the jobs that workers serve and the collector looks after."""
        return {_text(member) for member in self.client.smembers(keys.JOBS)}

    def begin_submission(self, job_id: str) -> None:
        """Say that the job is being enqueued right now; holds for SUBMITTING_S seconds."""
        self.client.set(keys.redis(job_id, "submitting"), 1, ex=SUBMITTING_S)

    def end_submission(self, job_id: str) -> None:
        """Say that all of the job has been enqueued."""
        self.client.delete(keys.redis(job_id, "submitting"))

    def is_submitting(self, job_id: str) -> bool:
        """Whether somebody is enqueueing the job."""
        return bool(self.client.exists(keys.redis(job_id, "submitting")))

    def cancel(self, job_id: str) -> None:
        """Delete the job's messages, make workers drop those they hold, and the collector forget it."""
        pipe = self.client.pipeline()
        pipe.set(keys.redis(job_id, "cancelled"), 1)
        pipe.srem(keys.JOBS, job_id)
        pipe.delete(keys.queue(job_id))
        pipe.execute()

    def is_cancelled(self, job_id: str) -> bool:
        """Whether the job has been cancelled and not submitted again since."""
        return bool(self.client.exists(keys.redis(job_id, "cancelled")))

    # Tiles

    def claim(self, job_id: str, number: int, token: str, seconds: float) -> int:
        """Claim a tile and note that work on it begins: how many beginnings have had no end, this one included.

        0 where the tile is done or failed, its job cancelled, or somebody else has it. ``token`` has it for so many
        seconds. A message that was sent twice is dropped by whoever comes second. Should the first end without a word,
        its claim ends before its message is delivered again.
        """
        fields = (keys.redis(job_id, name) for name in ("done", "failed", "cancelled", "starts"))
        found = self._claim([keys.claim(job_id, number), *fields], [token, int(1000 * seconds), number])
        return int(cast("int", found))

    def renew_claims(self, tiles: Iterable[tuple[str, int]], seconds: float) -> None:
        """Make the claims on these tiles last so many seconds from now."""
        pipe = self.client.pipeline(transaction=False)
        for job_id, number in tiles:
            pipe.pexpire(keys.claim(job_id, number), int(1000 * seconds))
        pipe.execute()

    def end_claim(self, job_id: str, number: int, token: str, *, stored: bool) -> None:
        """Let others have the tile, where ``token`` still has it; and note that it is stored, if it is."""
        fields = (keys.redis(job_id, name) for name in ("done", "failed", "starts", "attempts"))
        self._end_claim([keys.claim(job_id, number), *fields], [token, number, int(stored)])

    def undo_start(self, job_id: str, number: int) -> None:
        """Note that work on a tile was handed back: a preemption is no attempt."""
        self.client.hincrby(keys.redis(job_id, "starts"), str(number), -1)

    def count_attempt(self, job_id: str, number: int) -> int:
        """Note an error that may be this machine's fault rather than the tile's; returns how many there were."""
        return int(self.client.hincrby(keys.redis(job_id, "attempts"), str(number), 1))

    def mark_failed(self, job_id: str, number: int, reason: str) -> None:
        """Note that the filter has no tile, and why."""
        pipe = self.client.pipeline()
        pipe.hset(keys.redis(job_id, "failed"), str(number), reason)
        pipe.hdel(keys.redis(job_id, "starts"), str(number))
        pipe.execute()

    def reopen(self, job_id: str, numbers: set[int]) -> None:
        """Forget all about some tiles, so that they are rendered again."""
        if not numbers:
            return
        pipe = self.client.pipeline()
        for number in numbers:
            pipe.setbit(keys.redis(job_id, "done"), number, 0)
        for field in ("failed", "starts", "attempts"):
            pipe.hdel(keys.redis(job_id, field), *map(str, numbers))
        pipe.execute()

    def done(self, job_id: str) -> set[int]:
        """Numbers of all stored tiles."""
        return _bits(cast("bytes | None", self.client.get(keys.redis(job_id, "done"))))

    def failed(self, job_id: str) -> dict[int, str]:
        """Tile number -> why the filter has no tile."""
        entries = self.client.hgetall(keys.redis(job_id, "failed"))
        return {int(number): _text(reason) for number, reason in entries.items()}

    def record_requeued(self, job_id: str, numbers: set[int]) -> None:
        """Note that the collector enqueued these tiles again."""
        pipe = self.client.pipeline()
        for number in numbers:
            pipe.setbit(keys.redis(job_id, "requeued"), number, 1)
        pipe.execute()

    def requeued(self, job_id: str) -> int:
        """How many tiles the collector has enqueued again."""
        return int(self.client.bitcount(keys.redis(job_id, "requeued")))

    # Rebuilding from the bucket

    def is_synced(self, job_id: str) -> bool:
        """Whether the job's bits are those of this Redis's lifetime, and not merely empty after a loss."""
        return self.planned(job_id) is not None

    def planned(self, job_id: str) -> int | None:
        """How many tiles the job has; None where the ledger has never been told."""
        count = cast("bytes | None", self.client.get(keys.redis(job_id, "synced")))
        return None if count is None else int(count)

    def sync(self, job: Job, done: set[int], failed: dict[int, str]) -> None:
        """Make the ledger say what the bucket holds."""
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
