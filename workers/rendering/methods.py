"""How a recipe makes pictures: where they start, what is moved, and how the end becomes pixels."""

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from workers.contract.geometry import layer_stride, seen_px, wider_px
from workers.contract.recipe import Recipe
from workers.networks.layer_extractor import LayerExtractor
from workers.rendering import images
from workers.rendering.objectives import Objective, penalty, regularised
from workers.rendering.optimization import (
    NOTEBOOK_EPSILON,
    OCTAVE_EPSILON,
    Climbed,
    Watch,
    canvas_ascent,
    notebook_ascent,
)
from workers.rendering.parametrization import PARAMETRIZATIONS, longest_wave_px, pace
from workers.rendering.rng import Stream
from workers.rendering.transforms import Transforms

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Made(NamedTuple):
    """A batch of pictures: how they came about, and what they look like."""

    climbed: Climbed
    #: (H, W, 3) uint8 RGB of each
    pixels: "list[NDArray[np.uint8]]"
    #: the same of each frame, of each picture
    frames: "list[list[NDArray[np.uint8]]]"


def make(
    objective: Objective, streams: list[Stream], recipe: Recipe, tap: LayerExtractor, device: torch.device
) -> Made:
    """Pictures of one batch from one start image each, for what ``objective`` sees of the ``tap``."""
    if recipe.method == "notebook":
        return _notebook(objective, streams, recipe, device)
    return _on_canvas(objective, streams, recipe, tap, device)


def _notebook(objective: Objective, streams: list[Stream], recipe: Recipe, device: torch.device) -> Made:
    contrast = images.OCTAVE_CONTRAST if recipe.octaves > 1 else images.NOTEBOOK_CONTRAST
    sizes = recipe.octave_px
    start = [images.start_noise(stream, sizes[0]) for stream in streams]
    begin = images.octave_start if recipe.octaves > 1 else images.notebook_start
    colours = slice(1 if recipe.grey else 3)
    pictures = channels_first(np.stack([begin(noise)[..., colours] for noise in start]), device)
    watch = _watch(objective, pictures, streams, recipe)
    to_pixels = functools.partial(_deprocessed, contrast=contrast)
    album = _Album(recipe, steps=len(sizes) * recipe.steps, to_pixels=to_pixels)
    for place in range(len(sizes)):
        pictures = notebook_ascent(
            watch, pictures, steps=recipe.steps, step_size=recipe.step_size,
            epsilon=OCTAVE_EPSILON if recipe.octaves > 1 else NOTEBOOK_EPSILON,
            album=album.after(place * recipe.steps),
        )  # fmt: skip
        if recipe.octaves > 1:
            next_px = sizes[place + 1] if place + 1 < len(sizes) else (recipe.height_px, recipe.width_px)
            pictures = channels_first(
                np.stack([images.enlarge(picture, next_px) for picture in _channels_last(pictures)]), device
            )
    with torch.no_grad():
        climbed = watch.climbed(pictures)
    pixels = to_pixels(pictures)
    return Made(climbed, pixels, album.frames(pixels))


