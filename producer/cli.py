"""The ``filterfarm`` command: parse, one call, print. Data goes to standard output, everything else to the error."""

import json
import logging
import os
import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console

from producer import plan as planning
from producer import report
from producer.fetch import fetch as fetch_job
from producer.options import job_options
from producer.plan import Options
from producer.progress import summary
from producer.progress import watch as watch_job
from producer.session import open_session, open_store, read_settings
from producer.status import job_status, load_job, readable_jobs, require_complete
from producer.submit import submit as submit_job
from producer.submit import write_status
from workers.contract.broker import broker_errors, connect, make_app
from workers.contract.errors import ExitCode, FilterfarmError
from workers.contract.ledger import Ledger
from workers.contract.storage import Store

_EPILOG = """\b
Examples:
  filterfarm run efficientnet_lite0 --layers 'conv_stem,conv_head' --filters 0-31
  filterfarm run vgg16 --layers block1_conv1 --filters 0-63 --size 64 --grid 8x8 --margin 5
  filterfarm layers vgg16
  filterfarm plan inception_v3 --size 299

\b
On a fleet, with FILTERFARM_BROKER_URL, FILTERFARM_BUCKET and the AWS variables set:
  filterfarm worker --all-gpus        on every GPU machine
  filterfarm collector                once, anywhere
  filterfarm submit vgg16 --wait      from your desk
  filterfarm fetch JOB pictures/
"""

as_json = click.option("--json", "json_", is_flag=True, help="Print JSON.")


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="filterfarm", prog_name="filterfarm")
def cli() -> None:
    """Render what every filter of every layer of a convolutional network looks for, on a laptop or a fleet."""


@cli.command()
@job_options
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), default=Path("filterfarm-data"), show_default=True,
    help="Folder for pictures, queue and logs.",
)  # fmt: skip
@click.option("--device", help="auto, cpu, cuda, cuda:1, mps; auto takes a GPU where there is one.")
@click.option("--batch", type=int, help="Tiles rendered at once; 0 leaves it to the device.")
@click.option("--dry-run", is_flag=True, help="Print the plan and do nothing.")
@as_json
def run(options: Options, data: Path, device: str | None, batch: int | None, dry_run: bool, json_: bool) -> None:
    """Render a job on this machine, with servers of its own. Ctrl-C stops it; the same command resumes."""
    if dry_run:
        _print_plan(options, json_)
        return
    from producer.run import run as run_job

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(stderr=True)
    outcome = run_job(options, data, read_settings(device=device, batch=batch), console)
    console.print(f"gallery: {outcome.folder / 'index.html'}\ngrids:", highlight=False, soft_wrap=True)
    grids = [str(path) for path in outcome.grids]
    result = {**outcome.status.as_json(), "folder": str(outcome.folder), "grids": grids}
    click.echo(json.dumps(result) if json_ else "\n".join(grids))
    require_complete(outcome.status)


@cli.command()
@click.argument("model", required=False)
@click.option("--size", "size_px", type=int, default=150, show_default=True, help="Pixels.")
@as_json
def layers(model: str | None, size_px: int, json_: bool) -> None:
    """List the layers of MODEL with aliases, filters, output size and cost; without MODEL, list all models."""
    if model is None:
        from workers import models

        names = models.names()
        click.echo(json.dumps(names) if json_ else "\n".join(names))
        return
    plans = planning.layers(model, size_px)
    click.echo(json.dumps([asdict(entry) for entry in plans]) if json_ else report.layers(plans, steps=1))


@cli.command()
@job_options
@as_json
def plan(options: Options, json_: bool) -> None:
    """Show what a job would render and what it would cost, and do nothing."""
    _print_plan(options, json_)


@cli.command()
@job_options
@click.option("--wait", is_flag=True, help="Watch the job until it has ended.")
@click.option("--dry-run", is_flag=True, help="Print the plan and do nothing.")
@as_json
def submit(options: Options, wait: bool, dry_run: bool, json_: bool) -> None:
    """Put a job into the farm and print its id. The same job again resumes."""
    if dry_run:
        _print_plan(options, json_)
        return
    farm = open_session(read_settings())
    job, checkpoint, _ = planning.make_job(options)
    if checkpoint is not None:
        from workers import weights

        weights.load(job.model, job.weights, checkpoint, seed=job.recipe.seed)
    with broker_errors(farm.settings):
        submitted = submit_job(job, checkpoint, store=farm.store, ledger=farm.ledger, app=farm.app)
        console = Console(stderr=True)
        console.print(report.submitted(submitted), highlight=False, soft_wrap=True)
        click.echo(json.dumps(asdict(submitted)) if json_ else submitted.job)
        if wait:
            require_complete(watch_job(lambda: job_status(job, farm.store, farm.ledger), console))


