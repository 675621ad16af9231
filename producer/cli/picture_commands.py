"""Commands about the pictures of a job: gallery, download and quality."""

import json
import threading
import webbrowser
from contextlib import nullcontext
from pathlib import Path

import rich_click as click
from rich.console import Console

from producer.cli.job_options import as_json, local_store, with_data

# Everything else is imported where a command runs: help and completion answer without Celery, boto3 and NumPy.


@click.command()
@click.argument("job", required=False)
@with_data
@click.option(
    "--port", type=click.IntRange(1, 65535), help="Port of the server on 127.0.0.1.  [default: one that is free]"
)
@click.option("--browser/--no-browser", default=True, help="Open the page in the browser, which is the default.")
def gallery(job: str | None, data: Path | None, port: int | None, browser: bool) -> None:
    """Show JOB's gallery in the browser until Ctrl-C. Without JOB, the list of all jobs.

    A small server on 127.0.0.1 reads from the bucket with your credentials, which the browser does not get.
    """
    from producer.gallery.server import check, serving
    from producer.jobs.session import open_store, read_settings
    from workers.clients.logs import log_to_stderr
    from workers.clients.signals import stop_on_signals

    settings = read_settings(local=data is not None)
    store = local_store(data, settings, job) or open_store(settings)
    if note := check(job, store):
        click.echo(note, err=True)
    log_to_stderr()
    stop = stop_on_signals()
    with serving(store, port or 0) as address:
        page = f"{address}{job}/index.html" if job else f"{address}index.html"
        click.echo(page)
        click.echo("Ctrl-C ends the server", err=True)
        if browser:
            # A browser of the terminal, such as lynx, would keep this thread.
            threading.Thread(target=webbrowser.open, args=(page,), daemon=True).start()
        stop.wait()


@click.command()
@click.argument("job")
@click.argument("target", metavar="DIR", type=click.Path(path_type=Path))
@with_data
@click.option("--zip", "zip_", is_flag=True, help="Write one file, DIR.zip, with all of it.")
def fetch(job: str, target: Path, data: Path | None, zip_: bool) -> None:
    """Copy JOB's tiles, sheets, records and gallery into DIR. Other files in DIR are kept.

    What DIR has already is not fetched again: size and time of each file are compared with the bucket's.
    """
    from producer.jobs import download
    from producer.jobs.inventory import load_job
    from producer.jobs.session import open_store, read_settings

    settings = read_settings(local=data is not None)
    store = local_store(data, settings, job) or open_store(settings)
    frozen = load_job(job, store)
    if zip_:
        if target.suffix != ".zip":
            target = target.with_name(f"{target.name}.zip") if target.name else Path(f"{target.resolve()}.zip")
        click.echo(f"{download.fetch_zip(frozen, target, store)} files fetched", err=True)
    else:
        fetched, unchanged = download.fetch(frozen, target, store)
        click.echo(f"{fetched} files fetched, {unchanged} unchanged", err=True)
    click.echo(str(target))


@click.command()
@click.argument("job")
@click.option("--against", metavar="JOB2", help="Another job of the same network, such as one with another seed.")
@click.option(
    "--read-by",
    metavar="MODEL[,MODEL...]",
    default="",
    help="Other networks of the same classes, with their default weights, that read a job of logits.",
)
@with_data
@click.option("--device", help="auto, cpu, cuda, cuda:1, mps; auto takes a GPU where there is one.")
@as_json
def quality(job: str, against: str | None, read_by: str, data: Path | None, device: str | None, json_: bool) -> None:
    """Measure the quality of JOB's pictures. The network evaluates each stored tile."""
    from producer.cli import quality_text
    from producer.jobs.inventory import load_job
    from producer.jobs.progress import can_redraw
    from producer.jobs.session import open_store, read_settings
    from producer.quality.quality import measure, require_allowed, require_whole

    settings = read_settings(device=device, local=data is not None)
    reader = local_store(data, settings, job, against) or open_store(settings)
    frozen = load_job(job, reader)
    other = load_job(against, reader) if against else None
    require_allowed(frozen, settings)
    from workers.networks.devices import available  # loads torch, which nothing before this needs

    device = settings.choose_device(available())
    console = Console(stderr=True)
    # In a notebook's cell a spinner would print a line for each of its turns.
    with console.status("reading tiles") if can_redraw(console) else nullcontext() as shown:
        layers = measure(
            frozen,
            reader,
            device=device,
            against=other,
            read_by=[name for part in read_by.split(",") if (name := part.strip())],
            done=lambda name: shown.update(f"{name} measured") if shown else None,
        )
    if json_:
        click.echo(json.dumps(quality_text.as_json(frozen, layers, other)))
    else:
        click.echo(quality_text.as_table(layers, against=other is not None))
    require_whole(frozen, layers)
