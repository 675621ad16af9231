"""``filterfarm run``: one job on this machine, from options to contact sheets."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from producer.jobs.inventory import read_state, readable_jobs, write_status
from producer.jobs.progress import watch
from producer.jobs.session import RETRY_S
from producer.jobs.status import JobStatus, job_status
from producer.jobs.submit import stored_form, submit
from producer.local.farm import Farm
from producer.local.programs import rclone_program, valkey_program
from producer.planning import job_builder as planning
from producer.planning.options import Options
from workers.clients.broker import connect, make_app
from workers.clients.broker_access import broker_errors
from workers.clients.ledger import Ledger
from workers.clients.presence import Presence
from workers.clients.storage import Store
from workers.contract import keys
from workers.contract.job import Job
from workers.contract.settings import Settings

#: Less free space than this counts as a full disk: a tile takes up to 1 MiB.
_LITTLE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Last status of a run, and the paths of its images."""

    status: JobStatus
    #: the job's folder in the bucket
    folder: Path
    grids: tuple[Path, ...]


def run(options: Options, data: Path, settings: Settings, console: Console) -> Outcome:
    """Render a job with a local farm in the folder ``data``, and show its progress on ``console``.

    Raises the errors of planning, of loading weights, of the local servers, the object store and the broker.
    """
    # The cheapest checks come first: a missing server is reported before weights are downloaded.
    valkey_program()
    rclone_program()
    from workers.networks import weights
    from workers.networks.devices import available

    job, checkpoint = planning.make_job(options)
    # The worker is this machine: errors of device and weights are raised now, not once per tile.
    settings.choose_device(available())
    for note in planning.notes(options, job, checkpoint):
        console.print(note, highlight=False, soft_wrap=True, markup=False)
    if checkpoint is None:
        weights.load(job.address, job.weights, None, seed=job.recipe.seed)
    with Farm(data, _allowing(settings, job)) as farm, broker_errors(farm.settings):
        store, ledger = Store(farm.settings, retry_s=RETRY_S), Ledger(connect(farm.settings, retries=3), farm.names)
        job = stored_form(job, store)
        _stop_others(job, store, console)
        submitted = submit(job, checkpoint, store=store, ledger=ledger, app=make_app(farm.settings, farm.names))
        console.print(submitted.summary, highlight=False, soft_wrap=True)
        folder = farm.bucket_folder / job.id
        console.print(f"gallery: {folder / 'index.html'}, fills while it runs", highlight=False, soft_wrap=True)

        def look() -> JobStatus:
            farm.restart_dead()
            status = job_status(job, store, ledger)
            if status.state == "running" and (free := shutil.disk_usage(farm.bucket_folder).free) < _LITTLE_BYTES:
                full = f"space on the disk of {farm.bucket_folder}, which has {free >> 10} KiB left"
                return replace(status, waiting_for=full)
            error = Presence(ledger.client, ledger.names).storage_error()
            if error is not None:
                return replace(status, waiting_for=f"the object store of {farm.bucket_folder}: {error.reason}")
            # The farm starts its own processes: advice to start one would mislead.
            return replace(status, waiting_for="its own processes to start") if status.waiting_for else status

        return Outcome(
            status=watch(look, console),
            folder=folder,
            grids=tuple(farm.bucket_folder / keys.grid(job.id, layer.name) for layer in job.layers),
        )


def _allowing(settings: Settings, job: Job) -> Settings:
    """The settings of a worker that may import the job's own network, which the person has just named."""
    if job.network is None or job.network.source != "factory":
        return settings
    module = job.network.name.partition(":")[0]
    return replace(settings, allow_factories=",".join(filter(None, (settings.allow_factories, module))))


def _stop_others(job: Job, store: Store, console: Console) -> None:
    """Mark unfinished jobs of earlier runs in this data folder as stopped, so that only ``job`` is rendered."""
    for other in readable_jobs(store, console):
        if other.id != job.id and read_state(store, other.id) == "running":
            write_status(store, other.id, "stopped", reasons={})
