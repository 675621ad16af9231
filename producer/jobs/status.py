"""Status of a job, read from the ledger and the bucket at each call."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from producer.jobs.inventory import inventory, read_problems, read_state, reasons_by_tile
from producer.jobs.local_store import LocalStore
from workers.clients.broker import Outstanding, outstanding
from workers.clients.ledger import Ledger
from workers.clients.presence import WORKER_SEEN_S, Presence, StorageErrorReport, machine_of
from workers.clients.storage import Store
from workers.contract.errors import FilterfarmError, JobIncomplete, StorageDenied, StorageUnreachable
from workers.contract.job import Job

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class LayerStatus:
    """Tile counts of one layer."""

    layer: str
    planned: int
    stored: int
    failed: int


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """Status of one job at one moment; counts are in tiles unless noted."""

    job: str
    #: running; finished; cancelled; stopped: unfinished, and no run is at work in its data folder; failed: the object
    #: store refuses the farm's requests for the reason in ``waiting_for``, and the job resumes once that is fixed
    state: str
    planned: int
    stored: int
    failed: int
    #: messages of this job in its queue, and with workers
    queued: int
    in_flight: int
    #: re-enqueued tiles, because their message was lost
    requeued: int
    workers: int
    #: machine -> why it does not render
    troubles: dict[str, str]
    #: what a running job needs to make progress; empty while it makes progress
    waiting_for: str
    layers: tuple[LayerStatus, ...]
    #: layer/filter of failed tiles -> reason
    reasons: dict[str, str]
    #: layer -> why it has no sheet
    problems: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


def job_status(job: Job, store: Store, ledger: Ledger) -> JobStatus:
    """Status of a job on the farm. Raises object store errors and redis.RedisError."""
    state = read_state(store, job.id)
    if ledger.is_synced(job.id):
        done, failed = ledger.done(job.id, len(job.tiles)), ledger.failed(job.id)
    else:
        done, failed = inventory(job, store)
    farm = _Farm.read(job.id, ledger)
    storage_error = farm.storage_error if state == "running" else None
    return JobStatus(
        job=job.id,
        state="failed" if storage_error and storage_error.refused else state,
        planned=len(job.tiles),
        stored=int(done.sum()),
        failed=len(failed),
        queued=farm.messages.queued,
        in_flight=farm.messages.in_flight,
        requeued=ledger.requeued(job.id),
        workers=farm.workers,
        troubles=farm.troubles,
        waiting_for=farm.waiting_for(len(job.tiles) - int(done.sum()) - len(failed)) if state == "running" else "",
        layers=_layers(job, done, failed),
        reasons=reasons_by_tile(job, failed),
        problems=read_problems(store, job.id) if state == "finished" else {},
    )


def local_status(job: Job, store: LocalStore) -> JobStatus:
    """Status of a job of ``filterfarm run``, from the files in its data folder.

    Counts of messages and workers are 0: they are known to the running process only. An unfinished job is "stopped" if
    no run holds the folder's lock.
    """
    done, failed = inventory(job, store)
    state = read_state(store, job.id)
    return JobStatus(
        job=job.id,
        state="stopped" if state == "running" and not store.is_running() else state,
        planned=len(job.tiles),
        stored=int(done.sum()),
        failed=len(failed),
        queued=0,
        in_flight=0,
        requeued=0,
        workers=0,
        troubles={},
        waiting_for="",
        layers=_layers(job, done, failed),
        reasons=reasons_by_tile(job, failed),
        problems=read_problems(store, job.id) if state == "finished" else {},
    )


def _layers(job: Job, done: "NDArray[np.bool_]", failed: dict[int, str]) -> tuple[LayerStatus, ...]:
    lost = Counter(job.tiles[number][0] for number in failed)
    return tuple(
        LayerStatus(
            layer=layer.name,
            planned=len(numbers),
            stored=int(done[numbers.start : numbers.stop].sum()),
            failed=lost[layer.name],
        )
        for layer, numbers in ((layer, job.tiles.of_layer(layer)) for layer in job.layers)
    )


def status_without_storage(job_id: str, ledger: Ledger, error: FilterfarmError) -> JobStatus | None:
    """Status from the ledger alone, if the object store raised ``error``; None if the ledger has no such open job."""
    planned = ledger.planned(job_id) if job_id in ledger.jobs() else None
    if planned is None:
        return None
    failed, farm = ledger.failed(job_id), _Farm.read(job_id, ledger)
    return JobStatus(
        job=job_id,
        state="running" if isinstance(error, StorageUnreachable) else "failed",
        planned=planned,
        stored=ledger.counts(job_id)[0],
        failed=len(failed),
        queued=farm.messages.queued,
        in_flight=farm.messages.in_flight,
        requeued=ledger.requeued(job_id),
        workers=farm.workers,
        troubles=farm.troubles,
        waiting_for=f"object store error: {error}",
        layers=(),
        reasons={f"tile {number}": reason for number, reason in sorted(failed.items())},
    )


def require_complete(status: JobStatus) -> None:
    """Raise JobIncomplete if an ended job lacks tiles, StorageDenied if the object store refuses the farm."""
    if status.state in {"cancelled", "stopped"}:
        raise JobIncomplete(f"{status.job} was {status.state}; submit it again to resume")
    if status.state == "failed":
        raise StorageDenied(f"{status.job} is paused: {status.waiting_for}; it resumes once that is fixed")
    if status.problems:
        layer, reason = next(iter(status.problems.items()))
        raise JobIncomplete(f"{status.job} has no sheet of {layer}: {reason}; its tiles are stored")
    if status.failed:
        tile, reason = next(iter(status.reasons.items()))
        raise JobIncomplete(
            f"{status.failed} of {status.planned} tiles of {status.job} failed, such as {tile}: {reason}; "
            "submit it again to retry them"
        )


@dataclass(frozen=True, kw_only=True)
class _Farm:
    """State of the processes and servers that a job depends on."""

    messages: Outstanding
    #: worker name -> seconds since its last heartbeat
    heartbeats: dict[str, float]
    has_collector: bool
    storage_error: StorageErrorReport | None
    #: machine -> why it does not render
    troubles: dict[str, str]

    @classmethod
    def read(cls, job_id: str, ledger: Ledger) -> "_Farm":
        presence = Presence(ledger.client, ledger.names)
        return cls(
            messages=outstanding(ledger.client, ledger.names, [job_id])[job_id],
            heartbeats=presence.workers(),
            has_collector=bool(ledger.client.exists(ledger.names.collector)),
            storage_error=presence.storage_error(),
            troubles=presence.troubles(job_id),
        )

    @property
    def workers(self) -> int:
        return sum(ago <= WORKER_SEEN_S for ago in self.heartbeats.values())

    def waiting_for(self, missing: int) -> str:
        """What a running job with ``missing`` tiles needs to make progress; empty if nothing."""
        if self.storage_error is not None:
            return f"object store error: {self.storage_error.reason}"
        if not self.has_collector and not missing:
            return "a collector, to assemble the sheets; start one with 'filterfarm collector'"
        if not self.has_collector and self.messages.total == 0:
            return "a collector, to re-enqueue lost tiles; start one with 'filterfarm collector'"
        running = {machine_of(name) for name, ago in self.heartbeats.items() if ago <= WORKER_SEEN_S}
        if missing and self.troubles and running <= self.troubles.keys():
            machine, reason = next(iter(self.troubles.items()))
            return f"a worker that can render: on {machine}, {reason}"
        if missing and not self.workers:
            ago = f"seen for {min(self.heartbeats.values()):.0f} s" if self.heartbeats else "seen"
            return f"a worker: none has been {ago}; start one with 'filterfarm worker'"
        return ""
