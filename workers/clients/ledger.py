"""The state of each job in Redis: which tiles are done, failed or claimed.

The ledger is a cache of the bucket: after a loss, the collector fills it again from the stored objects. Its operations
are idempotent, so that a client may repeat one after a timeout.
"""

import uuid
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, cast

import numpy as np
import redis

from workers.clients.claims import TileClaims
from workers.contract.job import Job
from workers.contract.keys import is_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: A submission renews its mark within this many seconds. The collector re-enqueues no tile of a job with a mark.
SUBMITTING_S = 30

#: Seconds for which the state of a job that has ended is kept.
KEPT_S = 7 * 86400

#: The fields that are kept for so long.
_KEPT = ("done", "failed", "attempts", "starts", "requeued", "submission", "synced", "cancelled")


class Ledger(TileClaims):
    """The jobs' state in Redis, and the claims on their tiles. Raises redis.RedisError; thread-safe, as redis-py is."""

    # Jobs

    def register(self, job_id: str) -> None:
        """Add the job to the open jobs under a new submission id, and withdraw a cancellation."""
        pipe = self.client.pipeline()
        pipe.sadd(self.names.jobs, job_id)
        pipe.set(self.names.field(job_id, "submission"), uuid.uuid4().hex)
        pipe.unlink(self.names.field(job_id, "cancelled"))
        for name in _KEPT:
            pipe.persist(self.names.field(job_id, name))
        pipe.execute()

    def submission(self, job_id: str) -> str:
        """Id of the latest submission of the job, which may have deleted records; empty if there is none."""
        return _text(cast("bytes | None", self.client.get(self.names.field(job_id, "submission"))) or b"")

    def unregister(self, job_id: str) -> None:
        """Remove a job that has ended from the open jobs, and delete its remaining messages.

        Its state expires after KEPT_S seconds; it can be read from the bucket again.
        """
        pipe = self.client.pipeline()
        self._close(pipe, job_id)
        pipe.execute()

    def _close(self, pipe: "redis.client.Pipeline", job_id: str) -> None:
        pipe.srem(self.names.jobs, job_id)
        pipe.unlink(self.names.queue(job_id), self.names.field(job_id, "fed"))
        for name in _KEPT:
            pipe.expire(self.names.field(job_id, name), KEPT_S)

    def jobs(self) -> set[str]:
        """Ids of the open jobs."""
        members = map(_text, self.client.smembers(self.names.jobs))
        return {job_id for job_id in members if is_name(job_id)}

    def begin_submission(self, job_id: str) -> None:
        """Mark the job as being enqueued, for SUBMITTING_S seconds."""
        self.client.set(self.names.field(job_id, "submitting"), 1, ex=SUBMITTING_S)

    def end_submission(self, job_id: str) -> None:
        """Remove that mark: all messages are enqueued."""
        self.client.unlink(self.names.field(job_id, "submitting"))

    def is_submitting(self, job_id: str) -> bool:
        """True if the job is being enqueued."""
        return bool(self.client.exists(self.names.field(job_id, "submitting")))

    def cancel(self, job_id: str) -> None:
        """Close the job and delete its messages. Workers drop those that they hold."""
        pipe = self.client.pipeline()
        pipe.set(self.names.field(job_id, "cancelled"), 1)
        self._close(pipe, job_id)
        pipe.execute()

    def is_cancelled(self, job_id: str) -> bool:
        """True if the job was cancelled and has not been submitted again."""
        return bool(self.client.exists(self.names.field(job_id, "cancelled")))

    # Tiles

    def reopen(self, job_id: str, numbers: set[int]) -> None:
        """Mark tiles as neither done nor failed, so that they are rendered again; they need new messages."""
        if not numbers:
            return
        pipe = self.client.pipeline()
        for number in numbers:
            pipe.setbit(self.names.field(job_id, "done"), number, 0)
        for name in ("failed", "starts", "attempts"):
            pipe.hdel(self.names.field(job_id, name), *map(str, numbers))
        pipe.execute()

    def done(self, job_id: str, count: int) -> "NDArray[np.bool_]":
        """Whether each of the job's ``count`` tiles is stored."""
        return _unpack(self.done_bits(job_id), count)

    def done_bits(self, job_id: str) -> bytes:
        """The same as Redis holds it: one bit per tile, as far as any is set."""
        return cast("bytes | None", self.client.get(self.names.field(job_id, "done"))) or b""

    def counts(self, job_id: str) -> tuple[int, int]:
        """Numbers of stored and of failed tiles."""
        pipe = self.client.pipeline(transaction=False)
        pipe.bitcount(self.names.field(job_id, "done"))
        pipe.hlen(self.names.field(job_id, "failed"))
        stored, failed = pipe.execute()
        return int(stored), int(failed)

    def failed(self, job_id: str) -> dict[int, str]:
        """Tile number -> reason, of all failed tiles."""
        entries = self.client.hgetall(self.names.field(job_id, "failed"))
        return {int(number): _text(reason) for number, reason in entries.items() if _text(number).isdigit()}

    def fed(self, job_id: str) -> int:
        """Number of tiles, from the first on, for which a message has been sent."""
        return int(cast("bytes | None", self.client.get(self.names.field(job_id, "fed"))) or 0)

    def set_fed(self, job_id: str, count: int) -> None:
        """Record that number. Called by a submission, or by the collector if there is none."""
        self.client.set(self.names.field(job_id, "fed"), count)

    def claimed(self, job_id: str, numbers: Iterable[int]) -> set[int]:
        """Those of these tiles that a worker holds."""
        numbers = list(numbers)
        pipe = self.client.pipeline(transaction=False)
        for number in numbers:
            pipe.exists(self.names.claim(job_id, number))
        return {number for number, held in zip(numbers, pipe.execute(), strict=True) if held}

    def record_requeued(self, job_id: str, numbers: Iterable[int]) -> None:
        """Record that the collector re-enqueued these tiles."""
        pipe = self.client.pipeline()
        for number in numbers:
            pipe.setbit(self.names.field(job_id, "requeued"), number, 1)
        pipe.execute()

    def requeued(self, job_id: str) -> int:
        """Number of tiles that the collector has re-enqueued."""
        return int(self.client.bitcount(self.names.field(job_id, "requeued")))

    # Rebuilding from the bucket

    def is_synced(self, job_id: str) -> bool:
        """True if the job's state was read from the bucket since Redis last lost its data."""
        return self.planned(job_id) is not None

    def planned(self, job_id: str) -> int | None:
        """Number of tiles of the job, or None if it is not synced."""
        count = cast("bytes | None", self.client.get(self.names.field(job_id, "synced")))
        return None if count is None else int(count)

    def sync(self, job: Job, stored: "NDArray[np.bool_]", failed: Mapping[int, str], before: bytes) -> None:
        """Replace the job's state by the bucket's, but for what was stored while the bucket was read.

        ``stored``: whether each tile was in the bucket. ``failed``: number -> reason. ``before``: ``done_bits`` right
        before the bucket was read.
        """
        bits = np.packbits(stored).tobytes()
        done, listed, old = (self.names.field(job.id, name) for name in ("done", "done:listed", "done:before"))
        pipe = self.client.pipeline(transaction=True)
        pipe.set(listed, bits)
        pipe.set(old, before[: len(bits)].ljust(len(bits), b"\0"))
        # done = listed or (done and not before)
        pipe.bitop("NOT", old, old)
        pipe.bitop("AND", old, done, old)
        pipe.bitop("OR", done, listed, old)
        pipe.unlink(listed, old)
        pipe.unlink(*(self.names.field(job.id, name) for name in ("failed", "attempts", "starts")))
        if failed:
            pipe.hset(self.names.field(job.id, "failed"), mapping={str(n): reason for n, reason in failed.items()})
        pipe.set(self.names.field(job.id, "synced"), len(job.tiles))
        pipe.execute()


def _unpack(bits: bytes, count: int) -> "NDArray[np.bool_]":
    """One bool per tile. Redis counts bits from the most significant one of the first byte, as NumPy does."""
    held = np.unpackbits(np.frombuffer(bits, np.uint8), count=min(count, 8 * len(bits))).astype(bool)
    return held if len(held) == count else np.concatenate([held, np.zeros(count - len(held), bool)])


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
