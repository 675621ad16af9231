"""Makes recipe and grid from options. Explicit options override the preset, which overrides the method's defaults."""

import math
import re
from base64 import b64encode
from pathlib import Path
from tokenize import TokenError
from typing import Any, TypeVar, get_args

import numpy as np
from pydantic import ValidationError

from producer.planning.options import Options
from producer.planning.presets import PRESETS
from workers.contract.directions import MAX_NUMBERS, Directions
from workers.contract.errors import BadOption, one_line
from workers.contract.job import Grid
from workers.contract.recipe import MAX_SIZE_PX, MIN_SIZE_PX, Preprocess, Recipe
from workers.contract.recipe import options as recipe_options

Made = TypeVar("Made", Recipe, Grid, Directions, Preprocess)
Number = TypeVar("Number", int, float)

_PREPROCESSINGS = ("auto", *(name for name in get_args(Preprocess.model_fields["name"].annotation) if name != "model"))

#: field of the grid -> its option
_GRID_OPTIONS = {"margin_px": "--margin", "rows": "--grid", "columns": "--grid"}


def make_recipe(options: Options, preprocess: Preprocess, channels: int = 3) -> Recipe:
    """The recipe of the options for pictures of that number of channels; raises BadOption."""
    chosen = _chosen(options)
    height, width = chosen_size(options)
    values = {name: chosen[option.key] for name, option in recipe_options().items() if option.key in chosen}
    if "neuron" in values:
        values["neuron"] = _neuron(values["neuron"])
    if "directions" in values:
        values["directions"] = _directions(values["directions"])
    if "show" in values:
        values["show"] = None if values["show"] == "pca" else _numbers("--show", values["show"], int, 3)
    values["channels"] = channels
    return _validated(Recipe, **{**values, "preprocess": preprocess, "height_px": height, "width_px": width})


def named_preprocess(text: str) -> Preprocess | None:
    """The preprocessing of ``MEAN,STD``, one number each or one for each channel; None for a name. Raises BadOption."""
    if text in _PREPROCESSINGS:
        return None
    if not text or text[0] not in "-.0123456789":
        raise BadOption(f"no preprocessing {text[:40]!r}; write {', '.join(_PREPROCESSINGS)}, or MEAN,STD")
    numbers = _numbers("--preprocess", text, float)
    if len(numbers) % 2:
        raise BadOption(
            f"--preprocess {text[:40]} has {len(numbers)} numbers; write MEAN,STD, or all means and then all stds"
        )
    half = len(numbers) // 2
    if not all(math.isfinite(number) for number in numbers) or min(numbers[half:]) <= 0:
        raise BadOption(f"--preprocess {text[:40]} needs standard deviations above 0, as in 0.5,0.25")
    return _validated(Preprocess, name="model", mean=numbers[:half], std=numbers[half:])


def _numbers(flag: str, text: str, kind: type[Number], count: int | None = None) -> tuple[Number, ...]:
    try:
        numbers = tuple(kind(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or (count is not None and len(numbers) != count):
        raise BadOption(f"cannot read {flag} {text[:40]!r}; write {count or 'an even count of'} numbers as in 0,3,7")
    return numbers


def chosen_size(options: Options) -> tuple[int, int]:
    """Height and width of the picture in pixels; raises BadOption."""
    text = str(_chosen(options).get("size", Recipe.model_fields["height_px"].default))
    match = re.fullmatch(r"([0-9]{1,6})(?:x([0-9]{1,6}))?", text)
    if match is None:
        raise BadOption(f"cannot read --size {text[:40]!r}; write pixels as in 150, or height x width as in 96x160")
    size = int(match[1]), int(match[2] or match[1])
    if not all(MIN_SIZE_PX <= side <= MAX_SIZE_PX for side in size):
        raise BadOption(f"--size {text} must lie in {MIN_SIZE_PX}..{MAX_SIZE_PX} pixels")
    return size


def is_chosen(options: Options, name: str) -> bool:
    """True if that option of the recipe is given or part of the preset; raises BadOption."""
    return name in _chosen(options)


def chosen_method(options: Options) -> str:
    """Name of the method; raises BadOption."""
    return str(_chosen(options).get("method", Recipe.model_fields["method"].default))


def make_grid(options: Options) -> Grid:
    """The grid of the options; raises BadOption."""
    if options.grid == "auto":
        return _validated(Grid, margin_px=options.margin, labels=options.labels)
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", options.grid)
    if match is None:
        raise BadOption(f"cannot read --grid {options.grid[:40]!r}; write rows x columns as in 8x8, or auto")
    rows, columns = int(match[1]), int(match[2])
    return _validated(Grid, rows=rows, columns=columns, margin_px=options.margin, labels=options.labels)


def _chosen(options: Options) -> dict[str, Any]:
    """Option of the recipe -> value, of explicit options and preset together; raises BadOption."""
    if options.preset is not None and options.preset not in PRESETS:
        raise BadOption(f"no preset {options.preset[:40]!r}; choose one of {', '.join(PRESETS)}")
    return {**(PRESETS[options.preset] if options.preset else {}), **options.recipe}


def _neuron(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,5}),([0-9]{1,5})", text)
    if match is None:
        raise BadOption(f"cannot read --neuron {text[:40]!r}; write row,column as in 3,4")
    return int(match[1]), int(match[2])


def _directions(path: Path) -> Directions:
    """The array of a .npy file, one direction per row.

    The file is mapped and not loaded, so that an array of objects, or one that exceeds its file, is not read.
    """
    name = f"--directions {str(path)[:200]!r}"
    try:
        array = np.atleast_2d(np.lib.format.open_memmap(path, mode="r"))
    except (OSError, ValueError, EOFError, TokenError) as error:
        reason = one_line(error, 100)
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
        raise BadOption(f"{name} has a direction that is all zeros; remove that row")
    encoded = b64encode(data.tobytes()).decode()
    return _validated(Directions, count=data.shape[0], channels=data.shape[1], base64=encoded)


def _validated(kind: type[Made], **values: Any) -> Made:
    """A ``kind`` made from options; raises BadOption, with the option's name, if a value is invalid."""
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = str(first["msg"]).removeprefix("Value error, ")
        if not first["loc"]:  # of several options together
            raise BadOption(message) from error
        field = str(first["loc"][0])
        flags = {**_GRID_OPTIONS, **{name: option.flag for name, option in recipe_options().items()}}
        raise BadOption(f"{flags.get(field, field)} {str(first['input'])[:40]}: {message}") from error
