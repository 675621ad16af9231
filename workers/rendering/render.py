"""A network, a layer and some of its filters in; finished tiles out. No Celery, no Redis, no storage."""

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
from workers.networks.layer_extractor import LayerExtractor
from workers.rendering.methods import Made, channels_first, make
from workers.rendering.objectives import objective
from workers.rendering.rng import Stream
from workers.rendering.tile import Tile

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Other start images that a filter gets which does not answer to the first.
MAX_RESTARTS = 3


def render(
    model: nn.Module, graph: fx.Graph, layer: str, filters: list[int], recipe: Recipe, device: torch.device
) -> list[Tile]:
    """The tiles of ``filters``, in their order, rendered as one batch: :func:`render_layer` with a tap of its own.

    ``model`` is frozen, in evaluation mode and on ``device``; ``graph`` is its trace. Raises UnknownLayer.
    """
    tap = LayerExtractor(model, graph, layer, recipe.tap, devices.precision(recipe.precision, device))
    return render_layer(tap, layer, filters, recipe, device)


def render_layer(
    tap: LayerExtractor, layer: str, filters: list[int], recipe: Recipe, device: torch.device
) -> list[Tile]:
    """The tiles of ``filters``, in their order, rendered as one batch from the recipe's tap of the layer.

    With the objective direction, ``filters`` are numbers of directions; with deepdream there is only 0.
    """
    inert = tap.inert.tolist() if recipe.objective in {"filter", "neuron"} else [False] * (max(filters) + 1)
    tiles = _attempt(tap, inert, layer, filters, recipe, device, restart=0)
    for restart in range(1, MAX_RESTARTS + 1):
        again = [place for place, tile in enumerate(tiles) if _is_worth_another(tile, inert, restart)]
        if not recipe.rescue or not again:
            break
        others = _attempt(tap, inert, layer, [filters[place] for place in again], recipe, device, restart=restart)
        for place, other in zip(again, others, strict=True):
            tiles[place] = _better(tiles[place], other)
    return [replace(tile, status="rescued") if _is_held_back(tile, inert, recipe) else tile for tile in tiles]


def _is_held_back(tile: Tile, inert: list[bool], recipe: Recipe) -> bool:
    """Whether the filter is at its highest where what it sees sleeps, and so has been all along.

    A depthwise kernel of negative weights is: no start excites it more, and what its picture shows, having been moved
    by a leak, is what keeps its channel asleep.
    """
    at_its_highest = tile.status == "dead" and tile.moved and tile.activation != 0.0
    return at_its_highest and recipe.rescue and not inert[tile.filter]


def _is_worth_another(tile: Tile, inert: list[bool], restart: int) -> bool:
    """Whether a filter should get that other start image."""
    if tile.error or inert[tile.filter]:
        return False
    return tile.status == "dead" or (tile.stuck and restart == 1)


def _better(first: Tile, other: Tile) -> Tile:
    """The first tile of a filter or that from another start, with what both took."""
    seconds = first.seconds + other.seconds
    if first.status != "dead":
        best = other if other.activation > first.activation else first
        return replace(best, status=first.status, restarts=other.restarts, seconds=seconds)
    if other.status == "dead":  # a dead filter's picture is that of its first start
        return replace(first, restarts=other.restarts, seconds=seconds)
    # A filter that its channels can only hold back has its highest map where they sleep, from the start on.
    best = first if first.moved and first.activation > other.activation else other
    start = first.start_activation
    return replace(best, status="rescued", restarts=other.restarts, start_activation=start, seconds=seconds)


def _attempt(
    tap: LayerExtractor,
    inert: list[bool],
    layer: str,
    filters: list[int],
    recipe: Recipe,
    device: torch.device,
    *,
    restart: int,
) -> list[Tile]:
    """The tiles of one batch from one start image each."""
    began = time.monotonic()
    climb = objective(tap, filters, recipe, device)
    streams = [
        Stream(seed=recipe.seed, restart=restart, layer=layer, filter=filter_, variant=variant)
        for filter_ in filters
        for variant in range(recipe.diversity)
    ]
    made = make(climb, streams, recipe, tap, device)
    with torch.no_grad():
        seen = climb(channels_first(np.stack(made.pixels).astype(np.float32), device), None)
    stored = seen.after.mean(dim=(1, 2)).tolist()
    seconds = (time.monotonic() - began) / len(filters)
    tiles = []
    for place, filter_ in enumerate(filters):
        tile = replace(
            _tile(made, stored, place, recipe, inert=inert[filter_]),
            filter=filter_,
            restarts=restart,
            seconds=seconds,
            device=devices.describe(device),
            precision=tap.precision,
            kernels=tap.kernels,
        )
        tiles.append(tile)
    if len(filters) == 1:
        return tiles
    # In a batch, one filter with weights that are not finite spoils its neighbours' gradients (0 x NaN is NaN).
    return [
        _attempt(tap, inert, layer, [tile.filter], recipe, device, restart=restart)[0] if tile.error else tile
        for tile in tiles
    ]


def _tile(made: Made, stored: list[float], place: int, recipe: Recipe, *, inert: bool) -> Tile:
    """The tile at that place of the batch, from all of its pictures."""
    mine = range(place * recipe.diversity, (place + 1) * recipe.diversity)
    climbed = made.climbed
    start, end = (_mean(values.tolist(), mine) for values in (climbed.start_activation, climbed.activation))
    pictures = climbed.pictures[mine.start : mine.stop]
    finite = math.isfinite(start) and math.isfinite(end) and bool(pictures.isfinite().all())
    statuses = {_status(made, picture, inert=inert, rescue=recipe.rescue) for picture in mine}
    # Of several pictures one that needed help, or answers to nothing, does not speak for those that answer.
    status = next(iter(statuses)) if len(statuses) == 1 else "rescued" if "rescued" in statuses else "live"
    stuck = bool(climbed.stuck[mine.start : mine.stop].all())
    frames = zip(*(made.frames[picture] for picture in mine), strict=True)
    return Tile(
        filter=place,
        pixels=_side_by_side([made.pixels[picture] for picture in mine]),
        frames=tuple(_side_by_side(list(frame)) for frame in frames),
        status=status,
        start_activation=start,
        activation=end,
        stored_activation=_mean(stored, mine),
        moved=bool(climbed.moved[mine.start : mine.stop].all()),
        stuck=stuck or (status != "dead" and "dead" in statuses),
        error="" if finite else "the picture or its activation is not a finite number; try a smaller --step-size",
    )


def _status(made: Made, place: int, *, inert: bool, rescue: bool) -> Status:
    climbed = made.climbed
    start, end = float(climbed.start_activation[place]), float(climbed.activation[place])
    if inert or not climbed.moved[place]:
        return "dead"
    if climbed.asleep[place]:
        # A view of another part of the picture may wake it too.
        return "dead" if end == 0.0 else "rescued" if rescue else "live"
    if climbed.leaked[place]:
        return "rescued" if end != start else "dead"
    return "live"


def _mean(values: list[float], places: range) -> float:
    return sum(values[place] for place in places) / len(places)


def _side_by_side(pictures: "list[NDArray[np.uint8]]") -> "NDArray[np.uint8]":
    """(H, W, 3) pictures in a row, with a black gap between them."""
    gap = np.zeros((len(pictures[0]), GAP_PX, 3), np.uint8)
    row = [part for picture in pictures for part in (picture, gap)]
    return np.concatenate(row[:-1], axis=1)
