"""A tiny network of two layers, pictures for it and its tiles, for tests of objectives and methods."""

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from workers.contract.recipe import Recipe
from workers.networks import tracing
from workers.networks.layer_extractor import LayerExtractor
from workers.rendering.render import render
from workers.rendering.tile import Tile

if TYPE_CHECKING:
    from numpy.typing import NDArray

CPU = torch.device("cpu")

#: The second layer: its name, its filters, and the number of modules up to its pre-activation and its activation.
LAYER, CHANNELS, BEFORE, AFTER = "2", 8, 4, 5


def randomise(norm: nn.Module) -> None:
    """Draw the parameters and statistics of a batch-norm from 0.5..1.5, with torch's global generator."""
    assert isinstance(norm, nn.BatchNorm2d)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert tensor is not None
        nn.init.uniform_(tensor, 0.5, 1.5)


def network(activation: nn.Module | None = None, *, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Layer "2" is followed by a batch-norm and by ``activation``, which is smooth by default. Its map is about half as
    wide as the picture."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        layers = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1),
            nn.Softplus(),
            nn.Conv2d(6, CHANNELS, 3),
            nn.BatchNorm2d(CHANNELS),
            nn.Softplus() if activation is None else activation,
        )
        randomise(layers[3])
    return layers.eval().requires_grad_(False).to(dtype)


def tap_of(layers: nn.Module, *, tap: str = "activation") -> LayerExtractor:
    return LayerExtractor(layers, tracing.trace(layers), LAYER, tap)


def tiles_of(layers: nn.Module, filters: list[int], recipe: Recipe, layer: str = LAYER) -> list[Tile]:
    return render(layers, tracing.trace(layers), layer, filters, recipe, CPU)


def pictures(count: int, size_px: tuple[int, int] = (20, 20), seed: int = 0) -> torch.Tensor:
    """(count, 3, H, W) noise in 0..255."""
    return torch.rand(count, 3, *size_px, generator=torch.Generator().manual_seed(seed)) * 255


def fed(pixels: "NDArray[np.generic] | torch.Tensor") -> torch.Tensor:
    """The network's input for pixels (H, W, 3) or pictures (B, 3, H, W), written out."""
    if isinstance(pixels, np.ndarray):
        pixels = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None]
    return pixels / 127.5 - 1


def assert_alike(one: Tile, other: Tile, *, rel: float = 1e-3) -> None:
    """Equal up to float noise, which rounding turns into one grey level in at most one pixel of a hundred."""
    assert (one.filter, one.status, one.error) == (other.filter, other.status, other.error)
    assert one.activation == pytest.approx(other.activation, rel=rel, abs=1e-5)
    assert one.start_activation == pytest.approx(other.start_activation, rel=1e-4, abs=1e-6)
    difference = np.abs(one.pixels.astype(int) - other.pixels.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 0.01
