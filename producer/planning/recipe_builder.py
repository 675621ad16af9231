"""Options to recipe and grid: what was said, then what the preset says, then what the method takes."""

import re
from base64 import b64encode
from pathlib import Path
from tokenize import TokenError
from typing import Any, TypeVar

import numpy as np
from pydantic import ValidationError

from producer.planning.options import Options
from producer.planning.presets import DEFAULT_METHOD, METHODS, PRESETS
from workers.contract.errors import BadOption
from workers.contract.job import Grid
from workers.contract.recipe import MAX_NUMBERS, MAX_SIZE_PX, MIN_SIZE_PX, Directions, Preprocess, Recipe

Made = TypeVar("Made", Recipe, Grid, Directions)

#: Options that presets and methods have a say in.
_PRESET_FIELDS = ("method", "size", "steps", "step_size", "octaves", "octave_scale")

#: Options that are the recipe's fields as they stand.
_PLAIN_FIELDS = (
    "objective", "negative", "diversity", "tap", "grey", "total_variation", "l2", "blur", "frames", "rescue", "seed",
    "precision",
)  # fmt: skip

#: field of the job -> the option a person sets it with
_OPTION_NAMES = {
    "height_px": "--size", "width_px": "--size", "margin_px": "--margin", "rows": "--grid", "columns": "--grid",
    "total_variation": "--tv",
}  # fmt: skip


def make_recipe(options: Options, preprocess: Preprocess) -> Recipe:
    """The recipe that the options mean; raises BadOption."""
    chosen = _chosen(options)
    height, width = chosen_size(options)
    del chosen["size"]
    return _validated(
        Recipe,
        preprocess=preprocess,
        height_px=height,
        width_px=width,
        neuron=_neuron(options.neuron),
        directions=None if options.directions is None else _directions(options.directions),
        **{name: getattr(options, name) for name in _PLAIN_FIELDS},
        **{name: value for name, value in chosen.items() if value is not None},
    )


def chosen_size(options: Options) -> tuple[int, int]:
    """Height and width of the picture that the options mean; raises BadOption."""
    size_text = _chosen(options)["size"]
    text = "150" if size_text is None else str(size_text)
    match = re.fullmatch(r"([0-9]{1,6})(?:x([0-9]{1,6}))?", text)
    if match is None:
        raise BadOption(f"cannot read --size {text[:40]!r}; write pixels as in 150, or height x width as in 96x160")
    size = int(match[1]), int(match[2] or match[1])
    if not all(MIN_SIZE_PX <= side <= MAX_SIZE_PX for side in size):
        raise BadOption(f"--size {text} must lie in {MIN_SIZE_PX}..{MAX_SIZE_PX} pixels")
    return size


def make_grid(options: Options) -> Grid:
    """The grid that the options mean; raises BadOption."""
    if options.grid == "auto":
        return _validated(Grid, margin_px=options.margin_px)
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", options.grid)
    if match is None:
        raise BadOption(f"cannot read --grid {options.grid[:40]!r}; write rows x columns as in 8x8, or auto")
    return _validated(Grid, rows=int(match[1]), columns=int(match[2]), margin_px=options.margin_px)


def _chosen(options: Options) -> dict[str, Any]:
    if options.preset is not None and options.preset not in PRESETS:
        raise BadOption(f"no preset {options.preset[:40]!r}; there are {', '.join(PRESETS)}")
    said = {name: value for name in _PRESET_FIELDS if (value := getattr(options, name)) is not None}
    preset = PRESETS[options.preset] if options.preset else {}
    method = str(said.get("method") or preset.get("method") or DEFAULT_METHOD)
    if method not in METHODS:
        raise BadOption(f"no method {method[:40]!r}; there are {', '.join(METHODS)}")
    return {**dict.fromkeys(_PRESET_FIELDS), "method": method, **METHODS[method], **preset, **said}


def _neuron(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,5}),([0-9]{1,5})", text)
    if match is None:
        raise BadOption(f"cannot read --neuron {text[:40]!r}; write row,column as in 3,4")
    return int(match[1]), int(match[2])


def _directions(path: Path) -> Directions:
    """The array of a .npy file, one direction a row.

    It is mapped, not loaded: what is no array of plain numbers, or claims to be longer than its file, is never read.
    """
    name = f"--directions {str(path)[:200]!r}"
    try:
        array = np.atleast_2d(np.lib.format.open_memmap(path, mode="r"))
    except (OSError, ValueError, EOFError, TokenError) as error:
        reason = " ".join(str(error).split())[:100]
        raise BadOption(f"cannot read {name} ({reason}); write it with numpy.save") from error
    if array.size > MAX_NUMBERS:
        raise BadOption(f"{name} has more than {MAX_NUMBERS} numbers; split it into several jobs")
    plain = array.ndim == 2 and array.size > 0 and array.dtype.kind in "fiu"
    with np.errstate(over="ignore", under="ignore"):
        data = np.ascontiguousarray(array, "<f4") if plain else None
    if data is None or not np.isfinite(data).all():
        raise BadOption(
            f"{name} is {array.dtype} of shape {array.shape}; "
            "it should be finite numbers (of float32) of shape (directions, channels)"
        )
    if not data.any(axis=1).all():
        raise BadOption(f"{name} has a direction that is all zeros; it leads nowhere")
    encoded = b64encode(data.tobytes()).decode()
    return _validated(Directions, count=data.shape[0], channels=data.shape[1], base64=encoded)


def _validated(kind: type[Made], **values: Any) -> Made:
    """A ``kind`` made from options; raises BadOption with the option's name where a value is out of range."""
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = str(first["msg"]).removeprefix("Value error, ")
        if not first["loc"]:  # of several options together
            raise BadOption(message) from error
        field = str(first["loc"][0])
        option = _OPTION_NAMES.get(field, "--" + field.replace("_", "-"))
        raise BadOption(f"{option} {str(first['input'])[:40]}: {message}") from error
