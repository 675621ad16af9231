"""A network, a layer and some of its filters in; finished tiles out. No Celery, no Redis, no storage."""

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import fx, nn

from workers import devices, fourier, images
from workers.ascent import Climbed, Objective, fourier_ascent, notebook_ascent
from workers.contract.job import Recipe
from workers.contract.tile import Precision, Status
from workers.tap import Tap

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Other start images that a filter gets which does not answer to the first.
MAX_RESTARTS = 3


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One rendered tile, or the reason why there is none."""

    filter: int
    #: (size_px, size_px, 3) uint8 RGB
    pixels: "NDArray[np.uint8]"
    status: Status
    #: means of the filter's map: on the start image, on the final one, and on ``pixels`` as they are
    start_activation: float
    activation: float
    stored_activation: float
    restarts: int
    #: seconds of the batch, divided by its tiles
    seconds: float
    #: what it was rendered on, such as "cpu" or "NVIDIA L4"
    device: str
    #: what the network computed in while the picture climbed
    precision: Precision
    #: why the tile cannot be shown; empty for a good one
    error: str = ""


def render(
    model: nn.Module, graph: fx.Graph, layer: str, filters: list[int], recipe: Recipe, device: torch.device
) -> list[Tile]:
    """The tiles of ``filters``, in their order, rendered as one batch.

    ``model`` is frozen, in evaluation mode and on ``device``; ``graph`` is its trace. Raises UnknownLayer.
    """
    tap = Tap(model, graph, layer, recipe.tap, devices.precision(recipe.precision, device))
    tiles = _attempt(tap, layer, filters, recipe, device, restart=0)
    inert = tap.inert.tolist()
    for restart in range(1, MAX_RESTARTS + 1):
        again = [place for place, tile in enumerate(tiles) if _may_wake(tile, inert)]
        if not recipe.rescue or not again:
            break
        for place, tile in zip(
            again,
            _attempt(tap, layer, [filters[place] for place in again], recipe, device, restart=restart),
            strict=True,
        ):
            # Kept only if it lives: a dead filter's picture is that of its first start.
            woken = tile.status != "dead"
            tiles[place] = (
                replace(tile, status="rescued", start_activation=tiles[place].start_activation)
                if woken
                else replace(tiles[place], restarts=restart)
            )
    return tiles


def _may_wake(tile: Tile, inert: list[bool]) -> bool:
    return tile.status == "dead" and not inert[tile.filter] and not tile.error


def _attempt(
    tap: Tap, layer: str, filters: list[int], recipe: Recipe, device: torch.device, *, restart: int
) -> list[Tile]:
    """The tiles of one batch from one start image each."""
    began = time.monotonic()
    sliced = tap.slice(torch.tensor(filters, device=device))

    def objective(pictures: torch.Tensor, stuck: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        return sliced.both(images.to_network(pictures, recipe.preprocess), stuck)

    make = _notebook if recipe.method == "notebook" else _fourier
    climbed, pixels = make(objective, layer, filters, recipe, device, restart)
    with torch.no_grad():
        maps, _ = objective(_channels_first(np.stack(pixels).astype(np.float32), device), None)
    stored = maps.mean(dim=(1, 2)).tolist()
    seconds = (time.monotonic() - began) / len(filters)
    tiles = []
    for place, filter_ in enumerate(filters):
        start, end = float(climbed.start_activation[place]), float(climbed.activation[place])
        finite = all(map(math.isfinite, (start, end))) and bool(climbed.pictures[place].isfinite().all())
        tile = Tile(
            filter=filter_,
            pixels=pixels[place],
            status=_status(climbed, place, inert=bool(tap.inert[filter_]), rescue=recipe.rescue),
            start_activation=start,
            activation=end,
            stored_activation=stored[place],
            restarts=restart,
            seconds=seconds,
            device=devices.describe(device),
            precision=tap.precision,
            error="" if finite else "the picture or its activation is not a finite number; try a smaller --step-size",
        )
        tiles.append(tile)
    if len(filters) == 1:
        return tiles
    # In a batch, one filter with weights that are not finite spoils its neighbours' gradients (0 x NaN is NaN).
    return [
        _attempt(tap, layer, [tile.filter], recipe, device, restart=restart)[0] if tile.error else tile
        for tile in tiles
    ]


def _status(climbed: Climbed, place: int, *, inert: bool, rescue: bool) -> Status:
    start, end = float(climbed.start_activation[place]), float(climbed.activation[place])
    if inert or not climbed.moved[place]:
        return "dead"
    if climbed.asleep[place]:
        return "rescued" if rescue and end != 0.0 else "dead"
    if climbed.leaked[place]:
        return "rescued" if end != start else "dead"
    return "live"


def _notebook(
    objective: Objective, layer: str, filters: list[int], recipe: Recipe, device: torch.device, restart: int
) -> "tuple[Climbed, list[NDArray[np.uint8]]]":
    noises = (
        images.start_noise(seed=recipe.seed, restart=restart, layer=layer, filter_=filter_, size_px=recipe.size_px)
        for filter_ in filters
    )
    start = _channels_first(np.stack([images.notebook_start(noise) for noise in noises]), device)
    climbed = notebook_ascent(
        objective, start, steps=recipe.steps, step_size=recipe.step_size, rescue=recipe.rescue, peak=restart > 0
    )
    results = climbed.pictures.permute(0, 2, 3, 1).cpu().numpy()  # (B, H, W, 3)
    return climbed, [
        images.deprocess(np.ascontiguousarray(result))
        if np.isfinite(result).all()
        else np.zeros(result.shape, np.uint8)
        for result in results
    ]


def _fourier(
    objective: Objective, layer: str, filters: list[int], recipe: Recipe, device: torch.device, restart: int
) -> "tuple[Climbed, list[NDArray[np.uint8]]]":
    size_px = recipe.size_px
    start = np.stack(
        [
            fourier.start_coefficients(
                seed=recipe.seed, restart=restart, layer=layer, filter_=filter_, size_px=size_px + 2 * fourier.MARGIN_PX
            )
            for filter_ in filters
        ]
    )
    with torch.no_grad():
        maps, _ = objective(
            torch.full((1, 3, size_px, size_px), 127.5, device=device).expand(len(filters), -1, -1, -1), None
        )
    stride = size_px / maps.shape[-1]
    # What did not wake gently gets all there is.
    gentle = restart == 0
    longest_px = fourier.longest_wave_px(stride) if gentle else math.inf
    rate = recipe.step_size * (fourier.pace(stride) if gentle else 1.0)
    canvas = fourier.Canvas(start, device=device, longest_px=longest_px)
    views = fourier.Views(
        seed=recipe.seed, restart=restart, layer=layer, filters=filters, steps=recipe.steps, size_px=size_px,
        stride=stride, device=device,
    )  # fmt: skip
    climbed = fourier_ascent(
        objective, canvas, views, steps=recipe.steps, learning_rate=rate, rescue=recipe.rescue, peak=not gentle
    )
    results = climbed.pictures.permute(0, 2, 3, 1).nan_to_num().round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    return climbed, list(results)


def _channels_first(pictures: "NDArray[np.float32]", device: torch.device) -> torch.Tensor:
    """(B, H, W, 3) as (B, 3, H, W): a permuted view of channels-last memory is a channels-last tensor, no copy."""
    return torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2)
