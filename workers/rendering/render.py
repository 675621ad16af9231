"""Renders tiles: network, layer, filters and recipe in, tiles out. No I/O."""

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import fx, nn

from workers.contract.recipe import GAP_PX, Recipe
from workers.contract.records import Status
from workers.networks import devices
from workers.networks.extractor import Extractor
from workers.networks.tensor_extractor import extractor_of
from workers.rendering import images
from workers.rendering.methods import RenderedBatch, channels_first, render_batch
from workers.rendering.objectives import objective
from workers.rendering.rng import PictureRng
from workers.rendering.tile import Tile

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Maximum number of further start images for a dead filter.
MAX_RESTARTS = 3


def render(
    model: nn.Module, graph: fx.Graph, layer: str, filters: list[int], recipe: Recipe, device: torch.device
) -> list[Tile]:
    """The tiles of ``filters``, in their order, rendered as one batch: :func:`render_layer` with a new extractor.

    ``model`` is frozen, in evaluation mode and on ``device``; ``graph`` is its trace. Raises UnknownLayer.
    """
    size_px = recipe.height_px, recipe.width_px
    extractor = extractor_of(model, graph, layer, recipe.tap, size_px, devices.precision(recipe.precision, device))
    return render_layer(extractor, layer, filters, recipe, device)


def render_layer(
    extractor: Extractor, layer: str, filters: list[int], recipe: Recipe, device: torch.device
) -> list[Tile]:
    """The tiles of ``filters``, in their order, rendered as one batch.

    ``extractor`` reads the layer at the recipe's tap. With the objective direction, ``filters`` are indices of
    directions; with deepdream the only index is 0.
    """
    inert = extractor.inert.tolist() if recipe.objective in {"filter", "neuron"} else [False] * (max(filters) + 1)
    tiles = _attempt(extractor, inert, layer, filters, recipe, device, restart=0)
    for restart in range(1, MAX_RESTARTS + 1):
        again = [place for place, tile in enumerate(tiles) if _needs_restart(tile, inert, restart)]
        if not recipe.rescue or not again:
            break
        others = _attempt(extractor, inert, layer, [filters[place] for place in again], recipe, device, restart=restart)
        for place, other in zip(again, others, strict=True):
            tiles[place] = _better(tiles[place], other)
    return [replace(tile, status="rescued") if _peaks_at_zero_input(tile, inert, recipe) else tile for tile in tiles]


def _peaks_at_zero_input(tile: Tile, inert: list[bool], recipe: Recipe) -> bool:
    """True if the filter peaks at zero input (only negative weights), so that no image excites it further.

    Such is a depthwise kernel of negative weights. Its picture, optimised with the gradient override, shows what keeps
    its input channel inactive.
    """
    at_its_highest = tile.status == "dead" and tile.moved and tile.activation != 0.0
    return at_its_highest and recipe.rescue and not inert[tile.filter]


def _needs_restart(tile: Tile, inert: list[bool], restart: int) -> bool:
    """True if the tile is rendered again from start image ``restart``: dead, or saturated at the first restart."""
    if tile.error or inert[tile.filter]:
        return False
    return tile.status == "dead" or (tile.saturated and restart == 1)


def _better(first: Tile, other: Tile) -> Tile:
    """The better of two tiles of a filter, with the seconds of both; ``other`` is from another start image."""
    seconds = first.seconds + other.seconds
    if first.status != "dead":
        best = other if other.activation > first.activation else first
        return replace(best, status=first.status, restarts=other.restarts, seconds=seconds)
    if other.status == "dead":  # a dead filter keeps the picture of its first start image
        return replace(first, restarts=other.restarts, seconds=seconds)
    # A filter with negative weights only peaks at zero input, which the first start image may already give.
    best = first if first.moved and first.activation > other.activation else other
    start = first.start_activation
    return replace(best, status="rescued", restarts=other.restarts, start_activation=start, seconds=seconds)


