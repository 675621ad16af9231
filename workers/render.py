"""A network, a layer and some of its filters in; finished tiles out. No Celery, no Redis, no storage."""

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import fx, nn

from workers import images
from workers.ascent import notebook_ascent
from workers.contract.job import Recipe
from workers.contract.tile import Status
from workers.devices import describe
from workers.tap import Tap

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One rendered tile, or the reason why there is none."""

    filter: int
    #: (size_px, size_px, 3) uint8 RGB
    pixels: "NDArray[np.uint8]"
    status: Status
    start_activation: float
    activation: float
    #: seconds of the batch, divided by its tiles
    seconds: float
    #: what it was rendered on, such as "cpu" or "NVIDIA L4"
    device: str
    #: why the tile cannot be shown; empty for a good one
    error: str = ""


def render(
    model: nn.Module, graph: fx.Graph, layer: str, filters: list[int], recipe: Recipe, device: torch.device
) -> list[Tile]:
    """The tiles of ``filters``, in their order, rendered as one batch.

    ``model`` is frozen, in evaluation mode and on ``device``; ``graph`` is its trace. Raises UnknownLayer.
    """
    began = time.monotonic()
    tap = Tap(model, graph, layer, recipe.tap).slice(torch.tensor(filters, device=device))
    noises = (
        images.start_noise(seed=recipe.seed, restart=0, layer=layer, filter_=filter_, size_px=recipe.size_px)
        for filter_ in filters
    )
    start = np.stack([images.notebook_start(noise) for noise in noises])  # (B, H, W, 3) float32
    # A permuted view of channels-last memory is a channels-last tensor: no copy.
    pictures = torch.from_numpy(start).to(device).permute(0, 3, 1, 2)  # (B, 3, H, W)
    climbed = notebook_ascent(
        lambda x: tap(images.to_network(x, recipe.preprocess)), pictures, steps=recipe.steps, step_size=recipe.step_size
    )
    results = climbed.pictures.permute(0, 2, 3, 1).cpu().numpy()  # (B, H, W, 3)
    starts, ends, moved = climbed.start_activation.tolist(), climbed.activation.tolist(), climbed.moved.tolist()
    seconds = (time.monotonic() - began) / len(filters)
    tiles = [
        _tile(
            filter_,
            np.ascontiguousarray(results[place]),
            moved=moved[place],
            start_activation=starts[place],
            activation=ends[place],
            seconds=seconds,
            device=describe(device),
        )
        for place, filter_ in enumerate(filters)
    ]
    if len(filters) == 1:
        return tiles
    # In a batch, one filter with weights that are not finite spoils its neighbours' gradients (0 x NaN is NaN).
    return [render(model, graph, layer, [tile.filter], recipe, device)[0] if tile.error else tile for tile in tiles]


def _tile(
    filter_: int,
    result: "NDArray[np.float32]",
    *,
    moved: bool,
    start_activation: float,
    activation: float,
    seconds: float,
    device: str,
) -> Tile:
    finite = bool(np.isfinite(result).all()) and math.isfinite(start_activation) and math.isfinite(activation)
    return Tile(
        filter=filter_,
        pixels=images.deprocess(result) if finite else np.zeros(result.shape, np.uint8),
        status="live" if moved else "dead",
        start_activation=start_activation,
        activation=activation,
        seconds=seconds,
        device=device,
        error="" if finite else "the picture or its activation is not a finite number; try a smaller --step-size",
    )
