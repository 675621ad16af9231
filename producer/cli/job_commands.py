"""Commands that make jobs: layers of a model, plan of a job, rendering on this machine or on the farm."""

import json
import signal
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import rich_click as click
from rich.console import Console

from producer.cli.job_options import address, as_json, job_options, with_local_weights
from producer.jobs.local_store import DATA
from producer.planning.options import Options
from workers.contract.job import Kind

#: Kinds of layers.
_KINDS: tuple[Kind, ...] = get_args(Kind)

# Everything else is imported where a command runs: help and completion answer without Celery, boto3 and NumPy.


@click.command()
@click.argument("model", required=False)
@click.option("--network", metavar="MODULE:FUNCTION", help="Your own network in place of MODEL.")
@click.option(
    "--weights",
    help="Also count the filters that are dead by these weights: DEFAULT, a name, a file, or none (random). Without "
    "this option no weights are loaded.",
)
@click.option("--size", default="150", show_default=True, help="Pixels, or height x width as in 96x160.")
@click.option(
    "--kind", type=click.Choice([*_KINDS, "all"]), default="conv", show_default=True,
    help="conv: convolutions. block: sums and concatenations of branches. linear: linear layers. logits: classes. "
    "other: all other tensors.",
)  # fmt: skip
@as_json
def layers(model: str | None, network: str | None, weights: str | None, size: str, kind: str, json_: bool) -> None:
    """List the layers of MODEL with units, output, stride, receptive field and cost; without MODEL, list all models.

    MODEL may be timm:NAME for any network of timm, and a glob such as 'timm:*resnet*' lists those that match.
    """
    if network is not None:
        model = address(model, network)
    if model is None or (model.startswith("timm:") and any(letter in model for letter in "*?[")):
        from workers.networks import registry, timm_models

        if weights is not None:
            raise click.UsageError("--weights are those of one network: name it as MODEL, or with --network")
        names = timm_models.names(model) if model else registry.names()
        click.echo(json.dumps(names) if json_ else "\n".join(names))
        if model is None:
            click.echo("and those of timm, as timm:NAME; 'filterfarm layers timm:*resnet*' lists names", err=True)
        return
    from producer.cli import text
    from producer.planning.dead_units import with_dead_units
    from producer.planning.layers import accepted_sizes
    from producer.planning.layers import layers as list_layers
    from producer.planning.network_size import in_network_size, size_notes
    from producer.planning.recipe_builder import chosen_size

    options = with_local_weights(Options.make(model=model, weights=weights, size=size))
    for note in size_notes(options):
        click.echo(note, err=True)
    kinds = [one for one in _KINDS if kind in {one, "all"}]
    plans = list_layers(model, chosen_size(in_network_size(options)), kinds)
    if options.weights is not None:
        plans, notes = with_dead_units(plans, model, options.weights)
        for note in notes:
            click.echo(note, err=True)
    entries = [asdict(entry) for entry in plans]
    click.echo(json.dumps(entries) if json_ else text.layers(plans, dead=options.weights is not None))
    not_computed = [entry.name for entry in plans if entry.output_px is None]
    if not_computed and (sizes := accepted_sizes(model, not_computed[-1])):
        click.echo(f"{model} computes {not_computed[-1]} at --size {', '.join(map(str, sizes))}", err=True)


@click.command()
@job_options
@as_json
def plan(options: Options, json_: bool) -> None:
    """Show what a job would render and cost. Renders nothing."""
    _print_plan(options, json_)


@click.command()
@job_options
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), default=DATA, show_default=True,
    panel="This machine", help="Folder for pictures, queue and logs.",
)  # fmt: skip
@click.option(
    "--device", panel="This machine", help="auto, cpu, cuda, cuda:1 or mps; auto takes a GPU where there is one."
)
@click.option(
    "--batch",
    type=int,
    panel="This machine",
    help="Tiles rendered at once; 0 chooses the fastest that fit into memory.",
)
@click.option("--dry-run", is_flag=True, help="Print the plan and do nothing.", panel="Command")
@as_json
def run(options: Options, data: Path, device: str | None, batch: int | None, dry_run: bool, json_: bool) -> None:
    """Render a job on this machine with embedded servers. Ctrl-C stops it; the same command resumes."""
    if dry_run:
        _print_plan(options, json_)
        return
    from producer.jobs.session import read_settings
    from producer.jobs.status import require_complete
    from producer.local.run import run as run_job

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(stderr=True)
    outcome = run_job(options, data, read_settings(device=device, batch=batch, local=True), console)
    console.print(f"gallery: {outcome.folder / 'index.html'}\ngrids:", highlight=False, soft_wrap=True)
    grids = [str(path) for path in outcome.grids]
    result = {**outcome.status.as_json(), "folder": str(outcome.folder), "grids": grids}
    click.echo(json.dumps(result) if json_ else "\n".join(grids))
    require_complete(outcome.status)


@click.command()
@job_options
@click.option("--wait", is_flag=True, panel="Command", help="Watch the job until it has ended.")
@click.option("--dry-run", is_flag=True, help="Print the plan and do nothing.", panel="Command")
@as_json
def submit(options: Options, wait: bool, dry_run: bool, json_: bool) -> None:
    """Submit a job to the farm and print its id. Submitting it again resumes it."""
    if dry_run:
        _print_plan(options, json_)
        return
    from producer.jobs.progress import watch as watch_job
    from producer.jobs.session import open_session, read_settings
    from producer.jobs.status import job_status, require_complete
    from producer.jobs.submit import stored_form
    from producer.jobs.submit import submit as submit_job
    from producer.planning import job_builder as planning
    from workers.clients.broker_access import broker_errors

    farm = open_session(read_settings(), writes=True)
    job, checkpoint = planning.make_job(options)
    for note in planning.notes(options, job, checkpoint):
        click.echo(note, err=True)
    with broker_errors(farm.settings):
        job = stored_form(job, farm.store)
        submitted = submit_job(job, checkpoint, store=farm.store, ledger=farm.ledger, app=farm.app)
        console = Console(stderr=True)
        console.print(submitted.summary, highlight=False, soft_wrap=True)
        click.echo(json.dumps(asdict(submitted)) if json_ else submitted.job)
        if wait:
            require_complete(watch_job(lambda: job_status(job, farm.store, farm.ledger), console))


def _print_plan(options: Options, json_: bool) -> None:
    from producer.cli import text
    from producer.planning import job_builder as planning

    job, checkpoint = planning.make_job(options)
    for note in planning.notes(options, job, checkpoint):
        click.echo(note, err=True)
    plans = planning.as_rendered(job, options.model)
    click.echo(json.dumps(text.plan_as_json(job, plans)) if json_ else text.plan(job, plans))
