"""Each objective against the whole, unsliced network, and against sums written out."""

from base64 import b64encode
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.recipes import recipe_of
from tests.unit.rendering.tiny import (  # fmt: skip
    AFTER,
    BEFORE,
    CHANNELS,
    CPU,
    assert_alike,
    fed,
    network,
    pictures,
    tap_of,
    tiles_of,
)
from workers.contract.directions import Directions
from workers.contract.recipe import Recipe
from workers.rendering.objectives import LayerResponse, objective

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Rectangular, with maps that are odd in one direction and even in the other: (9, 10) and (10, 9).
SIZES = [(21, 24), (23, 22)]


def directions(rows: "NDArray[np.float32]") -> Directions:
    data = b64encode(np.ascontiguousarray(rows, "<f4").tobytes()).decode()
    return Directions(count=len(rows), channels=rows.shape[1], base64=data)


def mixed(count: int, seed: int = 0) -> "NDArray[np.float32]":
    return np.random.default_rng(seed).normal(size=(count, CHANNELS)).astype(np.float32)


def responses(layers: nn.Module, filters: list[int], recipe: Recipe, seen: torch.Tensor) -> LayerResponse:
    return objective(tap_of(layers, tap=recipe.tap), filters, recipe, CPU)(seen, None)


def maps_after(layers: nn.Sequential, seen: torch.Tensor) -> "NDArray[np.float32]":
    """(B, C, H', W') of the whole network."""
    return layers[:AFTER](fed(seen)).numpy()  # type: ignore[no-any-return]


def maps_before(layers: nn.Sequential, seen: torch.Tensor) -> "NDArray[np.float32]":
    return layers[:BEFORE](fed(seen)).numpy()  # type: ignore[no-any-return]


@pytest.mark.parametrize("size_px", SIZES)
@pytest.mark.parametrize("place", [None, (0, 0), (2, 5), (8, 8)])
def test_a_neuron_is_one_unit_of_its_filters_map(size_px: tuple[int, int], place: tuple[int, int] | None) -> None:
    # Given
    layers, seen, filters = network(), pictures(3, size_px), [5, 0, 5]
    # When
    found = responses(layers, filters, recipe_of(objective="neuron", neuron=place), seen)
    # Then
    maps, unactivated = maps_after(layers, seen), maps_before(layers, seen)
    row, column = place or {(21, 24): (4, 5), (23, 22): (5, 4)}[size_px]
    wanted = [maps[b, f, row, column] for b, f in enumerate(filters)]
    assert found.activation.shape == (3, 1, 1)
    np.testing.assert_allclose(found.activation[:, 0, 0], wanted, rtol=1e-4)
    wanted = [unactivated[b, f, row, column] for b, f in enumerate(filters)]
    np.testing.assert_allclose(found.pre_activation[:, 0, 0], wanted, rtol=1e-4, atol=1e-6)


def test_a_neuron_changes_only_the_pixels_of_its_receptive_field() -> None:
    # Given the unit in row 2, column 3 of a map with receptive fields of 7 x 7 pixels and a stride of 2
    layers = network()
    recipe = recipe_of(objective="neuron", neuron=(2, 3), height_px=24, width_px=24)
    # When
    (tile,) = tiles_of(layers, [1], recipe)
    (still,) = tiles_of(layers, [1], recipe_of(steps=1, step_size=1e-12, height_px=24, width_px=24))
    # Then the start image is the same, and pixels outside the receptive field differ in contrast alone
    seen = np.zeros((24, 24), bool)
    seen[3:10, 5:12] = True
    before, after = still.pixels.astype(float), tile.pixels.astype(float)
    (slope, offset) = np.polyfit(before[~seen].ravel(), after[~seen].ravel(), 1)
    assert np.abs(before[~seen] * slope + offset - after[~seen]).max() < 2
    assert np.abs(before[seen] * slope + offset - after[seen]).mean() > 10


