"""Diversity: several pictures of one filter, against Gram matrices and their cosines in NumPy."""

from base64 import b64encode
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.recipes import recipe_of
from tests.unit.rendering.tiny import (  # fmt: skip
    AFTER,
    CHANNELS,
    CPU,
    LAYER,
    assert_alike,
    fed,
    network,
    pictures,
    tap_of,
    tiles_of,
)
from workers.contract.recipe import Recipe
from workers.rendering.methods import render_batch
from workers.rendering.objectives import objective
from workers.rendering.rng import PictureRng

if TYPE_CHECKING:
    from numpy.typing import NDArray


def selective() -> nn.Sequential:
    """Filters of zero mean, which patterns alone excite, so that pictures can differ in the maps that they excite."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first, second = nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.Conv2d(12, 8, 3)
        layers = nn.Sequential(first, nn.ReLU(), second, nn.Identity(), nn.ReLU())
    first.weight.data -= first.weight.data.mean(dim=(2, 3), keepdim=True)
    return layers.eval().requires_grad_(False)


def cosine(one: "NDArray[np.float32]", other: "NDArray[np.float32]") -> float:
    """Cosine of the Gram matrices of two pictures' maps (C, H', W')."""
    grams = []
    for maps in (one.astype(np.float64), other.astype(np.float64)):
        channels = len(maps)
        gram = np.empty((channels, channels))
        for i in range(channels):
            for j in range(channels):
                gram[i, j] = (maps[i] * maps[j]).sum()
        grams.append(gram.ravel())
    return float(grams[0] @ grams[1] / (np.linalg.norm(grams[0]) * np.linalg.norm(grams[1])))


def mean_cosine(maps: "NDArray[np.float32]", place: int) -> float:
    """Mean cosine of one picture with all others of its tile; ``maps`` is (count, C, H', W')."""
    others = [cosine(maps[place], maps[other]) for other in range(len(maps)) if other != place]
    return float(np.mean(others))


def apart(tile: "NDArray[np.uint8]", count: int, width: int) -> "list[NDArray[np.uint8]]":
    """Split a tile into its pictures, which are side by side with 2 px between them."""
    return [tile[:, place * (width + 2) : place * (width + 2) + width] for place in range(count)]


def similarity_of(layers: nn.Sequential, tile: "list[NDArray[np.uint8]]") -> float:
    """Mean similarity of a tile's pictures, from the maps of the whole network."""
    maps = np.concatenate([layers[:AFTER](fed(picture)).numpy() for picture in tile])
    return float(np.mean([mean_cosine(maps, place) for place in range(len(tile))]))


def independent(layers: nn.Sequential, filter_: int, count: int, recipe: Recipe) -> "list[NDArray[np.uint8]]":
    """Pictures from the random streams of a tile of ``count`` pictures, each optimised alone."""
    alone = recipe.model_copy(update={"diversity": 1})
    batch_objective = objective(tap_of(layers), [filter_] * count, alone, CPU)
    streams = [
        PictureRng(seed=recipe.seed, restart=0, layer=LAYER, filter=filter_, variant=variant)
        for variant in range(count)
    ]
    return render_batch(batch_objective, streams, alone, tap_of(layers), CPU).pixels


