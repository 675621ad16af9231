"""The options that commands share: those of a job (``run``, ``plan``, ``submit``), and ``--json``."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rich_click as click

from producer.planning.options import Options
from producer.planning.presets import DEFAULT_METHOD, METHODS, PRESETS

Command = Callable[..., Any]

#: Where ``filterfarm run`` keeps its bucket, unless told otherwise.
DATA = Path("filterfarm-data")

as_json = click.option("--json", "json_", is_flag=True, help="Print JSON.")


_DEFAULTS = Options(model="")


def _per_method(field: str) -> str:
    return ", ".join(f"{method} {values[field]:g}" for method, values in METHODS.items())


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
            "--filters", default=_DEFAULTS.filters, show_default=True,
            help="0-63, all, or a list such as 3,5,8-11; of several layers, those that each has.",
        ),  # fmt: skip
        click.option(
            "--preset", type=click.Choice(list(PRESETS)),
            help="A good combination of the options below, which still go before it.",
        ),
        click.option(
            "--method", type=click.Choice(list(METHODS)),
            help="How pictures are made: fourier is Lucid's way, notebook Chollet's to the letter, maco moves only "
            f"phases, pixel only pixels.  [default: {DEFAULT_METHOD}]",
        ),
        click.option(
            "--objective", type=click.Choice(["filter", "neuron", "direction", "deepdream"]),
            default=_DEFAULTS.objective, show_default=True,
            help="What is maximised: a filter's map, one place of it, a weighted sum of maps, or the whole layer.",
        ),
        click.option("--negative", is_flag=True, help="Minimise it instead."),
        click.option(
            "--neuron", metavar="ROW,COLUMN", help="Place in the map, with --objective neuron.  [default: middle]"
        ),
        click.option(
            "--directions", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
            help="A .npy file of shape (directions, channels), one tile each, with --objective direction.",
        ),
        click.option(
            "--diversity", type=int, default=_DEFAULTS.diversity, show_default=True,
            help="Pictures per filter, kept unlike each other; they stand side by side in the tile.",
        ),
        click.option(
            "--preprocess", type=click.Choice(["auto", "raw", "imagenet"]), default=_DEFAULTS.preprocess,
            show_default=True,
            help="What the network is fed: raw 0..255 RGB, ImageNet mean and std, or what suits the weights.",
        ),
        click.option("--size", help="Pixels, or height x width as in 96x160.  [default: 150]"),
        click.option("--grey", is_flag=True, help="Pictures of one channel instead of three."),
        click.option("--steps", type=int, help=f"Gradient steps.  [default: {_per_method('steps')}]"),
        click.option(
            "--step-size", type=float,
            help="notebook: of 255, per step of unit RMS; others: learning rate.  "
            f"[default: {_per_method('step_size')}]",
        ),
        click.option("--octaves", type=int, help="notebook: sizes that a picture grows through.  [default: 1]"),
        click.option("--octave-scale", type=float, help="From one of these sizes to the next.  [default: 1.2]"),
        click.option(
            "--tv", "total_variation", type=float, default=_DEFAULTS.total_variation, show_default=True,
            help="Weight against differences between neighbouring pixels.",
        ),
        click.option(
            "--l2", type=float, default=_DEFAULTS.l2, show_default=True, help="Weight against distance from grey."
        ),
        click.option(
            "--blur", type=float, default=_DEFAULTS.blur, show_default=True,
            help="Weight against what a blur would remove.",
        ),
        click.option(
            "--frames", type=int, default=_DEFAULTS.frames, show_default=True,
            help="Pictures of the way there, as an animation beside each tile.",
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
            help="What the network computes in; auto takes bf16 where the device is faster in it.",
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
