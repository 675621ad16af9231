"""How a job stands, and what it is waiting for: always from the ledger and the bucket, never from memory."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from rich.console import Console

from producer.submit import inventory, read_state
from workers.contract import keys
from workers.contract.broker import outstanding
from workers.contract.errors import CorruptJob, JobIncomplete, NoJob
from workers.contract.job import Job, decode
from workers.contract.ledger import WORKER_SEEN_S, Ledger
from workers.contract.storage import Store


@dataclass(frozen=True, kw_only=True)
class LayerStatus:
    """Tiles of one layer."""

    layer: str
    planned: int
    stored: int
    failed: int


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """One job at one moment."""

    job: str
    #: running, finished, cancelled, or stopped (by a run of another job in the same data folder)
    state: str
    planned: int
    stored: int
    failed: int
    #: messages of this job that wait for a worker, and those that are with one
    queued: int
    in_flight: int
    #: tiles that were enqueued again because their message was lost
    requeued: int
    workers: int
    #: what has to happen for the job to go on; empty while it does
    waiting_for: str
    layers: tuple[LayerStatus, ...]
    #: layer/filter -> why it has no tile
    reasons: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


class Reader(Protocol):
    """What a job is read from: a Store, or a Folder of one."""

    def get(self, key: str, *, max_bytes: int = ...) -> bytes | None:
        """The object's bytes, or None where there is none."""


def load_job(job_id: str, store: Reader) -> Job:
    """The frozen job; raises NoJob and CorruptJob."""
    data = store.get(keys.job(job_id)) if keys.is_name(job_id) else None
    if data is None:
        raise NoJob(f"no job {job_id[:100]!r} in the bucket; 'filterfarm status' lists all")
    job = decode(Job, data, f"job {job_id}")
    if job.id != job_id:
        raise CorruptJob(f"job {job_id} holds the content of {job.id}")
    return job


def readable_jobs(store: Store, console: Console) -> Iterator[Job]:
    """Every job of the bucket; one that does not read is said on ``console``, and does not hide the others."""
    for name in store.folders():
        try:
            yield load_job(name, store)
        except CorruptJob as error:
            console.print(f"filterfarm: {error}", highlight=False, soft_wrap=True, markup=False)
        except NoJob:
            continue


def job_status(job: Job, store: Store, ledger: Ledger) -> JobStatus:
    """How the job stands now."""
    state = read_state(store, job.id)
    if ledger.is_synced(job.id):
        done, failed = ledger.done(job.id), ledger.failed(job.id)
    else:
        done, failed = inventory(job, store)
    layers = []
    for layer in job.layers:
        numbers = {job.numbers[layer.name, filter_] for filter_ in layer.selected}
        layers.append(
            LayerStatus(
                layer=layer.name,
                planned=len(numbers),
                stored=len(numbers & done),
                failed=len(numbers & failed.keys()),
            )
        )
    seen = ledger.workers()
    messages = outstanding(ledger.client, [job.id])[job.id]
    return JobStatus(
        job=job.id,
        state=state,
        planned=len(job.tiles),
        stored=len(done),
        failed=len(failed),
        queued=messages.queued,
        in_flight=messages.in_flight,
        requeued=ledger.requeued(job.id),
        workers=sum(ago <= WORKER_SEEN_S for ago in seen.values()),
        waiting_for=_waiting_for(job, state, len(done) + len(failed), messages.total, seen, ledger),
        layers=tuple(layers),
        reasons={"{}/{}".format(*job.tiles[number]): reason for number, reason in sorted(failed.items())},
    )


def require_complete(status: JobStatus) -> None:
    """Raise JobIncomplete where a job that has ended lacks tiles."""
    if status.state in {"cancelled", "stopped"}:
        raise JobIncomplete(f"{status.job} was {status.state}; submit it again to resume")
    if status.failed:
        tile, reason = next(iter(status.reasons.items()))
        raise JobIncomplete(
            f"{status.failed} of {status.planned} tiles of {status.job} failed, such as {tile}: {reason}; "
            "submit it again to try them once more"
        )


def _waiting_for(job: Job, state: str, ended: int, messages: int, seen: dict[str, float], ledger: Ledger) -> str:
    if state != "running":
        return ""
    if not ledger.client.exists(keys.COLLECTOR_LOCK):
        if ended == len(job.tiles):
            return "a collector, to assemble the sheets; start one with 'filterfarm collector'"
        if messages == 0:
            return "a collector, to enqueue what was lost; start one with 'filterfarm collector'"
    if ended < len(job.tiles) and not any(ago <= WORKER_SEEN_S for ago in seen.values()):
        if not seen:
            return "a worker: none has been seen; start one with 'filterfarm worker'"
        return f"a worker: none has been seen for {min(seen.values()):.0f} s; start one with 'filterfarm worker'"
    return ""
