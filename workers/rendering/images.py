"""Pictures before and after the ascent: start noise, preprocessing, and conversion to pixels."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from workers.contract.recipe import Preprocess
from workers.rendering.rng import PictureRng

if TYPE_CHECKING:
    from numpy.typing import NDArray


def start_noise(rng: PictureRng, size_px: tuple[int, int], channels: int = 3) -> "NDArray[np.float32]":
    """Uniform noise (H, W, channels) float32 in [0, 1) for a picture of that height and width.

    A tile depends only on its job, so the noise must not change between versions.
    """
    return rng.generator().random((*size_px, channels), dtype=np.float32)


def notebook_start(noise: "NDArray[np.float32]") -> "NDArray[np.float32]":
    """The notebook's start image: a grey picture with some noise, float32 in 128..148 of 0..255 pixel units.

    Source: F. Chollet, "Deep Learning with Python", notebook 5.4, ``np.random.random(...) * 20 + 128.``
    """
    return noise * np.float32(20.0) + np.float32(128.0)


def octave_start(noise: "NDArray[np.float32]") -> "NDArray[np.float32]":
    """The same around the middle of the range, 118..138, as Keras's ``conv_filter_visualization.py`` of 2019 has it."""
    return (noise - np.float32(0.5)) * np.float32(20.0) + np.float32(128.0)


def to_network(pictures: torch.Tensor, preprocess: Preprocess, channels: int = 3) -> torch.Tensor:
    """The network's input (B, channels, H, W) for pictures in 0..255 of as many channels, or of one, which is repeated.

    Of stored pictures, which have three equal channels if the network reads one, the first is taken.
    """
    pictures = pictures[:, :channels].expand(-1, channels, -1, -1)
    if preprocess.name == "raw":
        return pictures
    mean = pictures.new_tensor(preprocess.mean).view(1, -1, 1, 1)
    std = pictures.new_tensor(preprocess.std).view(1, -1, 1, 1)
    return (pictures / 255.0 - mean) / std


def shown(pixels: "NDArray[np.uint8]", show: tuple[int, int, int] | None) -> "NDArray[np.uint8]":
    """Pixels (H, W, C) uint8 as (H, W, 3): grey and RGB as they are, others by three channels, ``show``, or by their
    first three principal components, each stretched over the whole range.
    """
    if pixels.shape[2] in (1, 3):
        return pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2)
    if show is not None:
        return np.ascontiguousarray(pixels[..., show])
    places = pixels.reshape(-1, pixels.shape[2]).astype(np.float64)
    places -= places.mean(axis=0)
    _, axes = np.linalg.eigh(places.T @ places)  # ascending
    axes = axes[:, ::-1][:, :3]  # (C, 3), or (C, 2) of two channels
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    scores = np.zeros((len(places), 3))
    scores[:, : axes.shape[1]] = places @ axes
    spread = np.abs(scores).max(axis=0)
    scores = np.divide(scores, spread, out=np.zeros_like(scores), where=spread > 0)
    result: NDArray[np.uint8] = (127.5 + 127.5 * scores).round().astype(np.uint8)
    return result.reshape(*pixels.shape[:2], 3)


#: Standard deviation of a picture after ``deprocess``, of the whole range: the notebook's, and the script's of 2019.
NOTEBOOK_CONTRAST, OCTAVE_CONTRAST = 0.1, 0.25


def deprocess(picture: "NDArray[np.float32]", contrast: float = NOTEBOOK_CONTRAST) -> "NDArray[np.uint8]":
    """Any float32 array (H, W, C) as pixels, uint8: centred on grey, with that standard deviation.

    Source: ``deprocess_image`` of the same notebook. The order of the operations is the notebook's, because float
    arithmetic is not associative and the last one truncates.
    """
    x = picture - picture.mean()
    x /= x.std() + 1e-5
    x *= contrast
    x += 0.5
    x = np.clip(x, 0, 1)
    x *= 255
    pixels: NDArray[np.uint8] = np.clip(x, 0, 255).astype(np.uint8)
    return pixels


def enlarge(picture: "NDArray[np.float32]", size_px: tuple[int, int]) -> "NDArray[np.float32]":
    """The picture (H, W, C) at another height and width, with its own mean and contrast.

    Source: Keras's ``conv_filter_visualization.py`` of 2019, ``process_image`` of a resized ``deprocess_image``, as
    its documentation describes it: the reverse of ``deprocess_image``. The script's code differs: it deprocesses the
    picture in place, and then uses the mean and contrast of the result, 0.5 and 0.25, so that the later octaves start
    from those.
    """
    pixels = resize(deprocess(picture, OCTAVE_CONTRAST), size_px).astype(np.float32)
    grown: NDArray[np.float32] = (pixels / 255 - 0.5) / OCTAVE_CONTRAST * picture.std() + picture.mean()
    return grown


def resize(pixels: "NDArray[np.uint8]", size_px: tuple[int, int]) -> "NDArray[np.uint8]":
    """Pixels (H, W, C) uint8 at another height and width, by Pillow's bicubic interpolation."""
    channels = [
        np.asarray(Image.fromarray(pixels[..., c]).resize(size_px[::-1], Image.Resampling.BICUBIC))
        for c in range(pixels.shape[2])
    ]
    return np.stack(channels, axis=2)
