"""What a job contains, before anything runs: layers, filters, tiles, GFLOP; and the frozen job made from options."""

import difflib
import fnmatch
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from workers.contract.errors import BadOption, UnknownLayer
from workers.contract.filters import format_filters, parse_filters
from workers.contract.job import MAX_SIZE_PX, MIN_SIZE_PX, Grid, Job, Layer, Recipe

#: method -> (steps, step size): the notebook's own; and Lucid's learning rate, with as many steps as still change what
#: is seen
METHOD_DEFAULTS = {"notebook": (40, 1.0), "fourier": (64, 0.05)}

Made = TypeVar("Made", Recipe, Grid)


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """One convolution of a model, and what a tile of it costs."""

    name: str
    aliases: tuple[str, ...]
    channels: int
    #: height and width of its map; None where a picture of this size does not get that far
    output_px: tuple[int, int] | None
    #: GFLOP of one gradient step of one tile
    step_gflop: float


@dataclass(frozen=True, kw_only=True)
class Options:
    """The job options of the command line, unchecked."""

    model: str
    weights: str | None = None
    layers: str = "all"
    filters: str = "all"
    method: str = "notebook"
    preprocess: str = "auto"
    size_px: int = 150
    #: None: what the method takes
    steps: int | None = None
    step_size: float | None = None
    seed: int = 0
    rescue: bool = True
    tap: str = "activation"
    precision: str = "auto"
    grid: str = "auto"
    margin_px: int = 5


def layers(model_name: str, size_px: int) -> list[LayerPlan]:
    """Every convolution of a model in the order they run; raises UnknownModel. Loads no weights."""
    from workers import graph, models

    if not MIN_SIZE_PX <= size_px <= MAX_SIZE_PX:
        raise BadOption(f"--size {size_px} must lie in {MIN_SIZE_PX}..{MAX_SIZE_PX} pixels")
    model = models.skeleton(model_name)
    trace = graph.trace(model)
    costs = graph.costs(model, trace, size_px)
    names = models.aliases(model_name, model)
    result = []
    for name in graph.convolutions(model, trace):
        cost = costs.get(name)
        plan = LayerPlan(
            name=name,
            aliases=(names[name],) if name in names else (),
            channels=int(model.get_submodule(name).out_channels),  # type: ignore[arg-type]  # a convolution's
            output_px=cost.output_px if cost else None,
            step_gflop=cost.step_gflop if cost else 0.0,
        )
        result.append(plan)
    return result


def select(plans: list[LayerPlan], text: str, model_name: str) -> list[LayerPlan]:
    """The layers that comma-separated names, aliases and globs mean, in the order they run; raises UnknownLayer."""
    if text.strip() == "all":
        return plans
    chosen: set[str] = set()
    for pattern in filter(None, (part.strip() for part in text.split(","))):
        matches = {
            plan.name for plan in plans if any(fnmatch.fnmatchcase(n, pattern) for n in (plan.name, *plan.aliases))
        }
        if not matches:
            every = [name for plan in plans for name in (plan.name, *plan.aliases)]
            near = difflib.get_close_matches(pattern, every, n=2, cutoff=0.3) or every[:2]
            raise UnknownLayer(
                f"no layer {pattern[:80]!r} in {model_name}; nearest: {', '.join(near)} "
                f"('filterfarm layers {model_name}' lists all)"
            )
        chosen |= matches
    if not chosen:
        raise UnknownLayer(f"--layers {text!r} names no layer; 'filterfarm layers {model_name}' lists all")
    return [plan for plan in plans if plan.name in chosen]


def make_job(options: Options) -> tuple[Job, Path | None, list[LayerPlan]]:
    """The frozen job, the checkpoint file it names (if any), and the plans of its layers.

    Raises the errors of everything a person can get wrong in the options.
    """
    every = layers(options.model, options.size_px)
    chosen = select(every, options.layers, options.model)
    too_deep = next((plan for plan in chosen if plan.output_px is None), None)
    if too_deep:
        raise BadOption(
            f"{options.model} cannot take {options.size_px} px pictures as far as {too_deep.name}; "
            "use another --size, such as 224"
        )
    frozen = tuple(
        Layer(name=plan.name, aliases=plan.aliases, channels=plan.channels, filters=_filters(options.filters, plan))
        for plan in chosen
    )
    grid = _grid(options)
    _check_grid(grid, frozen)
    from workers import weights as loading

    weights, checkpoint = loading.choose(options.model, options.weights)
    steps, step_size = METHOD_DEFAULTS.get(options.method, METHOD_DEFAULTS["notebook"])
    recipe = _validated(
        Recipe,
        method=options.method,
        tap=options.tap,
        preprocess=loading.preprocess(options.preprocess, options.model, weights),
        size_px=options.size_px,
        steps=steps if options.steps is None else options.steps,
        step_size=step_size if options.step_size is None else options.step_size,
        seed=options.seed,
        rescue=options.rescue,
        precision=options.precision,
    )
    packages = ("filterfarm", "torch", "torchvision", "timm", "numpy", "pillow")
    job = Job(
        model=options.model,
        weights=weights,
        layers=frozen,
        recipe=recipe,
        grid=grid,
        versions={package: version(package) for package in packages},
    )
    return job, checkpoint, chosen


def _filters(text: str, plan: LayerPlan) -> str:
    return format_filters(parse_filters(text, plan.channels, plan.name))


def _grid(options: Options) -> Grid:
    if options.grid == "auto":
        return _validated(Grid, margin_px=options.margin_px)
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", options.grid)
    if match is None:
        raise BadOption(f"cannot read --grid {options.grid[:40]!r}; write rows x columns as in 8x8, or auto")
    return _validated(Grid, rows=int(match[1]), columns=int(match[2]), margin_px=options.margin_px)


def _check_grid(grid: Grid, frozen: tuple[Layer, ...]) -> None:
    if grid.rows is None or grid.columns is None:
        return
    room = grid.rows * grid.columns
    for layer in frozen:
        if not grid.holds(len(layer.selected)):
            raise BadOption(
                f"a grid of {grid.rows}x{grid.columns} holds {room} tiles, and {layer.name} has {len(layer.selected)}; "
                f"use --grid auto or --filters 0-{room - 1}"
            )


#: field of the job -> the option a person sets it with
_OPTION_NAMES = {"size_px": "--size", "margin_px": "--margin", "rows": "--grid", "columns": "--grid"}


def _validated(kind: type[Made], **values: Any) -> Made:
    """A ``kind`` made from options; raises BadOption with the option's name where a value is out of range."""
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = str(first["loc"][0])
        option = _OPTION_NAMES.get(field, "--" + field.replace("_", "-"))
        raise BadOption(f"{option} {str(first['input'])[:40]}: {first['msg']}") from error
