"""Commands of a farm: its processes, and the state of its jobs."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click
from rich.console import Console

from producer.cli.job_options import as_json, local_store, with_data
from producer.jobs.local_store import DATA
from workers.contract.errors import STORAGE_ERRORS, ExitCode

if TYPE_CHECKING:
    from producer.jobs.status import JobStatus
    from workers.contract.settings import Settings

# Everything else is imported where a command runs: help and completion answer without Celery, boto3 and NumPy.


@click.command()
@click.option("--device", help="auto, cpu, cuda, cuda:1, mps; auto takes a GPU where there is one.")
@click.option("--batch", type=int, help="Tiles rendered at once; 0 chooses the fastest that fit into memory.")
@click.option("--all-gpus", is_flag=True, help="One process for each GPU.")
def worker(device: str | None, batch: int | None, all_gpus: bool) -> None:
    """Render tiles until stopped. SIGTERM finishes the batch on the device and requeues the rest."""
    from producer.jobs.session import open_session, read_settings
    from workers.clients.broker_access import broker_errors
    from workers.clients.clock import check_clock
    from workers.clients.processes import python_module

    settings = read_settings(device=device, batch=batch)
    farm = open_session(settings, writes=True)
    with broker_errors(settings):
        check_clock(farm.ledger.client, settings.visibility_timeout_s)
    arguments = [farm.ledger.names.farm, *(["--all-gpus"] if all_gpus else [])]
    # This process becomes the supervisor, so that signals reach it directly.
    environ = {**os.environ, **settings.to_environ()}
    os.execve(sys.executable, python_module("workers.runtime.supervisor", *arguments), environ)  # noqa: S606


@click.command()
def collector() -> None:
    """Assemble complete layers and re-enqueue lost tiles, until stopped. One per farm is enough; two do no harm."""
    from producer.collector.collector import Collector
    from producer.jobs.session import open_session, read_settings
    from workers.clients.broker import connect
    from workers.clients.ledger import Ledger
    from workers.clients.logs import log_to_stderr
    from workers.clients.signals import stop_on_signals
    from workers.clients.storage import Store

    settings = read_settings()
    farm = open_session(settings, writes=True, founds=True)
    log_to_stderr()
    stop = stop_on_signals()
    store = Store(settings, retry_s=settings.storage_retry_s, stop=stop)
    ledger = Ledger(connect(settings, retries=3), farm.ledger.names)
    Collector(settings, store=store, ledger=ledger, app=farm.app).run(stop)


@click.command()
@click.argument("job", required=False)
@with_data
@as_json
def status(job: str | None, data: Path | None, json_: bool) -> None:
    """Show the state of JOB and what it waits for. Without JOB, list all jobs."""
    from producer.cli import text
    from producer.jobs.inventory import load_job, readable_jobs
    from producer.jobs.progress import summary
    from producer.jobs.session import open_session, read_settings
    from producer.jobs.status import job_status, local_status
    from workers.clients.broker_access import broker_errors

    settings = read_settings(local=data is not None)
    local = local_store(data, settings, job)
    if job is not None:
        one = local_status(load_job(job, local), local) if local else _status_of(job, settings)
        click.echo(json.dumps(one.as_json()) if json_ else text.status(one, queue=local is None))
        return
    if local is not None:
        every = [local_status(frozen, local) for frozen in readable_jobs(local, Console(stderr=True))]
    else:
        farm = open_session(settings)
        with broker_errors(settings):
            jobs = readable_jobs(farm.store, Console(stderr=True))
            every = [job_status(frozen, farm.store, farm.ledger) for frozen in jobs]
    if json_:
        click.echo(json.dumps([entry.as_json() for entry in every]))
    elif every:
        click.echo("\n".join(summary(entry, None) for entry in every))
    else:
        click.echo(f"no jobs in {data or DATA if local is not None else settings.bucket_url}", err=True)


def _status_of(job: str, settings: "Settings") -> "JobStatus":
    """State of one job. If the object store is unreachable, from the ledger alone."""
    from producer.jobs.inventory import load_job
    from producer.jobs.session import open_session
    from producer.jobs.status import job_status, status_without_storage
    from workers.clients.broker import connect
    from workers.clients.broker_access import broker_errors
    from workers.clients.identity import known_farm
    from workers.clients.ledger import Ledger
    from workers.contract.keys import RedisKeys

    with broker_errors(settings):
        try:
            farm = open_session(settings)
            return job_status(load_job(job, farm.store), farm.store, farm.ledger)
        except STORAGE_ERRORS as error:
            client = connect(settings, retries=1)
            farm_id = known_farm(client)
            known = farm_id and status_without_storage(job, Ledger(client, RedisKeys(farm_id)), error)
            if not known:
                raise
            return known


@click.command()
@click.argument("job")
@with_data
def watch(job: str, data: Path | None) -> None:
    """Show JOB's progress until it has ended."""
    from producer.jobs.inventory import load_job
    from producer.jobs.progress import watch as watch_job
    from producer.jobs.session import open_session, read_settings
    from producer.jobs.status import job_status, local_status, require_complete
    from workers.clients.broker_access import broker_errors

    settings = read_settings(local=data is not None)
    local = local_store(data, settings, job)
    if local is not None:
        stored = load_job(job, local)
        require_complete(watch_job(lambda: local_status(stored, local), Console(stderr=True)))
        return
    farm = open_session(settings)
    frozen = load_job(job, farm.store)
    with broker_errors(farm.settings):
        require_complete(watch_job(lambda: job_status(frozen, farm.store, farm.ledger), Console(stderr=True)))


@click.command()
@click.argument("job")
def cancel(job: str) -> None:
    """Stop JOB: workers drop its tasks. Its tiles are kept, and submitting it again resumes it."""
    from producer.jobs.inventory import load_job, write_status
    from producer.jobs.session import open_session, read_settings
    from workers.clients.broker_access import broker_errors

    farm = open_session(read_settings(), writes=True)
    frozen = load_job(job, farm.store)
    with broker_errors(farm.settings):
        farm.ledger.cancel(frozen.id)
        write_status(farm.store, frozen.id, "cancelled", reasons={})
    click.echo(f"cancelled {frozen.id}", err=True)


@click.command()
@as_json
def doctor(json_: bool) -> None:
    """Check packages, devices, bucket and broker, and say how to fix what fails."""
    from producer.cli import text
    from producer.cli.doctor import examine

    findings = examine(os.environ)
    click.echo(
        json.dumps([asdict(finding) for finding in findings]) if json_ else "\n".join(map(text.finding, findings))
    )
    worst = next((finding.code for finding in findings if finding.code), ExitCode.OK)
    sys.exit(int(worst))