@pytest.mark.parametrize("tap", ["activation", "conv"])
def test_negative_is_minus_the_pre_activation(tap: str) -> None:
    # Given
    layers, seen, filters = network(nn.ReLU(inplace=True)), pictures(2), [3, 6]
    # When
    found = responses(layers, filters, recipe_of(negative=True, tap=tap), seen)
    # Then
    whole = maps_before(layers, seen) if tap == "activation" else layers[:3](fed(seen)).numpy()
    wanted = np.stack([-whole[b, f] for b, f in enumerate(filters)])
    np.testing.assert_allclose(found.activation, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.pre_activation, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["notebook", "fourier", "maco", "pixel"])
def test_a_negative_tile_decreases_its_objective(method: str) -> None:
    # Given
    layers = network(nn.ReLU(inplace=True))
    recipe = recipe_of(method, negative=True)
    # When
    tiles = tiles_of(layers, [0, 3, 6], recipe)
    # Then the filter's pre-activation is lower on the stored pixels than on the start image
    for tile in tiles:
        stored = float(layers[:BEFORE](fed(tile.pixels))[0, tile.filter].mean())
        assert tile.status == "live"
        assert tile.stored_activation == pytest.approx(-stored, rel=1e-4)
        assert stored < -tile.start_activation
        assert tile.activation > tile.start_activation


@pytest.mark.parametrize("objective_", ["neuron", "direction", "deepdream"])
def test_every_objective_can_be_negative(objective_: str) -> None:
    # Given
    layers, seen = network(nn.ReLU(inplace=True)), pictures(1)
    extra: dict[str, Any] = {"directions": directions(mixed(1))} if objective_ == "direction" else {}
    # When
    plain = responses(layers, [0], recipe_of(objective=objective_, **extra), seen)
    negative = responses(layers, [0], recipe_of(objective=objective_, negative=True, **extra), seen)
    # Then
    assert torch.equal(negative.activation, -plain.pre_activation)
    assert torch.equal(negative.pre_activation, -plain.pre_activation)


def test_a_direction_is_the_weighted_sum_of_all_maps() -> None:
    # Given
    layers, seen, rows = network(nn.ReLU(inplace=True)), pictures(3), mixed(4)
    # When
    found = responses(layers, [2, 0, 2], recipe_of(objective="direction", directions=directions(rows)), seen)
    # Then
    for maps, got in ((maps_after(layers, seen), found.activation), (maps_before(layers, seen), found.pre_activation)):
        for picture, direction in enumerate([2, 0, 2]):
            wanted = sum(rows[direction, c] * maps[picture, c] for c in range(CHANNELS))
            np.testing.assert_allclose(got[picture], wanted, rtol=1e-4, atol=1e-4)


def test_channels_of_zero_weight_change_nothing_even_if_they_are_nan() -> None:
    # Given two directions with zero weights for channels 1 and 4
    rows = mixed(2)
    rows[:, [1, 4]] = 0.0
    rows[0, 2] = 0.0
    recipe = recipe_of(objective="direction", directions=directions(rows))
    layers, broken = network(), network()
    broken[2].weight[[1, 4]] = float("nan")  # type: ignore[operator]
    # When
    whole, partial = tiles_of(layers, [0, 1], recipe), tiles_of(broken, [0, 1], recipe)
    # Then
    for one, other in zip(whole, partial, strict=True):
        assert one.error == other.error == ""
        assert np.array_equal(one.pixels, other.pixels)
        assert one.activation == other.activation


@pytest.mark.parametrize("method", ["notebook", "fourier"])
def test_a_direction_of_one_channel_is_that_filters_tile(method: str) -> None:
    # Given directions of one channel each, whose number is the channel's
    layers, filters = network(), [6, 1, 3]
    rows = np.eye(CHANNELS, dtype=np.float32)
    # When
    tiles = tiles_of(layers, filters, recipe_of(method, objective="direction", directions=directions(rows)))
    # Then
    for tile, wanted in zip(tiles, tiles_of(layers, filters, recipe_of(method)), strict=True):
        assert_alike(tile, wanted)


