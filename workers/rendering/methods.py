"""The methods of a recipe: start image, parametrization, ascent, conversion to pixels."""

import functools
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from workers.contract.geometry import layer_stride, seen_px, wider_px
from workers.contract.recipe import Recipe
from workers.networks.extractor import Extractor
from workers.rendering import images
from workers.rendering.frames import FrameRecorder
from workers.rendering.objectives import Objective
from workers.rendering.optimization import (
    NOTEBOOK_EPSILON,
    OCTAVE_EPSILON,
    notebook_ascent,
    parametrized_ascent,
)
from workers.rendering.parametrization import PARAMETRIZATIONS, learning_rate_factor, longest_wave_px
from workers.rendering.regularizers import is_regularised, penalty
from workers.rendering.rescue import AscentLoss, AscentResult
from workers.rendering.rng import PictureRng
from workers.rendering.transforms import Transforms

if TYPE_CHECKING:
    from numpy.typing import NDArray


class RenderedBatch(NamedTuple):
    """A batch of pictures: the result of their ascent, and their pixels."""

    ascent: AscentResult
    #: (H, W, 3) uint8 RGB of each; (H, W, C) if the network's pictures have other channels
    pixels: "list[NDArray[np.uint8]]"
    #: for each picture, the pixels of its frames
    frames: "list[list[NDArray[np.uint8]]]"


def render_batch(
    objective: Objective, rngs: list[PictureRng], recipe: Recipe, extractor: Extractor, device: torch.device
) -> RenderedBatch:
    """Render one batch by the recipe's method, one picture for each of ``rngs``."""
    if recipe.method == "notebook":
        return _notebook(objective, rngs, recipe, device)
    return _parametrized(objective, rngs, recipe, extractor, device)


def _notebook(objective: Objective, rngs: list[PictureRng], recipe: Recipe, device: torch.device) -> RenderedBatch:
    contrast = images.OCTAVE_CONTRAST if recipe.octaves > 1 else images.NOTEBOOK_CONTRAST
    sizes = recipe.octave_px
    noises = [images.start_noise(rng, sizes[0], recipe.channels) for rng in rngs]
    start_image = images.octave_start if recipe.octaves > 1 else images.notebook_start
    colours = slice(1 if recipe.grey else recipe.channels)
    pictures = channels_first(np.stack([start_image(noise)[..., colours] for noise in noises]), device)
    ascent_loss = _ascent_loss(objective, pictures, rngs, recipe)
    to_pixels = functools.partial(_deprocessed, contrast=contrast)
    recorder = FrameRecorder(recipe, steps=len(sizes) * recipe.steps, to_pixels=to_pixels)
    for place in range(len(sizes)):
        pictures = notebook_ascent(
            ascent_loss, pictures, steps=recipe.steps, step_size=recipe.step_size,
            epsilon=OCTAVE_EPSILON if recipe.octaves > 1 else NOTEBOOK_EPSILON,
            on_step=recorder.callback(place * recipe.steps),
        )  # fmt: skip
        if recipe.octaves > 1:
            next_px = sizes[place + 1] if place + 1 < len(sizes) else (recipe.height_px, recipe.width_px)
            pictures = channels_first(
                np.stack([images.enlarge(picture, next_px) for picture in _channels_last(pictures)]), device
            )
    with torch.no_grad():
        result = ascent_loss.result(pictures)
    pixels = to_pixels(pictures)
    return RenderedBatch(result, pixels, recorder.frames(pixels))


def _parametrized(
    objective: Objective, rngs: list[PictureRng], recipe: Recipe, extractor: Extractor, device: torch.device
) -> RenderedBatch:
    size_px = recipe.height_px, recipe.width_px
    wider = wider_px(size_px)
    stride = layer_stride(
        size_px, extractor.map_px(*size_px), extractor.map_px(*wider) if extractor.takes(*wider) else None
    )
    # A restart has waves of all lengths, and no learning-rate factor.
    first_start = rngs[0].restart == 0
    # With fixed magnitudes, long waves would dominate the pattern a shallow layer responds to.
    short = first_start and (extractor.stem or recipe.method == "maco")
    parametrization = PARAMETRIZATIONS[recipe.method](
        rngs,
        size_px=size_px,
        channels=1 if recipe.grey else recipe.channels,
        longest_px=longest_wave_px(stride) if short else math.inf,
        device=device,
    )
    pinned = recipe.objective == "neuron"
    transforms = Transforms(
        rngs, steps=recipe.steps, size_px=size_px, stride=stride, device=device, pinned=pinned,
        larger_input=extractor.takes(*seen_px(size_px, stride, pinned=pinned)),
    )  # fmt: skip
    with torch.no_grad():
        ascent_loss = _ascent_loss(objective, parametrization.tiles(), rngs, recipe, depthwise=extractor.grouped)
    recorder = FrameRecorder(recipe, steps=recipe.steps, to_pixels=_rounded)
    tiles = parametrized_ascent(
        ascent_loss,
        parametrization,
        transforms,
        steps=recipe.steps,
        learning_rate=recipe.step_size
        * (learning_rate_factor(stride) if recipe.method == "fourier" and first_start else 1.0),
        on_step=recorder.callback(0),
    )
    with torch.no_grad():
        result = ascent_loss.result(tiles)
    pixels = _rounded(tiles)
    return RenderedBatch(result, pixels, recorder.frames(pixels))


def _ascent_loss(
    objective: Objective, start: torch.Tensor, rngs: list[PictureRng], recipe: Recipe, *, depthwise: bool = False
) -> AscentLoss:
    return AscentLoss(
        objective,
        start,
        rescue=recipe.rescue,
        restarted=rngs[0].restart > 0,
        map_only=recipe.method == "notebook",
        depthwise=depthwise,
        penalty=functools.partial(penalty, recipe=recipe) if is_regularised(recipe) else None,
    )


def channels_first(pictures: "NDArray[np.float32]", device: torch.device) -> torch.Tensor:
    """Pictures (B, H, W, C) as a (B, C, H, W) tensor in channels-last memory format, without a copy."""
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
