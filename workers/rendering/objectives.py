"""What is climbed: the layer's maps of a batch of pictures, reduced to one map for each picture.

Sources: Lucid's ``objectives.py`` for neuron, direction, deepdream and diversity (C. Olah, A. Mordvintsev, L. Schubert,
"Feature Visualization", Distill 2017).
"""

from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from workers.contract.recipe import Directions, Recipe
from workers.networks.gradient_override import GradientOverride
from workers.networks.layer_extractor import LayerExtractor
from workers.rendering import images


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a batch of pictures looks like to its objective."""

    #: (B, H', W') what each picture is to excite, after the activation function
    after: torch.Tensor
    #: the same before it
    before: torch.Tensor
    #: (B,) how like a picture is to the others of its tile, 0..1; None where it has no others
    likeness: torch.Tensor | None = None


#: (pictures (B, C, H, W) in 0..255, how the network leaks, if it does) -> what they look like
Objective = Callable[[torch.Tensor, GradientOverride | None], Seen]

#: The layer's maps of all channels that count, (B, K, H', W') after and before the activation function.
_Whole = Callable[[torch.Tensor, GradientOverride | None], tuple[torch.Tensor, torch.Tensor]]


def objective(tap: LayerExtractor, filters: list[int], recipe: Recipe, device: torch.device) -> Objective:
    """The recipe's objective for tiles of ``filters``, each with ``recipe.diversity`` pictures next to each other."""
    own = [filter_ for filter_ in filters for _ in range(recipe.diversity)]
    if recipe.objective == "direction" and recipe.directions is not None:
        see = _direction(tap, own, recipe.directions, recipe.diversity, device)
    elif recipe.objective == "deepdream":
        see = _deepdream(tap, recipe.diversity, device)
    elif recipe.diversity > 1:
        see = _diverse(tap, own, recipe.diversity, device)
    else:
        see = _filter(tap, own, device)

    def look(pictures: torch.Tensor, leak: GradientOverride | None) -> Seen:
        seen = see(images.to_network(pictures, recipe.preprocess), leak)
        after, before = seen.after, seen.before
        if recipe.objective == "neuron":
            after, before = _neuron(after, recipe.neuron), _neuron(before, recipe.neuron)
        if recipe.negative:
            after = before = -before
        return Seen(after=after, before=before, likeness=seen.likeness)

    return look


def regularised(recipe: Recipe) -> bool:
    """Whether anything counts against the objective."""
    return recipe.total_variation + recipe.l2 + recipe.blur > 0


def penalty(pictures: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """(B,) what counts against pictures (B, C, H, W) in 0..255, weighted as the recipe says.

    All are means over a picture in 0..1, so that weights mean the same at every size: total variation is the mean
    difference of neighbours, L2 the mean square of the distance from grey, blur the mean square of what a 3 x 3 blur
    removes (after Lucid's ``regularizers.py`` and ``blur_input_each_step``, which take sums).
    """
    x = pictures / 255.0
    result = x.new_zeros(len(x))
    if recipe.total_variation:
        down, right = (x[:, :, 1:] - x[:, :, :-1]).abs(), (x[..., 1:] - x[..., :-1]).abs()
        result = result + recipe.total_variation * (down.mean(dim=(1, 2, 3)) + right.mean(dim=(1, 2, 3)))
    if recipe.l2:
        result = result + recipe.l2 * (x - 0.5).square().mean(dim=(1, 2, 3))
    if recipe.blur:
        blurred = torch.nn.functional.avg_pool2d(x, 3, stride=1)
        result = result + recipe.blur * (x[:, :, 1:-1, 1:-1] - blurred).square().mean(dim=(1, 2, 3))
    return result


def _filter(tap: LayerExtractor, own: list[int], device: torch.device) -> Objective:
    sliced = tap.slice(torch.tensor(own, device=device))

    def see(pictures: torch.Tensor, leak: GradientOverride | None) -> Seen:
        after, before = sliced.both(pictures, leak)
        return Seen(after=after, before=before)

    return see


def _direction(
    tap: LayerExtractor, own: list[int], directions: Directions, count: int, device: torch.device
) -> Objective:
    """The weighted sum of the layer's maps.

    Channels that no direction of the batch weighs are not computed, unless pictures are to be unlike in them too.
    """
    data = np.frombuffer(b64decode(directions.base64), "<f4").reshape(directions.count, directions.channels)[own]
    used = np.flatnonzero(data.any(axis=0)) if count == 1 else np.arange(directions.channels)
    whole = _channels(tap, used.tolist(), device)
    weights = torch.from_numpy(data[:, used].astype(np.float32)).to(device)  # (B, K)

    def see(pictures: torch.Tensor, leak: GradientOverride | None) -> Seen:
        after, before = whole(pictures, leak)
        mix = "bkhw,bk->bhw"
        return Seen(
            after=torch.einsum(mix, after, weights),
            before=torch.einsum(mix, before, weights),
            likeness=_likeness(after, count),
        )

    return see


def _deepdream(tap: LayerExtractor, count: int, device: torch.device) -> Objective:
    whole = _channels(tap, list(range(tap.channels)), device)

    def see(pictures: torch.Tensor, leak: GradientOverride | None) -> Seen:
        maps = whole(pictures, leak)[0]
        dream = maps.square().mean(dim=1)
        # A whole layer never sleeps; and before the activation function a square would go the wrong way too.
        return Seen(after=dream, before=dream, likeness=_likeness(maps, count))

    return see


def _diverse(tap: LayerExtractor, own: list[int], count: int, device: torch.device) -> Objective:
    whole = _channels(tap, list(range(tap.channels)), device)
    rows, place = torch.arange(len(own), device=device), torch.tensor(own, device=device)

    def see(pictures: torch.Tensor, leak: GradientOverride | None) -> Seen:
        after, before = whole(pictures, leak)
        return Seen(after=after[rows, place], before=before[rows, place], likeness=_likeness(after, count))

    return see


def _likeness(maps: torch.Tensor, count: int) -> torch.Tensor | None:
    """(B,) mean cosine of each picture's Gram matrix with those of the other pictures of its tile, if it has any.

    Source: Lucid's ``diversity``, on the maps (B, K, H', W') of the whole layer; ``count`` pictures next to each other
    are one tile's.
    """
    if count == 1:
        return None
    flat = maps.flatten(2)  # (B, K, H'W')
    gram = torch.nn.functional.normalize((flat @ flat.transpose(1, 2)).flatten(1), dim=1)  # (B, KK)
    tiles = gram.view(-1, count, gram.shape[1])  # (B / count, count, KK)
    cosine: torch.Tensor = tiles @ tiles.transpose(1, 2)
    others = 1.0 - torch.eye(count, device=maps.device)
    return ((cosine * others).sum(dim=2) / (count - 1)).flatten()


def _channels(tap: LayerExtractor, channels: list[int], device: torch.device) -> _Whole:
    sliced = tap.slice(torch.tensor(channels, device=device))
    return sliced.whole


def _neuron(maps: torch.Tensor, place: tuple[int, int] | None) -> torch.Tensor:
    row, column = (maps.shape[1] // 2, maps.shape[2] // 2) if place is None else place
    return maps[:, row : row + 1, column : column + 1]
