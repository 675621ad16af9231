"""How a job stands, and what it is waiting for: always from the ledger and the bucket, never from memory."""

from dataclasses import asdict, dataclass
from typing import Any

from producer.jobs.inventory import inventory, read_state, reasons_by_tile
from producer.jobs.local_store import LocalStore
from workers.clients.broker import Outstanding, outstanding
from workers.clients.ledger import Ledger
from workers.clients.presence import WORKER_SEEN_S, Presence, StorageErrorReport
from workers.clients.storage import Store
from workers.contract import keys
from workers.contract.errors import FilterfarmError, JobIncomplete, StorageDenied, StorageUnreachable
from workers.contract.job import Job


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
    #: running, finished, cancelled, stopped (by a run of another job in the same data folder), or failed: while the
    #: object store refuses the farm, which ``waiting_for`` tells; the job goes on once that is mended
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


def job_status(job: Job, store: Store, ledger: Ledger) -> JobStatus:
    """How the job stands now."""
    state = read_state(store, job.id)
    if ledger.is_synced(job.id):
        done, failed = ledger.done(job.id), ledger.failed(job.id)
    else:
        done, failed = inventory(job, store)
    farm = _Farm.look(job.id, ledger)
    trouble = farm.trouble if state == "running" else None
    return JobStatus(
        job=job.id,
        state="failed" if trouble and trouble.refused else state,
        planned=len(job.tiles),
        stored=len(done),
        failed=len(failed),
        queued=farm.messages.queued,
        in_flight=farm.messages.in_flight,
        requeued=ledger.requeued(job.id),
        workers=farm.workers,
        waiting_for=farm.waiting_for(len(job.tiles) - len(done) - len(failed)) if state == "running" else "",
        layers=_layers(job, done, failed),
        reasons=reasons_by_tile(job, failed),
    )


def local_status(job: Job, store: LocalStore) -> JobStatus:
    """How a job of ``filterfarm run`` stands, from the files in its data folder alone.

    The counts of messages and workers are 0: only the run that is at work knows them. A job that is unfinished while
    no run is at work in the folder is "stopped".
    """
    done, failed = inventory(job, store)
    state = read_state(store, job.id)
    return JobStatus(
        job=job.id,
        state="stopped" if state == "running" and not store.is_running() else state,
        planned=len(job.tiles),
        stored=len(done),
        failed=len(failed),
        queued=0,
        in_flight=0,
        requeued=0,
        workers=0,
        waiting_for="",
        layers=_layers(job, done, failed),
        reasons=reasons_by_tile(job, failed),
    )


def _layers(job: Job, done: set[int], failed: dict[int, str]) -> tuple[LayerStatus, ...]:
    numbers = {layer.name: {job.numbers[layer.name, filter_] for filter_ in layer.selected} for layer in job.layers}
    return tuple(
        LayerStatus(layer=name, planned=len(own), stored=len(own & done), failed=len(own & failed.keys()))
        for name, own in numbers.items()
    )


def status_without_storage(job_id: str, ledger: Ledger, error: FilterfarmError) -> JobStatus | None:
    """What the ledger alone says of a job while the store answers ``error``; None where it knows no such open job."""
    planned = ledger.planned(job_id) if job_id in ledger.jobs() else None
    if planned is None:
        return None
    failed, farm = ledger.failed(job_id), _Farm.look(job_id, ledger)
    return JobStatus(
        job=job_id,
        state="running" if isinstance(error, StorageUnreachable) else "failed",
        planned=planned,
        stored=len(ledger.done(job_id)),
        failed=len(failed),
        queued=farm.messages.queued,
        in_flight=farm.messages.in_flight,
        requeued=ledger.requeued(job_id),
        workers=farm.workers,
        waiting_for=f"storage: {error}",
        layers=(),
        reasons={f"tile {number}": reason for number, reason in sorted(failed.items())},
    )


def require_complete(status: JobStatus) -> None:
    """Raise JobIncomplete where a job that has ended lacks tiles, StorageDenied where the store stopped it."""
    if status.state in {"cancelled", "stopped"}:
        raise JobIncomplete(f"{status.job} was {status.state}; submit it again to resume")
    if status.state == "failed":
        raise StorageDenied(f"{status.job} has stopped: {status.waiting_for}; it goes on once that is mended")
    if status.failed:
        tile, reason = next(iter(status.reasons.items()))
        raise JobIncomplete(
            f"{status.failed} of {status.planned} tiles of {status.job} failed, such as {tile}: {reason}; "
            "submit it again to try them once more"
        )


@dataclass(frozen=True, kw_only=True)
class _Farm:
    """What a job depends on."""

    messages: Outstanding
    #: worker name -> seconds since it was seen
    seen: dict[str, float]
    has_collector: bool
    trouble: StorageErrorReport | None

    @classmethod
    def look(cls, job_id: str, ledger: Ledger) -> "_Farm":
        presence = Presence(ledger.client)
        return cls(
            messages=outstanding(ledger.client, [job_id])[job_id],
            seen=presence.workers(),
            has_collector=bool(ledger.client.exists(keys.COLLECTOR_LOCK)),
            trouble=presence.storage_error(),
        )

    @property
    def workers(self) -> int:
        return sum(ago <= WORKER_SEEN_S for ago in self.seen.values())

    def waiting_for(self, missing: int) -> str:
        """Without what a running job that lacks so many tiles cannot go on; empty if it can."""
        if self.trouble is not None:
            return f"storage: {self.trouble.reason}"
        if not self.has_collector and not missing:
            return "a collector, to assemble the sheets; start one with 'filterfarm collector'"
        if not self.has_collector and self.messages.total == 0:
            return "a collector, to enqueue what was lost; start one with 'filterfarm collector'"
        if missing and not self.workers:
            ago = f"seen for {min(self.seen.values()):.0f} s" if self.seen else "seen"
            return f"a worker: none has been {ago}; start one with 'filterfarm worker'"
        return ""
