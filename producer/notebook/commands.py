"""``run`` and ``submit``: the commands of the same names, for Python."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from producer.jobs.inventory import load_job
from producer.jobs.local_store import DATA, LocalStore
from producer.jobs.remote_weights import local_weights
from producer.jobs.session import open_session, read_settings
from producer.jobs.status import require_complete
from producer.jobs.submit import stored_form
from producer.jobs.submit import submit as submit_job
from producer.local.run import run as run_job
from producer.notebook.job import Job
from producer.planning import job_builder as planning
from producer.planning.options import Options
from workers.clients.broker_access import broker_errors
from workers.contract import recipe

#: Options that the command line takes as text.
_TEXT = {option.key for option in recipe.options().values() if option.metavar or option.choices} | {
    "weights",
    "layers",
    "filters",
    "preset",
    "grid",
}


def run(
    model: str, *, data: str | Path = DATA, device: str | None = None, batch: int | None = None, **options: Any
) -> Job:
    """Render a job on this machine, as ``filterfarm run`` does, and return it.

    ``data``: folder for pictures, queue and logs. ``device``, ``batch`` and ``options`` are the options of
    ``filterfarm run``, with underscores for dashes: ``run("vgg16", layers="block5_conv1", filters="0-15", size=128)``.
    Lists stand for text with commas. The same call resumes a run that was interrupted. One run at a time in a process.

    Raises the errors of the command: BadOption (also for an option that does not exist), UnknownModel, UnknownLayer,
    BadFilters, BadSettings, those of weights and local servers, and JobIncomplete if tiles failed.
    """
    chosen = _options(model, options)
    settings = read_settings(device=device, batch=batch, local=True)
    console = Console(stderr=True)
    try:
        outcome = run_job(chosen, Path(data), settings, console)
    except KeyboardInterrupt:
        console.print("stopped; the same call resumes")
        raise
    require_complete(outcome.status)
    store = LocalStore(Path(data))
    return Job(load_job(outcome.status.job, store), store, settings)


def submit(model: str, **options: Any) -> Job:
    """Submit a job to the farm that the environment names, as ``filterfarm submit`` does, and return it at once.

    ``options`` are those of ``filterfarm submit``, as for ``run``. Submitting a job again resumes it. Raises the errors
    of the command: those of ``run`` about options and weights, and those of object store and broker.
    """
    chosen = _options(model, options)
    console = Console(stderr=True)
    farm = open_session(read_settings(), writes=True)
    frozen, checkpoint = planning.make_job(chosen)
    for note in planning.notes(chosen, frozen, checkpoint):
        console.print(note, highlight=False, soft_wrap=True, markup=False)
    with broker_errors(farm.settings):
        frozen = stored_form(frozen, farm.store)
        submitted = submit_job(frozen, checkpoint, store=farm.store, ledger=farm.ledger, app=farm.app)
    console.print(submitted.summary, highlight=False, soft_wrap=True)
    return Job(frozen, farm.store, farm.settings)


def _options(model: str, values: dict[str, Any]) -> Options:
    """The options as the command line passes them, which takes ``filters=[3, 5]`` as the text ``3,5``."""
    options = Options.make(
        model=str(model), **{name: _text(value) if name in _TEXT else value for name, value in values.items()}
    )
    return replace(options, weights=local_weights(options.weights))


def _text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return ",".join(map(str, value)) if isinstance(value, Iterable) else str(value)
