"""Claims on tiles, and the attempts of machines at them: one part of the ledger."""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

import redis

from workers.contract.keys import RedisKeys

# Lua scripts: one round trip instead of four. Idempotent per token, so a client may retry after a timeout.

#: Keys: the claim, done, failed, cancelled, starts, attempts. Arguments: token, milliseconds, the tile's number.
_CLAIM = """
local claim, number = KEYS[1], ARGV[3]
if redis.call("GETBIT", KEYS[2], number) == 1 or redis.call("HEXISTS", KEYS[3], number) == 1
   or redis.call("EXISTS", KEYS[4]) == 1 then
  return false
end
if redis.call("SET", claim, ARGV[1], "NX", "PX", ARGV[2]) or redis.call("GET", claim) == ARGV[1] then
  return {redis.call("HGET", KEYS[5], number) or "0", redis.call("HGET", KEYS[6], number) or ""}
end
return false
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


@dataclass(frozen=True, kw_only=True)
class Attempts:
    """Machines that could not render a tile."""

    #: time of the first of these attempts in Unix seconds; 0 if there was none
    since: float = 0.0
    #: machine -> the reason
    reasons: dict[str, str] = field(default_factory=dict)

    def with_reason(self, machine: str, reason: str) -> "Attempts":
        """These attempts and one more, of now."""
        return Attempts(since=self.since or time.time(), reasons={**self.reasons, machine: reason})

    def as_json(self) -> str:
        """The text that Redis holds."""
        return json.dumps({"since": self.since, "reasons": self.reasons})

    @classmethod
    def from_json(cls, text: bytes | str) -> "Attempts":
        """Read that text. Anything else, such as the count of an earlier version, is no attempt."""
        try:
            value = json.loads(text)
            return cls(since=float(value["since"]), reasons={str(k): str(v) for k, v in value["reasons"].items()})
        except (ValueError, TypeError, KeyError, AttributeError):
            return cls()


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim on a tile."""

    #: number of earlier attempts that have begun and not ended: their workers died, or lost Redis
    starts: int
    attempts: Attempts = field(default_factory=Attempts)


class TileClaims:
    """The claims of one farm. Raises redis.RedisError; thread-safe, as redis-py's client is."""

    def __init__(self, client: "redis.Redis", names: RedisKeys) -> None:
        self.client = client
        self.names = names
        self._claim = client.register_script(_CLAIM)
        self._end_claim = client.register_script(_END_CLAIM)

    def claim(self, job_id: str, number: int, token: str, seconds: float) -> Claim | None:
        """Claim a tile. Returns None if the claim was refused.

        It is refused if the tile is done or failed, its job is cancelled, or another token holds it. The claim expires
        after ``seconds``, which must be less than the visibility timeout: the claim of a worker that died has expired
        when its message is redelivered.
        """
        fields = (self.names.field(job_id, name) for name in ("done", "failed", "cancelled", "starts", "attempts"))
        found = self._claim([self.names.claim(job_id, number), *fields], [token, int(1000 * seconds), number])
        if found is None:
            return None
        starts, attempts = cast("tuple[bytes, bytes]", found)
        return Claim(starts=max(0, int(starts)), attempts=Attempts.from_json(attempts))

    def begin(self, job_id: str, numbers: Iterable[int]) -> None:
        """Count an attempt at these tiles, which are the batch on the device now."""
        pipe = self.client.pipeline(transaction=False)
        for number in numbers:
            pipe.hincrby(self.names.field(job_id, "starts"), str(number), 1)
        pipe.execute()

    def renew_claims(self, tiles: Iterable[tuple[str, int]], seconds: float) -> None:
        """Let the claims on these tiles, as (job id, number), expire ``seconds`` from now."""
        pipe = self.client.pipeline(transaction=False)
        for job_id, number in tiles:
            pipe.pexpire(self.names.claim(job_id, number), int(1000 * seconds))
        pipe.execute()

    def end_claim(self, job_id: str, number: int, token: str, *, stored: bool) -> None:
        """Release the claim on a tile if ``token`` still holds it. ``stored``: also mark the tile as done."""
        fields = (self.names.field(job_id, name) for name in ("done", "failed", "starts", "attempts"))
        self._end_claim([self.names.claim(job_id, number), *fields], [token, number, int(stored)])

    def undo_start(self, job_id: str, number: int) -> None:
        """Subtract an attempt that has begun and whose message is requeued: a preemption is no attempt."""
        self.client.hincrby(self.names.field(job_id, "starts"), str(number), -1)

    def record_attempts(self, job_id: str, number: int, attempts: Attempts) -> None:
        """Record which machines could not render a tile. Called by the holder of the claim on it."""
        self.client.hset(self.names.field(job_id, "attempts"), str(number), attempts.as_json())

    def mark_failed(self, job_id: str, number: int, reason: str) -> None:
        """Mark a tile as failed."""
        pipe = self.client.pipeline()
        pipe.hset(self.names.field(job_id, "failed"), str(number), reason)
        pipe.hdel(self.names.field(job_id, "starts"), str(number))
        pipe.execute()