def _on_canvas(
    objective: Objective, streams: list[Stream], recipe: Recipe, tap: LayerExtractor, device: torch.device
) -> Made:
    size_px = recipe.height_px, recipe.width_px
    wider = wider_px(size_px)
    stride = layer_stride(size_px, tap.map_px(*size_px), tap.map_px(*wider) if tap.takes(*wider) else None)
    # What did not wake gently gets all there is.
    gentle = streams[0].restart == 0
    # Where magnitudes are fixed, long waves would drown what a shallow layer looks for.
    short = gentle and (tap.stem or recipe.method == "maco")
    canvas = PARAMETRIZATIONS[recipe.method](
        streams,
        size_px=size_px,
        channels=1 if recipe.grey else 3,
        longest_px=longest_wave_px(stride) if short else math.inf,
        device=device,
    )
    pinned = recipe.objective == "neuron"
    views = Transforms(
        streams, steps=recipe.steps, size_px=size_px, stride=stride, device=device, pinned=pinned,
        roomy=tap.takes(*seen_px(size_px, stride, pinned=pinned)),
    )  # fmt: skip
    with torch.no_grad():
        watch = _watch(objective, canvas.tiles(), streams, recipe, leaky=tap.grouped)
    album = _Album(recipe, steps=recipe.steps, to_pixels=_rounded)
    tiles = canvas_ascent(
        watch,
        canvas,
        views,
        steps=recipe.steps,
        learning_rate=recipe.step_size * (pace(stride) if recipe.method == "fourier" and gentle else 1.0),
        album=album.after(0),
    )
    with torch.no_grad():
        climbed = watch.climbed(tiles)
    pixels = _rounded(tiles)
    return Made(climbed, pixels, album.frames(pixels))


def _watch(
    objective: Objective, start: torch.Tensor, streams: list[Stream], recipe: Recipe, *, leaky: bool = False
) -> Watch:
    return Watch(
        objective,
        start,
        rescue=recipe.rescue,
        anew=streams[0].restart > 0,
        strict=recipe.method == "notebook",
        leaky=leaky,
        penalty=functools.partial(penalty, recipe=recipe) if regularised(recipe) else None,
    )


class _Album:
    """Keeps the frames a recipe asks for, spread evenly over the steps, the last step included."""

    def __init__(
        self, recipe: Recipe, *, steps: int, to_pixels: "Callable[[torch.Tensor], list[NDArray[np.uint8]]]"
    ) -> None:
        self._size_px = recipe.height_px, recipe.width_px
        self._wanted = {round(steps * (frame + 1) / recipe.frames) for frame in range(recipe.frames)}
        self._to_pixels = to_pixels
        self._kept: list[list[NDArray[np.uint8]]] = []

    def after(self, done: int) -> Callable[[int, Callable[[], torch.Tensor]], None] | None:
        """What to call after each step of an ascent that so many steps went before; None where nothing is wanted."""
        if not self._wanted:
            return None

        def look(step: int, pictures: Callable[[], torch.Tensor]) -> None:
            if done + step in self._wanted:
                pixels = self._to_pixels(pictures())
                self._kept.append([images.resize(one, self._size_px) for one in pixels])

        return look

    def frames(self, final: "list[NDArray[np.uint8]]") -> "list[list[NDArray[np.uint8]]]":
        """Of each picture, its frames; the last is the ``final`` one, which octaves enlarge in another way."""
        if self._kept:
            self._kept[-1] = final
        return [[frame[place] for frame in self._kept] for place in range(len(final))]


def channels_first(pictures: "NDArray[np.float32]", device: torch.device) -> torch.Tensor:
    """(B, H, W, C) as (B, C, H, W): a permuted view of channels-last memory is a channels-last tensor, no copy."""
    return torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2)


def _channels_last(pictures: torch.Tensor) -> "NDArray[np.float32]":
    result: NDArray[np.float32] = np.ascontiguousarray(pictures.detach().permute(0, 2, 3, 1).cpu().numpy())
    return result


def _deprocessed(pictures: torch.Tensor, *, contrast: float) -> "list[NDArray[np.uint8]]":
    return [
        _rgb(images.deprocess(picture, contrast) if np.isfinite(picture).all() else np.zeros(picture.shape, np.uint8))
        for picture in _channels_last(pictures)
    ]


def _rounded(tiles: torch.Tensor) -> "list[NDArray[np.uint8]]":
    pixels = _channels_last(tiles.nan_to_num()).round().clip(0, 255).astype(np.uint8)
    return [_rgb(one) for one in pixels]


def _rgb(pixels: "NDArray[np.uint8]") -> "NDArray[np.uint8]":
    """(H, W, 1 or 3) as (H, W, 3)."""
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