@pytest.mark.parametrize("count", [2, 3])
def test_similarity_is_the_mean_cosine_of_gram_matrices(count: int) -> None:
    # Given pictures of two tiles
    layers, seen = network(nn.ReLU(inplace=True)), pictures(2 * count, (20, 26))
    # When
    look = objective(tap_of(layers), [5, 1], recipe_of(diversity=count), CPU)
    found = look(seen, None)
    # Then
    maps = layers[:AFTER](fed(seen)).numpy()
    wanted = [mean_cosine(maps[tile : tile + count], place) for tile in (0, count) for place in range(count)]
    assert found.similarity is not None
    np.testing.assert_allclose(found.similarity, wanted, rtol=1e-4)
    assert len(set(np.round(wanted, 6))) > 1
    # And the activation is that of each tile's own filter
    for picture in range(2 * count):
        np.testing.assert_allclose(
            found.activation[picture], maps[picture, [5, 1][picture // count]], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("what", ["direction", "deepdream"])
def test_similarity_counts_for_directions_and_whole_layers_too(what: str) -> None:
    # Given two pictures of one tile, and a direction that weighs a single channel
    layers, seen = network(nn.ReLU(inplace=True)), pictures(2, (20, 26))
    data = b64encode(np.eye(1, CHANNELS, dtype="<f4").tobytes()).decode()
    directions = {"count": 1, "channels": CHANNELS, "base64": data}
    more: dict[str, Any] = {"directions": directions} if what == "direction" else {}
    # When
    found = objective(tap_of(layers), [0], recipe_of(objective=what, diversity=2, **more), CPU)(seen, None)
    # Then the similarity is that of all channels' maps
    maps = layers[:AFTER](fed(seen)).numpy()
    assert found.similarity is not None
    np.testing.assert_allclose(found.similarity, [mean_cosine(maps, 0)] * 2, rtol=1e-4)
    assert found.similarity[0] < 0.9999


def test_a_single_picture_has_no_similarity() -> None:
    # Given / When
    found = objective(tap_of(network()), [5], recipe_of(), CPU)(pictures(1), None)
    # Then
    assert found.similarity is None


@pytest.mark.parametrize(("method", "steps", "step_size"), [("notebook", 20, 4.0), ("fourier", 60, 0.3)])
def test_pictures_of_a_diverse_tile_are_less_similar_than_independent_ones_of_the_same_streams(
    method: str, steps: int, step_size: float
) -> None:
    # Given
    layers, count, filters = selective(), 3, [2, 6]
    recipe = recipe_of(method, diversity=count, steps=steps, step_size=step_size)
    # When
    tiles = tiles_of(layers, filters, recipe)
    # Then
    diverse = [1 - similarity_of(layers, apart(tile.pixels, count, 20)) for tile in tiles]
    alone = [1 - similarity_of(layers, independent(layers, filter_, count, recipe)) for filter_ in filters]
    assert np.mean(diverse) > 1.5 * np.mean(alone)
    # And the activations are nearly as high
    assert all(tile.activation > tile.start_activation for tile in tiles)


@pytest.mark.parametrize("method", ["notebook", "fourier"])
def test_a_batch_of_diverse_tiles_equals_its_tiles_rendered_alone(method: str) -> None:
    # Given
    layers = network()
    recipe = recipe_of(method, diversity=2)
    # When
    together = tiles_of(layers, [4, 0, 4, 7], recipe)
    # Then
    for tile in together:
        (alone,) = tiles_of(layers, [tile.filter], recipe)
        assert_alike(tile, alone)
    assert_alike(together[0], together[2])


def test_a_nan_channel_is_an_error_of_every_diverse_tile_because_similarity_uses_all_channels() -> None:
    # Given
    layers = network()
    layers[3].bias[4] = float("nan")  # type: ignore[operator]
    # When
    tiles = tiles_of(layers, [0, 4], recipe_of(diversity=2))
    # Then
    assert all("not a finite number" in tile.error for tile in tiles)


def test_the_activations_of_a_diverse_tile_are_the_means_over_its_pictures() -> None:
    # Given
    layers, count = network(), 3
    # When
    (tile,) = tiles_of(layers, [6], recipe_of("fourier", diversity=count))
    # Then
    seen = [layers[:AFTER](fed(picture))[0, 6].mean() for picture in apart(tile.pixels, count, 20)]
    assert tile.stored_activation == pytest.approx(float(torch.stack(seen).mean()), rel=1e-4)
    assert tile.activation > tile.start_activation


def test_pictures_stand_side_by_side_with_two_black_pixels_between_them() -> None:
    # Given
    layers, count = network(), 3
    recipe = recipe_of("fourier", diversity=count, height_px=16, width_px=20, frames=2)
    # When
    (tile,) = tiles_of(layers, [6], recipe)
    # Then
    assert tile.pixels.shape == (16, 3 * 20 + 2 * 2, 3)
    assert recipe.tile_px == (16, 64)
    for picture in (tile.pixels, *tile.frames):
        assert picture.shape == tile.pixels.shape
        assert not picture[:, 20:22].any()
        assert not picture[:, 42:44].any()
        one, two, three = apart(picture, count, 20)
        assert min(part.min() for part in (one, two, three)) > 0
        assert not np.array_equal(one, two)
        assert not np.array_equal(two, three)


def test_the_first_picture_has_the_start_image_of_a_single_one() -> None:
    # Given a step that changes no pixel by a grey level
    layers = network()
    # When
    (alone,) = tiles_of(layers, [6], recipe_of(steps=1, step_size=1e-9))
    (tile,) = tiles_of(layers, [6], recipe_of(steps=1, step_size=1e-9, diversity=2))
    # Then
    assert np.array_equal(apart(tile.pixels, 2, 20)[0], alone.pixels)
    assert not np.array_equal(apart(tile.pixels, 2, 20)[1], alone.pixels)


def test_similarity_does_not_depend_on_the_scale_of_the_maps() -> None:
    # Given networks that differ in the scale of their last maps alone
    plain, loud = network(nn.ReLU()), network(nn.ReLU())
    for name in ("weight", "bias"):
        getattr(loud[3], name).mul_(100.0)
    recipe = recipe_of(diversity=2)
    # When
    (quiet,), (noisy,) = tiles_of(plain, [0], recipe), tiles_of(loud, [0], recipe)
    # Then similarity has the same weight relative to the activation
    assert noisy.activation == pytest.approx(100 * quiet.activation, rel=1e-2)
    difference = np.abs(quiet.pixels.astype(int) - noisy.pixels.astype(int))
    assert difference.mean() < 1


def test_a_tile_of_live_and_rescued_pictures_is_rescued_and_one_of_dead_pictures_is_dead() -> None:
    # Given a filter that is dead on one of its two start images only: its bias lies between the two
    layers = network(nn.ReLU(inplace=True))
    norm = layers[3]
    assert isinstance(norm, nn.BatchNorm2d)
    peaks = []
    for variant in range(2):
        noise = PictureRng(seed=3, restart=0, layer=LAYER, filter=0, variant=variant).generator()
        start = noise.random((20, 20, 3), dtype=np.float32) * 20 + 128
        peaks.append(float(layers[:4](fed(start))[0, 0].max()))
    norm.bias[0] -= sum(peaks) / 2
    norm.bias[5] = -1e9
    assert abs(peaks[0] - peaks[1]) > 1e-4
    # When
    recipe = recipe_of(diversity=2, steps=20, step_size=8.0)
    mixed, dead = tiles_of(layers, [0, 5], recipe)
    bare, _ = tiles_of(layers, [0, 5], recipe.model_copy(update={"rescue": False}))
    # Then
    assert (mixed.status, dead.status) == ("rescued", "dead")
    assert mixed.activation > mixed.start_activation
    assert mixed.restarts == 0
    assert bare.status == "live"