@cli.command()
@click.option("--device", help="auto, cpu, cuda, cuda:1, mps; auto takes a GPU where there is one.")
@click.option("--batch", type=int, help="Tiles rendered at once; 0 leaves it to the device.")
@click.option("--all-gpus", is_flag=True, help="One process for each GPU.")
def worker(device: str | None, batch: int | None, all_gpus: bool) -> None:
    """Render tiles until stopped. SIGTERM finishes the batch on the device and hands back the rest."""
    settings = read_settings(device=device, batch=batch)
    open_session(settings)
    arguments = ["--all-gpus"] if all_gpus else []
    # Becomes the supervisor: signals reach it directly.
    environ = {**os.environ, **settings.to_environ()}
    os.execve(sys.executable, [sys.executable, "-m", "workers.supervisor", *arguments], environ)  # noqa: S606


@cli.command()
def collector() -> None:
    """Assemble what is whole and enqueue again what was lost, until stopped. One is enough; two do no harm."""
    from producer.collector import Collector

    settings = read_settings()
    open_session(settings)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    store = Store(settings, patience_s=settings.storage_patience_s, stop=stop)
    ledger = Ledger(connect(settings, retries=3))
    Collector(settings, store=store, ledger=ledger, app=make_app(settings)).run(stop)


@cli.command()
@click.argument("job", required=False)
@as_json
def status(job: str | None, json_: bool) -> None:
    """Show how JOB stands and what it waits for; without JOB, list all jobs of the bucket."""
    farm = open_session(read_settings())
    store, ledger = farm.store, farm.ledger
    with broker_errors(farm.settings):
        if job is None:
            every = [job_status(frozen, store, ledger) for frozen in readable_jobs(store, Console(stderr=True))]
            click.echo(
                json.dumps([entry.as_json() for entry in every])
                if json_
                else "\n".join(summary(s, None) for s in every)
            )
            return
        one = job_status(load_job(job, store), store, ledger)
    click.echo(json.dumps(one.as_json()) if json_ else report.status(one))


@cli.command()
@click.argument("job")
def watch(job: str) -> None:
    """Show JOB's progress until it has ended."""
    farm = open_session(read_settings())
    frozen = load_job(job, farm.store)
    with broker_errors(farm.settings):
        require_complete(watch_job(lambda: job_status(frozen, farm.store, farm.ledger), Console(stderr=True)))


@cli.command()
@click.argument("job")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
def fetch(job: str, folder: Path) -> None:
    """Copy JOB's tiles, grids, records and gallery into DIR. What is there already stays."""
    store = open_store(read_settings())
    count = fetch_job(load_job(job, store), folder, store)
    click.echo(f"{count} files fetched", err=True)
    click.echo(str(folder))


@cli.command()
@click.argument("job")
def cancel(job: str) -> None:
    """Stop JOB: workers drop its tasks. Its tiles stay, and submitting it again resumes it."""
    farm = open_session(read_settings())
    frozen = load_job(job, farm.store)
    with broker_errors(farm.settings):
        farm.ledger.cancel(frozen.id)
        write_status(farm.store, frozen.id, "cancelled", reasons={})
    click.echo(f"cancelled {frozen.id}", err=True)


@cli.command()
@as_json
def doctor(json_: bool) -> None:
    """Say what is missing or unreachable, and the way out."""
    from producer.doctor import examine

    findings = examine(os.environ)
    click.echo(
        json.dumps([asdict(finding) for finding in findings]) if json_ else "\n".join(map(report.finding, findings))
    )
    worst = next((finding.code for finding in findings if finding.code), ExitCode.OK)
    sys.exit(int(worst))


def main() -> None:
    """Entry point: every expected error is one line on standard error and an exit code of its own."""
    sys.exit(_exit_code())


def _exit_code() -> int:
    try:
        cli.main(prog_name="filterfarm", standalone_mode=False)
    except FilterfarmError as error:
        click.echo(f"filterfarm: {error}", err=True)
        return int(error.exit_code)
    except click.ClickException as error:
        error.show()
        return int(ExitCode.USAGE)
    except (KeyboardInterrupt, click.Abort):
        click.echo("filterfarm: stopped; the same command resumes", err=True)
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has left, as head does; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return int(ExitCode.OK)


def _print_plan(options: Options, json_: bool) -> None:
    job, _, plans = planning.make_job(options)
    click.echo(json.dumps(report.plan_as_json(job, plans)) if json_ else report.plan(job, plans))


if __name__ == "__main__":
    main()