def test_deepdream_is_the_mean_square_of_all_maps() -> None:
    # Given
    layers, seen = network(nn.ReLU(inplace=True)), pictures(2)
    # When
    found = responses(layers, [0, 0], recipe_of(objective="deepdream"), seen)
    # Then
    wanted = (maps_after(layers, seen).astype(np.float64) ** 2).mean(axis=1)
    np.testing.assert_allclose(found.activation, wanted, rtol=1e-4)
    assert torch.equal(found.pre_activation, found.activation)


@pytest.mark.parametrize("method", ["notebook", "fourier"])
@pytest.mark.parametrize("objective_", ["filter", "neuron", "direction"])
@pytest.mark.parametrize("negative", [False, True])
def test_a_batch_equals_its_tiles_rendered_alone(method: str, objective_: str, negative: bool) -> None:
    # Given
    layers, filters = network(), [4, 0, 7]
    extra: dict[str, Any] = {"directions": directions(mixed(8))} if objective_ == "direction" else {}
    recipe = recipe_of(method, objective=objective_, negative=negative, **extra)
    # When
    together = tiles_of(layers, filters, recipe)
    # Then
    for tile in together:
        (alone,) = tiles_of(layers, [tile.filter], recipe)
        assert_alike(tile, alone)
        assert tile.status == "live"


@pytest.mark.parametrize("objective_", ["filter", "neuron", "direction", "deepdream"])
def test_the_same_seed_gives_the_same_pixels_and_another_seed_gives_others(objective_: str) -> None:
    # Given
    layers = network()
    extra: dict[str, Any] = {"directions": directions(mixed(1))} if objective_ == "direction" else {}
    recipe = recipe_of("fourier", objective=objective_, **extra)
    # When
    (first,), (again,) = tiles_of(layers, [0], recipe), tiles_of(layers, [0], recipe)
    (other,) = tiles_of(layers, [0], recipe.model_copy(update={"seed": 4}))
    # Then
    assert np.array_equal(first.pixels, again.pixels)
    assert first.activation == again.activation
    assert not np.array_equal(first.pixels, other.pixels)


@pytest.mark.parametrize("objective_", ["filter", "neuron", "direction", "deepdream"])
def test_the_stored_activation_is_the_objective_on_the_stored_pixels(objective_: str) -> None:
    # Given
    layers, rows = network(), mixed(4)
    extra: dict[str, Any] = {"directions": directions(rows)} if objective_ == "direction" else {}
    filter_ = 0 if objective_ == "deepdream" else 3
    # When
    (tile,) = tiles_of(layers, [filter_], recipe_of(objective=objective_, **extra))
    # Then
    maps = layers[:AFTER](fed(tile.pixels))[0].numpy()
    wanted = {
        "filter": maps[3].mean(),
        "neuron": maps[3, 4, 4],
        "direction": np.tensordot(rows[3], maps, 1).mean(),
        "deepdream": np.square(maps).mean(),
    }
    assert maps.shape == (CHANNELS, 8, 8)
    assert tile.stored_activation == pytest.approx(float(wanted[objective_]), rel=1e-4)


def test_a_direction_of_inactive_channels_is_rescued_and_one_that_no_picture_activates_is_dead() -> None:
    # Given channel 0, active, channel 2, inactive on the start image, and channel 5, inactive on every image
    layers = network(nn.ReLU(inplace=True))
    norm = layers[3]
    assert isinstance(norm, nn.BatchNorm2d)
    start = fed(torch.full((1, 3, 20, 20), 138.0))
    norm.bias[0] = 50.0
    norm.bias[2] -= layers[:BEFORE](start)[0, 2].max() + 0.5
    norm.bias[5] = -1e9
    rows = np.zeros((3, CHANNELS), np.float32)
    rows[0, 2], rows[1, 5], rows[2, 0] = 1.0, 1.0, 2.0
    # When
    recipe = recipe_of(objective="direction", directions=directions(rows), steps=30, step_size=8.0)
    inactive, dead, live = tiles_of(layers, [0, 1, 2], recipe)
    # Then
    assert [tile.status for tile in (inactive, dead, live)] == ["rescued", "dead", "live"]
    assert inactive.activation > inactive.start_activation == 0
    assert dead.activation == 0
