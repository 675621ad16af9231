"""The options that commands share: those of a job (``run``, ``plan``, ``submit``), and ``--json``."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from producer.plan import METHOD_DEFAULTS, Options

Command = Callable[..., Any]

#: Where ``filterfarm run`` keeps its bucket, unless told otherwise.
DATA = Path("filterfarm-data")

as_json = click.option("--json", "json_", is_flag=True, help="Print JSON.")

_DEFAULTS = Options(model="")


def _per_method(place: int) -> str:
    return ", ".join(f"{method} {values[place]:g}" for method, values in METHOD_DEFAULTS.items())


def job_options(command: Command) -> Command:
    """Give a command MODEL and the job options; it receives them as one ``options``."""

    @functools.wraps(command)
    def with_options(*args: Any, **values: Any) -> Any:
        mine = {name: values.pop(name) for name in Options.__dataclass_fields__ if name in values}
        return command(*args, options=Options(**mine), **values)

    decorators = [
        click.argument("model"),
        click.option("--weights", help="A torchvision weights name, a .pth or .safetensors file, or none (random)."),
        click.option(
            "--layers", default=_DEFAULTS.layers, show_default=True, help="Names, aliases, globs; commas between."
        ),
        click.option(
            "--filters", default=_DEFAULTS.filters, show_default=True, help="0-63, all, or a list such as 3,5,8-11."
        ),
        click.option(
            "--method", type=click.Choice(list(METHOD_DEFAULTS)), default=_DEFAULTS.method, show_default=True,
            help="How pictures are made: notebook is Chollet's recipe to the letter, fourier is Lucid's.",
        ),
        click.option(
            "--preprocess", type=click.Choice(["auto", "raw", "imagenet"]), default=_DEFAULTS.preprocess,
            show_default=True,
            help="What the network is fed: raw 0..255 RGB, ImageNet mean and std, or what suits the weights.",
        ),
        click.option("--size", "size_px", type=int, default=_DEFAULTS.size_px, show_default=True, help="Pixels."),
        click.option("--steps", type=int, help=f"Gradient steps.  [default: {_per_method(0)}]"),
        click.option(
            "--step-size", type=float,
            help=f"notebook: of 255, per step of unit RMS; fourier: learning rate.  [default: {_per_method(1)}]",
        ),
        click.option(
            "--rescue/--no-rescue", default=_DEFAULTS.rescue, show_default=True,
            help="Wake filters that do not answer to the start image; without, the bare recipe.",
        ),
        click.option("--seed", type=int, default=_DEFAULTS.seed, show_default=True, help="Of the start noise."),
        click.option(
            "--tap", type=click.Choice(["activation", "conv"]), default=_DEFAULTS.tap, show_default=True,
            help="Maximise the layer after batch-norm and activation, or the convolution's own output.",
        ),
        click.option(
            "--precision", type=click.Choice(["auto", "fp32", "bf16"]), default=_DEFAULTS.precision, show_default=True,
            help="What the network computes in; auto takes bf16 where the device has it in hardware.",
        ),
        click.option(
            "--grid", default=_DEFAULTS.grid, show_default=True, help="Rows x columns of a sheet, as in 8x8; or auto."
        ),
        click.option(
            "--margin", "margin_px", type=int, default=_DEFAULTS.margin_px, show_default=True,
            help="Pixels between tiles.",
        ),
    ]  # fmt: skip
    for decorate in reversed(decorators):
        with_options = decorate(with_options)
    return with_options
