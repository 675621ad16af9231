"""Pictures before and after the ascent: start noise, what the network is fed, and how a result becomes pixels."""

import zlib
from typing import TYPE_CHECKING

import numpy as np
import torch

from workers.contract.job import Preprocess

if TYPE_CHECKING:
    from numpy.typing import NDArray


def start_noise(*, seed: int, restart: int, layer: str, filter_: int, size_px: int) -> "NDArray[np.float32]":
    """Uniform noise (size_px, size_px, 3) float32 in [0, 1), RGB.

    Part of the contract: a tile depends on nothing but its job, so the noise is drawn by NumPy on the CPU (CUDA's
    generators differ between GPU models), from a stream of its own for each (seed, restart, filter, layer).
    """
    entropy = np.random.SeedSequence([seed, restart, filter_, zlib.crc32(layer.encode())])
    generator = np.random.Generator(np.random.PCG64(entropy))
    return generator.random((size_px, size_px, 3), dtype=np.float32)


def notebook_start(noise: "NDArray[np.float32]") -> "NDArray[np.float32]":
    """The notebook's start image: a grey picture with some noise, float32 in 128..148 of 0..255 pixel units.

    Source: F. Chollet, "Deep Learning with Python", notebook 5.4, ``np.random.random(...) * 20 + 128.``
    """
    return noise * np.float32(20.0) + np.float32(128.0)


def to_network(pictures: torch.Tensor, preprocess: Preprocess) -> torch.Tensor:
    """What the network is fed for pictures (B, 3, H, W) in 0..255, RGB."""
    if preprocess.name == "raw":
        return pictures
    mean = pictures.new_tensor(preprocess.mean).view(1, 3, 1, 1)
    std = pictures.new_tensor(preprocess.std).view(1, 3, 1, 1)
    return (pictures / 255.0 - mean) / std


def deprocess(picture: "NDArray[np.float32]") -> "NDArray[np.uint8]":
    """Any float32 array (H, W, 3) as pixels, uint8: centred on grey, standard deviation a tenth of the range.

    Source: ``deprocess_image`` of the same notebook. The order of the operations is the notebook's, because float
    arithmetic is not associative and the last one truncates.
    """
    x = picture - picture.mean()
    x /= x.std() + 1e-5
    x *= 0.1
    x += 0.5
    x = np.clip(x, 0, 1)
    x *= 255
    pixels: NDArray[np.uint8] = np.clip(x, 0, 255).astype(np.uint8)
    return pixels
