"""One job on this machine from options to sheets: what ``filterfarm run`` does between parsing and printing."""

from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from producer import plan as planning
from producer import report
from producer.local import Farm
from producer.options import Options
from producer.progress import watch
from producer.session import PATIENCE_S
from producer.status import JobStatus, job_status, readable_jobs
from producer.submit import read_state, submit, write_status
from workers.contract import keys
from workers.contract.broker import broker_errors, connect, make_app
from workers.contract.job import Job
from workers.contract.ledger import Ledger
from workers.contract.settings import Settings
from workers.contract.storage import Store


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended, and where its pictures are."""

    status: JobStatus
    #: the job's folder in the bucket
    folder: Path
    grids: tuple[Path, ...]


def run(options: Options, data: Path, settings: Settings, console: Console) -> Outcome:
    """Render a job with servers, a worker and a collector of its own; raises the errors of everything on the way."""
    from workers import weights
    from workers.devices import available

    job, checkpoint = planning.make_job(options)
    # Now, because here the worker is this machine: better one line at once than a failure for each tile.
    settings.choose_device(available())
    weights.load(job.model, job.weights, checkpoint, seed=job.recipe.seed)
    with Farm(data, settings) as farm, broker_errors(farm.settings):
        store, ledger = Store(farm.settings, patience_s=PATIENCE_S), Ledger(connect(farm.settings, retries=3))
        _set_aside(job, store, console)
        submitted = submit(job, checkpoint, store=store, ledger=ledger, app=make_app(farm.settings))
        console.print(report.submitted(submitted), highlight=False, soft_wrap=True)

        def look() -> JobStatus:
            farm.tend()
            status = job_status(job, store, ledger)
            # Nobody has to start anything: the farm tends its own processes.
            return replace(status, waiting_for="its own processes to start") if status.waiting_for else status

        return Outcome(
            status=watch(look, console),
            folder=farm.bucket_folder / job.id,
            grids=tuple(farm.bucket_folder / keys.grid(job.id, layer.name) for layer in job.layers),
        )


def _set_aside(job: Job, store: Store, console: Console) -> None:
    """Stop the jobs that an earlier run left unfinished in this data folder: this run is for one job."""
    for other in readable_jobs(store, console):
        if other.id != job.id and read_state(store, other.id) == "running":
            write_status(store, other.id, "stopped", reasons={})