def _attempt(
    extractor: Extractor,
    inert: list[bool],
    layer: str,
    filters: list[int],
    recipe: Recipe,
    device: torch.device,
    *,
    restart: int,
) -> list[Tile]:
    """Render one batch once, from start image ``restart`` of each filter."""
    began = time.monotonic()
    tile_objective = objective(extractor, filters, recipe, device)
    rngs = [
        PictureRng(seed=recipe.seed, restart=restart, layer=layer, filter=filter_, variant=variant)
        for filter_ in filters
        for variant in range(recipe.diversity)
    ]
    batch = render_batch(tile_objective, rngs, recipe, extractor, device)
    with torch.no_grad():
        response = tile_objective(channels_first(np.stack(batch.pixels).astype(np.float32), device), None)
    batch = batch._replace(
        pixels=[images.shown(pixels, recipe.show) for pixels in batch.pixels],
        frames=[[images.shown(frame, recipe.show) for frame in frames] for frames in batch.frames],
    )
    stored = response.activation.mean(dim=(1, 2)).tolist()
    seconds = (time.monotonic() - began) / len(filters)
    tiles = []
    for place, filter_ in enumerate(filters):
        tile = replace(
            _tile(batch, stored, place, recipe, inert=inert[filter_]),
            filter=filter_,
            restarts=restart,
            seconds=seconds,
            device=devices.describe(device),
            precision=extractor.precision,
            kernels=extractor.kernels,
        )
        tiles.append(tile)
    if len(filters) == 1:
        return tiles
    # In a batch, one filter with weights that are not finite makes the gradients of the others NaN too: 0 x NaN.
    return [
        _attempt(extractor, inert, layer, [tile.filter], recipe, device, restart=restart)[0] if tile.error else tile
        for tile in tiles
    ]


def _tile(batch: RenderedBatch, stored: list[float], place: int, recipe: Recipe, *, inert: bool) -> Tile:
    """The tile at index ``place`` of the batch, from its ``recipe.diversity`` pictures."""
    own = range(place * recipe.diversity, (place + 1) * recipe.diversity)
    ascent = batch.ascent
    start, end = (_mean(values.tolist(), own) for values in (ascent.start_activation, ascent.activation))
    pictures = ascent.pictures[own.start : own.stop]
    finite = math.isfinite(start) and math.isfinite(end) and bool(pictures.isfinite().all())
    statuses = {_status(batch, picture, inert=inert, rescue=recipe.rescue) for picture in own}
    # Pictures of one tile may differ: one that was rescued decides, one that is dead does not.
    status = next(iter(statuses)) if len(statuses) == 1 else "rescued" if "rescued" in statuses else "live"
    saturated = bool(ascent.saturated[own.start : own.stop].all())
    frames = zip(*(batch.frames[picture] for picture in own), strict=True)
    return Tile(
        filter=place,
        pixels=_side_by_side([batch.pixels[picture] for picture in own]),
        frames=tuple(_side_by_side(list(frame)) for frame in frames),
        status=status,
        start_activation=start,
        activation=end,
        stored_activation=_mean(stored, own),
        moved=bool(ascent.moved[own.start : own.stop].all()),
        saturated=saturated or (status != "dead" and "dead" in statuses),
        error="" if finite else "the picture or its activation is not a finite number; try a smaller --step-size",
    )


def _status(batch: RenderedBatch, place: int, *, inert: bool, rescue: bool) -> Status:
    ascent = batch.ascent
    start, end = float(ascent.start_activation[place]), float(ascent.activation[place])
    if inert or not ascent.moved[place]:
        return "dead"
    if ascent.dead_at_start[place]:
        # A transform may activate it without rescue.
        return "dead" if end == 0.0 else "rescued" if rescue else "live"
    if ascent.overridden[place]:
        return "rescued" if end != start else "dead"
    return "live"


def _mean(values: list[float], places: range) -> float:
    return sum(values[place] for place in places) / len(places)


def _side_by_side(pictures: "list[NDArray[np.uint8]]") -> "NDArray[np.uint8]":
    """(H, W, 3) pictures in a row, with a black gap between them."""
    gap = np.zeros((len(pictures[0]), GAP_PX, 3), np.uint8)
    row = [part for picture in pictures for part in (picture, gap)]
    return np.concatenate(row[:-1], axis=1)
