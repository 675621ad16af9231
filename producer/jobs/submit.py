"""Submission: one message for each tile of the job that is not stored.

Submitting a job again resumes it. While each of its missing tiles has a message, only failed tiles are enqueued.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from celery import Celery

from producer.jobs.inventory import Reader, inventory, load_job, write_status
from workers.clients.broker import enqueue, outstanding
from workers.clients.ledger import Ledger
from workers.clients.storage import Store
from workers.contract import keys
from workers.contract.errors import BadOption, CorruptJob, NoJob, WeightsUnreadable
from workers.contract.job import Job, Task, file_sha256

#: Messages enqueued between two renewals of the submission's mark in Redis.
_CHUNK = 2000


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
            text += f", {self.stored} stored already"
        queued = self.planned - self.stored - self.enqueued
        if queued:
            text += f", {queued} on their way"
        return f"{text}, {self.enqueued} enqueued"


def submit(job: Job, checkpoint: Path | None, *, store: Store, ledger: Ledger, app: Celery) -> Submitted:
    """Store the job and enqueue its missing tiles. Raises storage errors and redis.RedisError.

    Redis is written to first, so that a Redis that refuses writes leaves no job behind. The job's objects follow, then
    the messages: the collector completes a submission that ends in between.
    """
    ledger.begin_submission(job.id)
    _store_checkpoint(job, checkpoint, store)
    _store_job(job, store)
    stored, failed = inventory(job, store)
    for number in failed:
        layer, filter_ = job.tiles[number]
        store.delete(keys.failed(job.id, layer, filter_))
        # The layer's sheet shows a gap there, and is assembled again once its records are gone.
        store.delete(keys.records(job.id, layer))
    resumed = _is_enqueued(job, ledger)
    ledger.begin_submission(job.id)
    if resumed:
        # Failed tiles have no message. The collector finds other tiles that have lost theirs.
        ledger.reopen(job.id, set(failed))
        wanted = set(failed)
    else:
        ledger.sync(job, stored, {})
        wanted = set(range(len(job.tiles))) - stored
    ledger.register(job.id)
    write_status(store, job.id, "running", reasons={})
    count = enqueue_tiles(job, wanted, ledger, app)
    ledger.end_submission(job.id)
    return Submitted(job=job.id, planned=len(job.tiles), stored=len(stored), enqueued=count)


def enqueue_tiles(job: Job, numbers: set[int], ledger: Ledger, app: Celery) -> int:
    """Enqueue one message for each tile number, in the job's order; returns how many."""

    def tasks() -> Iterator[Task]:
        for count, number in enumerate(sorted(numbers)):
            if count % _CHUNK == 0:
                ledger.begin_submission(job.id)
            layer, filter_ = job.tiles[number]
            yield Task(job=job.id, layer=layer, filter=filter_)

    return enqueue(app, tasks())


def _is_enqueued(job: Job, ledger: Ledger) -> bool:
    """True if there are as many messages as missing tiles; not after an interrupted submission or lost messages."""
    if job.id not in ledger.jobs() or not ledger.is_synced(job.id):
        return False
    # Messages are counted before tiles: a tile that ends in between lowers the number of missing tiles only.
    total = outstanding(ledger.client, [job.id])[job.id].total
    missing = len(job.tiles) - len(ledger.done(job.id) | ledger.failed(job.id).keys())
    return 0 < missing <= total


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
            if file_sha256(checkpoint) != job.weights.sha256:
                raise WeightsUnreadable(f"weights {str(checkpoint)!r} changed during submission; submit once more")
            store.put_file(key, checkpoint)
        except OSError as error:
            raise WeightsUnreadable(f"cannot read weights {str(checkpoint)!r}: {error.strerror}") from error
