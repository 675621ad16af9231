"""Putting a job into the farm: what is planned minus what is stored becomes one task each.

Submitting the same job again is a resume. It enqueues nothing while the job's messages are still on their way, and
tries failed filters once more.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from celery import Celery

from producer.jobs.local_store import LocalStore
from workers.clients.broker import enqueue, outstanding
from workers.clients.ledger import Ledger
from workers.clients.storage import Store
from workers.contract import keys
from workers.contract.errors import CorruptJob, WeightsUnreadable
from workers.contract.job import Job, Task, decode

#: Messages between two signs that the submission is still under way.
_CHUNK = 2000


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """What a submission found and did, in tiles."""

    job: str
    planned: int
    stored: int
    enqueued: int


def submit(job: Job, checkpoint: Path | None, *, store: Store, ledger: Ledger, app: Celery) -> Submitted:
    """Store the job, and enqueue what is missing of it. Raises storage errors and redis.RedisError.

    The job's objects go first, once Redis has shown that it takes something in: a submission that is cut off leaves
    either no job at all, or one that the collector completes.
    """
    ledger.begin_submission(job.id)
    _store_checkpoint(job, checkpoint, store)
    _store_job(job, store)
    stored, failed = inventory(job, store)
    for number in failed:
        layer, filter_ = job.tiles[number]
        store.delete(keys.failed(job.id, layer, filter_))
        # Its layer's sheet shows a gap, and is made anew.
        store.delete(keys.records(job.id, layer))
    running = _is_on_its_way(job, ledger)
    ledger.begin_submission(job.id)
    if running:
        # Its messages are on their way; what of them is lost, the collector finds. Failed filters have none.
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


def inventory(job: Job, store: Store | LocalStore) -> tuple[set[int], dict[int, str]]:
    """What the bucket holds of a job: numbers of stored tiles, and tile number -> reason of failed ones."""
    stored = {number for key in store.list(f"{job.id}/tiles/") if (number := _number(job, key)) is not None}
    failed: dict[int, str] = {}
    for key in store.list(f"{job.id}/failed/"):
        number = _number(job, key)
        if number is not None and number not in stored:
            failed[number] = _reason(store.get(key, max_bytes=65_536))
    return stored, failed


def enqueue_tiles(job: Job, numbers: set[int], ledger: Ledger, app: Celery) -> int:
    """One message for each tile, in the job's order."""

    def tasks() -> Iterator[Task]:
        for count, number in enumerate(sorted(numbers)):
            if count % _CHUNK == 0:
                ledger.begin_submission(job.id)
            layer, filter_ = job.tiles[number]
            yield Task(job=job.id, layer=layer, filter=filter_)

    return enqueue(app, tasks())


def write_status(store: Store, job_id: str, state: str, *, reasons: dict[str, str]) -> None:
    """Note in the bucket how the job stands; ``reasons`` says for failed filters, as layer/filter, why."""
    body = {"job": job_id, "state": state, "at": time.time(), "failed": reasons}
    store.put(keys.status(job_id), json.dumps(body, indent=1).encode(), "application/json")


def read_state(store: Store | LocalStore, job_id: str) -> str:
    """running, finished, cancelled or stopped, as the bucket says; "running" where it says nothing readable."""
    data = store.get(keys.status(job_id), max_bytes=1 << 24)
    try:
        state = json.loads(data or b"{}")["state"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "running"
    return str(state) if str(state) in {"finished", "cancelled", "stopped"} else "running"


def _is_on_its_way(job: Job, ledger: Ledger) -> bool:
    """Whether what the job lacks has a message each: not where a submission was cut off, or messages were lost."""
    if job.id not in ledger.jobs() or not ledger.is_synced(job.id):
        return False
    # Counted before the tiles: what ends in between makes fewer tiles missing, not fewer messages.
    total = outstanding(ledger.client, [job.id])[job.id].total
    missing = len(job.tiles) - len(ledger.done(job.id) | ledger.failed(job.id).keys())
    return 0 < missing <= total


def _store_job(job: Job, store: Store) -> None:
    """The job as it was first submitted stays; only one that does not read is replaced."""
    data = store.get(keys.job(job.id))
    if data is not None:
        try:
            decode(Job, data, f"job {job.id}")
        except CorruptJob:
            data = None
    if data is None:
        store.put(keys.job(job.id), job.to_json(), "application/json")


def _store_checkpoint(job: Job, checkpoint: Path | None, store: Store) -> None:
    if checkpoint is None or job.weights.sha256 is None:
        return
    key = keys.weights(job.id, job.weights.sha256)
    if not store.exists(key):
        try:
            data = checkpoint.read_bytes()
        except OSError as error:
            raise WeightsUnreadable(f"cannot read weights {str(checkpoint)!r}: {error.strerror}") from error
        store.put(key, data, "application/octet-stream")


def _number(job: Job, key: str) -> int | None:
    parsed = keys.parse_filter_key(key)
    return job.numbers.get(parsed) if parsed else None


def _reason(data: bytes | None) -> str:
    try:
        return str(json.loads(data or b"{}")["reason"])
    except (ValueError, KeyError, TypeError):
        return "unknown"
