"""Objectives: the layer's maps of a batch of pictures, reduced to one map for each picture.

Sources: Lucid's ``objectives.py`` for neuron, direction, deepdream and diversity (C. Olah, A. Mordvintsev, L. Schubert,
"Feature Visualization", Distill 2017).
"""

from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from workers.contract.directions import Directions
from workers.contract.recipe import Recipe
from workers.networks.extractor import Extractor
from workers.networks.gradient_override import GradientOverride
from workers.rendering import images


@dataclass(frozen=True, kw_only=True)
class LayerResponse:
    """The layer's response to a batch of pictures, reduced to one map for each picture."""

    #: (B, H', W') the map to maximise, after the activation function
    activation: torch.Tensor
    #: (B, H', W') the same map before the activation function
    pre_activation: torch.Tensor
    #: (B,) similarity to the other pictures of the tile, 0..1; None for a tile of one picture
    similarity: torch.Tensor | None = None


#: (pictures (B, C, H, W) in 0..255, gradient override or None) -> response
Objective = Callable[[torch.Tensor, GradientOverride | None], LayerResponse]

#: The maps of K channels, (B, K, H', W'), after and before the activation function.
_ChannelMaps = Callable[[torch.Tensor, GradientOverride | None], tuple[torch.Tensor, torch.Tensor]]


def objective(extractor: Extractor, filters: list[int], recipe: Recipe, device: torch.device) -> Objective:
    """The recipe's objective for tiles of ``filters``, each with ``recipe.diversity`` consecutive pictures."""
    own = [filter_ for filter_ in filters for _ in range(recipe.diversity)]
    if recipe.objective == "direction" and recipe.directions is not None:
        response_of = _direction(extractor, own, recipe.directions, recipe.diversity, device)
    elif recipe.objective == "deepdream":
        response_of = _deepdream(extractor, recipe.diversity, device)
    elif recipe.diversity > 1:
        response_of = _diverse(extractor, own, recipe.diversity, device)
    else:
        response_of = _filter(extractor, own, device)

    def preprocessed(pictures: torch.Tensor, override: GradientOverride | None) -> LayerResponse:
        response = response_of(images.to_network(pictures, recipe.preprocess, recipe.channels), override)
        after, before = response.activation, response.pre_activation
        if recipe.objective == "neuron":
            after, before = _neuron(after, recipe.neuron), _neuron(before, recipe.neuron)
        if recipe.negative:
            after = before = -before
        return LayerResponse(activation=after, pre_activation=before, similarity=response.similarity)

    return preprocessed


def _filter(extractor: Extractor, own: list[int], device: torch.device) -> Objective:
    sliced = extractor.slice(torch.tensor(own))

    def response_of(pictures: torch.Tensor, override: GradientOverride | None) -> LayerResponse:
        after, before = sliced.both(pictures, override)
        return LayerResponse(activation=after, pre_activation=before)

    return response_of


def _direction(
    extractor: Extractor, own: list[int], directions: Directions, count: int, device: torch.device
) -> Objective:
    """The weighted sum of the layer's maps.

    Channels with zero weight in all directions of the batch are not computed, except for the diversity term.
    """
    data = np.frombuffer(b64decode(directions.base64), "<f4").reshape(directions.count, directions.channels)[own]
    used = np.flatnonzero(data.any(axis=0)) if count == 1 else np.arange(directions.channels)
    channel_maps = _channels(extractor, used.tolist(), device)
    weights = torch.from_numpy(data[:, used].astype(np.float32)).to(device)  # (B, K)

    def response_of(pictures: torch.Tensor, override: GradientOverride | None) -> LayerResponse:
        after, before = channel_maps(pictures, override)
        mix = "bkhw,bk->bhw"
        return LayerResponse(
            activation=torch.einsum(mix, after, weights),
            pre_activation=torch.einsum(mix, before, weights),
            similarity=_similarity(after, count),
        )

    return response_of


def _deepdream(extractor: Extractor, count: int, device: torch.device) -> Objective:
    channel_maps = _channels(extractor, list(range(extractor.channels)), device)

    def response_of(pictures: torch.Tensor, override: GradientOverride | None) -> LayerResponse:
        maps = channel_maps(pictures, override)[0]
        dream = maps.square().mean(dim=1)
        # A whole layer is never dead, and the square of the pre-activation would also reward negative values.
        return LayerResponse(activation=dream, pre_activation=dream, similarity=_similarity(maps, count))

    return response_of


def _diverse(extractor: Extractor, own: list[int], count: int, device: torch.device) -> Objective:
    channel_maps = _channels(extractor, list(range(extractor.channels)), device)
    rows, place = torch.arange(len(own), device=device), torch.tensor(own, device=device)

    def response_of(pictures: torch.Tensor, override: GradientOverride | None) -> LayerResponse:
        after, before = channel_maps(pictures, override)
        return LayerResponse(
            activation=after[rows, place], pre_activation=before[rows, place], similarity=_similarity(after, count)
        )

    return response_of


def _similarity(maps: torch.Tensor, count: int) -> torch.Tensor | None:
    """(B,) mean cosine of each picture's Gram matrix with those of the tile's other pictures; None if ``count`` is 1.

    Source: Lucid's ``diversity``, on the maps (B, K, H', W') of the layer. ``count`` consecutive pictures belong to
    one tile.
    """
    if count == 1:
        return None
    flat = maps.flatten(2)  # (B, K, H'W')
    gram = torch.nn.functional.normalize((flat @ flat.transpose(1, 2)).flatten(1), dim=1)  # (B, KK)
    tiles = gram.view(-1, count, gram.shape[1])  # (B / count, count, KK)
    cosine: torch.Tensor = tiles @ tiles.transpose(1, 2)
    others = 1.0 - torch.eye(count, device=maps.device)
    return ((cosine * others).sum(dim=2) / (count - 1)).flatten()


def _channels(extractor: Extractor, channels: list[int], device: torch.device) -> _ChannelMaps:
    sliced = extractor.slice(torch.tensor(channels))
    return sliced.whole


def _neuron(maps: torch.Tensor, place: tuple[int, int] | None) -> torch.Tensor:
    row, column = (maps.shape[1] // 2, maps.shape[2] // 2) if place is None else place
    return maps[:, row : row + 1, column : column + 1]
