"""Options that commands share: those of a job (``run``, ``plan``, ``submit``), ``--data`` and ``--json``."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import rich_click as click
from annotated_types import Ge, Gt, Le
from pydantic.fields import FieldInfo

from producer.planning.options import Options
from producer.planning.presets import PRESETS
from workers.contract.option import Option
from workers.contract.recipe import METHODS, Recipe
from workers.contract.recipe import options as recipe_options

if TYPE_CHECKING:
    from producer.jobs.local_store import LocalStore
    from workers.contract.settings import Settings

Command = Callable[..., Any]

as_json = click.option("--json", "json_", is_flag=True, help="Print JSON.", panel="Command")

#: Groups of the job's options, in the order of ``--help``.
_PANELS = ("Model and layers", "Objective", "Method", "Picture", "Sheet", "This machine", "Command")


#: Option of commands that read jobs, as ``data``; see ``local_store``.
with_data = click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False),
    help="Data folder of filterfarm run.  [default: the farm of the settings; without one, filterfarm-data]",
)  # fmt: skip


def local_store(data: Path | None, settings: "Settings", *jobs: str | None) -> "LocalStore | None":
    """The data folder to read jobs from, or None for the bucket. Raises NoJob if the folder lacks one of ``jobs``."""
    from producer.jobs.local_store import chosen_store

    return chosen_store(data, settings, *jobs)


def job_options(command: Command) -> Command:
    """Decorator that adds MODEL and the job options; the command receives them as one ``options``."""

    @functools.wraps(command)
    def with_options(*args: Any, **values: Any) -> Any:
        mine = {name: values.pop(name) for name in names if name in values}
        mine["model"] = address(mine["model"], values.pop("network"))
        return command(*args, options=with_local_weights(Options.make(**mine)), **values)

    names = {*Options.__dataclass_fields__, *(option.key for option in recipe_options().values())}
    decorators: list[Callable[[Command], Command]] = [
        *(click.option_panel(panel) for panel in _PANELS),
        click.argument("model", required=False),
        *_selection(),
        *_of_recipe(),
        click.option(
            "--grid", default="auto", show_default=True, panel="Sheet",
            help="Rows x columns of a contact sheet, as in 8x8; or auto.",
        ),
        click.option(
            "--margin", type=int, default=5, show_default=True, panel="Sheet",
            help="Pixels between tiles.",
        ),
        click.option(
            "--labels/--no-labels", default=False, show_default=True, panel="Sheet",
            help="Write the number of each filter below its tile.",
        ),
    ]  # fmt: skip
    decorated: Command = with_options
    for decorate in reversed(decorators):
        decorated = decorate(decorated)
    return decorated


def address(model: str | None, network: str | None) -> str:
    """The network's address, of MODEL or ``--network``."""
    if (model is None) == (network is None):
        raise click.UsageError("name one network: MODEL, or --network MODULE:FUNCTION or FILE.pt2")
    if model is not None:
        return model
    return f"{'pt2' if str(network).endswith('.pt2') else 'factory'}:{network}"


def with_local_weights(options: Options) -> Options:
    """The options with the path of a local copy of weights that are an address."""
    if options.weights is None or "://" not in options.weights:
        return options
    from producer.jobs.remote_weights import local_weights

    return replace(options, weights=local_weights(options.weights))


def _selection() -> list[Callable[[Command], Command]]:
    """The options that choose network, layers, filters and preset."""
    option = functools.partial(click.option, panel="Model and layers")
    return [
        option(
            "--network", metavar="MODULE:FUNCTION",
            help="Your own network in place of MODEL: a function without arguments that returns a torch.nn.Module, "
            "or a FILE.pt2 of torch.export.save.",
        ),
        option("--weights", help="A torchvision weights name, a .pth or .safetensors file, or none (random)."),
        option(
            "--layers", default="all", show_default=True,
            help="Comma-separated names, aliases and globs ('filterfarm layers MODEL --kind all' lists them). "
            "all means all convolutions. A glob chooses convolutions, or other layers if it matches none.",
        ),
        option(
            "--filters", default="all", show_default=True,
            help="Ranges such as 0-63 or 3,5,8-11, or all; for logits also names of classes. Each layer "
            "renders those that it has.",
        ),
        option(
            "--classes", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
            help="Names of the classes, for logits: one per line, or a JSON list.  [default: those of the weights]",
        ),
        option(
            "--preset", type=click.Choice(list(PRESETS)), panel="Method",
            help="Named set of the options below; explicit options override it.",
        ),
    ]  # fmt: skip


def _of_recipe() -> Iterator[Callable[[Command], Command]]:
    """One option for each of the recipe's; it is None where it is not given, so that presets can set it."""
    for name, option in {option.flag: (name, option) for name, option in recipe_options().items()}.values():
        field = Recipe.model_fields[name]
        default, limits = _default(option, field), _limits(field)
        notes = "; ".join(
            filter(None, (f"default: {default}" if default else "", f"range: {limits}" if limits else ""))
        )
        flag = f"{option.flag}/--no-{option.flag.removeprefix('--')}" if field.default is True else option.flag
        yield click.option(
            flag,
            option.key,
            default=None,
            panel=option.panel,
            metavar=option.metavar or None,
            help=option.help + (f"  [{notes}]" if notes else ""),
            **_kind(option, field),
        )


def _kind(option: Option, field: FieldInfo) -> dict[str, Any]:
    if option.choices or get_origin(field.annotation) is Literal:
        return {"type": click.Choice(option.choices or get_args(field.annotation))}
    if option.metavar == "FILE":
        return {"type": click.Path(path_type=Path, dir_okay=False)}
    if field.annotation is bool:
        return {"is_flag": True}
    return {"type": str if option.metavar else field.annotation}


def _default(option: Option, field: FieldInfo) -> str:
    """The default for ``--help``; that of each method if it depends on the method."""
    if option.key in METHODS["fourier"]:
        return ", ".join(f"{method} {values[option.key]:g}" for method, values in METHODS.items())
    if option.default or field.default is None or field.default is False:
        return option.default
    return option.key if field.default is True else str(field.default)


def _limits(field: FieldInfo) -> str:
    """The range of a number, as in "1 to 16"; empty without an upper limit."""
    low = high = ""
    for limit in field.metadata:
        if isinstance(limit, Ge | Gt):
            low = str(limit.ge) if isinstance(limit, Ge) else f"above {limit.gt}"
        elif isinstance(limit, Le):
            high = str(limit.le)
    return f"{low} to {high}" if low and high else ""
