"""Submission: messages for the tiles of the job that are not stored, the first few thousand at once.

Submitting a job again resumes it. If it is open, only failed tiles get a message again.
"""

from dataclasses import dataclass
from pathlib import Path

from celery import Celery

from producer.jobs.feeding import feed, send
from producer.jobs.inventory import Reader, inventory, load_job, write_status
from workers.clients.ledger import Ledger
from workers.clients.storage import MAX_OBJECT_BYTES, Store
from workers.contract import keys
from workers.contract.errors import BadOption, CorruptJob, NoJob, WeightsUnreadable
from workers.contract.job import Job, file_sha256


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """Result of a submission, in tiles."""

    job: str
    planned: int
    stored: int
    enqueued: int

    @property
    def summary(self) -> str:
        """One line for people."""
        text = f"{self.job}: {self.planned:,} tile{'' if self.planned == 1 else 's'}"
        if self.stored:
            text += f", {self.stored:,} stored already"
        others = self.planned - self.stored - self.enqueued
        text += f", {self.enqueued:,} enqueued"
        return f"{text}, {others:,} more on their way" if others else text


def submit(job: Job, checkpoint: Path | None, *, store: Store, ledger: Ledger, app: Celery) -> Submitted:
    """Store the job and enqueue its missing tiles. Raises storage errors and redis.RedisError.

    Redis is written to first, so that a Redis that refuses writes leaves no job behind. The job's objects follow, then
    the messages: the collector completes a submission that ends in between.
    """
    ledger.begin_submission(job.id)
    _store_checkpoint(job, checkpoint, store)
    _store_job(job, store)
    before = ledger.done_bits(job.id)
    stored, failed = inventory(job, store)
    for number in failed:
        layer, filter_ = job.tiles[number]
        store.delete(keys.failed(job.id, layer, filter_))
        # The layer's sheet shows a gap there, and is assembled again once sheet and records are gone.
        store.delete(keys.grid(job.id, layer))
        store.delete(keys.records(job.id, layer))
    is_open = job.id in ledger.jobs()
    ledger.begin_submission(job.id)
    ledger.sync(job, stored, {}, before)
    sent_before = ledger.fed(job.id) if is_open else 0
    ledger.set_fed(job.id, sent_before)
    ledger.register(job.id)
    write_status(store, job.id, "running", reasons={})
    # Failed tiles have no message. The collector finds other tiles that have lost theirs.
    count = send(job, sorted(number for number in failed if number < sent_before), ledger, app)
    count += feed(job, ledger, app, open_jobs=len(ledger.jobs()))
    ledger.end_submission(job.id)
    return Submitted(job=job.id, planned=len(job.tiles), stored=int(stored.sum()), enqueued=count)


def stored_form(job: Job, store: Reader) -> Job:
    """The job under the id that the bucket has it under, so that a submission resumes what 0.1.0 began.

    Raises BadOption if the bucket has other content under its id.
    """
    for job_id in (job.id, job.first_id):
        try:
            stored = load_job(job_id, store)
        except (NoJob, CorruptJob):
            continue
        if stored.has_content_of(job):
            return stored
        if job_id == job.id:
            raise BadOption(f"the bucket has a job {job_id} of other options; choose another --seed")
    return job


def _store_job(job: Job, store: Store) -> None:
    """Write ``job.json`` unless the bucket has a readable one: the job stays as first submitted."""
    try:
        load_job(job.id, store)
    except (NoJob, CorruptJob):
        store.put(keys.job(job.id), job.to_json(), "application/json")


def _store_checkpoint(job: Job, checkpoint: Path | None, store: Store) -> None:
    if checkpoint is None or job.weights.sha256 is None:
        return
    key = keys.weights(job.id, job.weights.sha256)
    if not store.exists(key):
        try:
            if checkpoint.stat().st_size > MAX_OBJECT_BYTES:
                raise WeightsUnreadable(
                    f"weights {str(checkpoint)!r} have more than {MAX_OBJECT_BYTES >> 30} GiB, which is what an object "
                    "store takes in one request; store them in half precision"
                )
            if file_sha256(checkpoint) != job.weights.sha256:
                raise WeightsUnreadable(f"weights {str(checkpoint)!r} changed during submission; submit once more")
            store.put_file(key, checkpoint)
        except OSError as error:
            raise WeightsUnreadable(f"cannot read weights {str(checkpoint)!r}: {error.strerror}") from error
