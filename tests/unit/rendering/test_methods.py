"""Every method with every objective gives finite tiles of a higher objective than the start image's."""

import itertools
from base64 import b64encode
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.recipes import recipe_of
from tests.unit.rendering.tiny import CHANNELS, network, tiles_of
from workers.contract.directions import Directions

METHODS = ["notebook", "fourier", "maco", "pixel"]


def extra(objective: str) -> dict[str, Any]:
    if objective != "direction":
        return {}
    rows = np.random.default_rng(2).normal(size=(4, CHANNELS)).astype("<f4")
    data = b64encode(rows.tobytes()).decode()
    return {"directions": Directions(count=4, channels=CHANNELS, base64=data)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("objective", ["filter", "neuron", "direction", "deepdream"])
def test_every_method_increases_every_objective(method: str, objective: str) -> None:
    # Given
    layers = network(nn.SiLU())
    # The phases hardly change the mean of a shallow layer's map.
    further: dict[str, Any] = {"steps": 60, "step_size": 0.05} if method == "maco" else {}
    for negative, grey in itertools.product((False, True), repeat=2):
        recipe = recipe_of(
            method, objective=objective, negative=negative, grey=grey, height_px=17, width_px=22,
            **extra(objective), **further,
        )  # fmt: skip
        # When
        (tile,) = tiles_of(layers, [0 if objective == "deepdream" else 3], recipe)
        # Then the activation has increased; a negative objective is recorded with its sign changed
        assert (tile.error, tile.status) == ("", "live")
        assert tile.pixels.shape == (17, 22, 3)
        assert tile.pixels.dtype == np.uint8
        assert tile.pixels.std() > 0
        assert tile.activation > tile.start_activation
        assert np.isfinite([tile.start_activation, tile.activation, tile.stored_activation]).all()


@pytest.mark.parametrize("method", METHODS)
def test_all_options_work_together(method: str) -> None:
    # Given
    recipe = recipe_of(
        method, objective="neuron", negative=True, diversity=2, grey=True, height_px=17, width_px=22, frames=3,
        total_variation=0.1, l2=0.1, blur=0.1, tap="conv", octaves=2 if method == "notebook" else 1,
    )  # fmt: skip
    # When
    tiles = tiles_of(network(), [3, 5], recipe)
    # Then
    for tile in tiles:
        assert tile.error == ""
        assert tile.pixels.shape == (17, 46, 3) == (*recipe.tile_px, 3)
        assert len(tile.frames) == 3
        assert np.array_equal(tile.frames[-1], tile.pixels)
        assert tile.activation > tile.start_activation


@pytest.mark.parametrize("objective", ["filter", "neuron", "direction", "deepdream"])
def test_the_precision_is_recorded_and_changes_the_result_little(objective: str) -> None:
    # Given
    layers = network()
    recipe = recipe_of("fourier", objective=objective, **extra(objective))
    filters = [0] if objective == "deepdream" else [0, 3]
    # When
    whole = tiles_of(layers, filters, recipe.model_copy(update={"precision": "fp32"}))
    half = tiles_of(layers, filters, recipe.model_copy(update={"precision": "bf16"}))
    # Then
    for one, other in zip(whole, half, strict=True):
        assert (one.precision, other.precision) == ("fp32", "bf16")
        assert one.start_activation == other.start_activation  # computed in fp32 in both
        assert other.activation == pytest.approx(one.activation, rel=0.1, abs=0.02)
        assert other.activation > other.start_activation


def test_diversity_in_bf16_keeps_the_networks_parameters_as_they_are() -> None:
    # Given
    layers = network()
    before = {name: tensor.clone() for name, tensor in layers.state_dict().items()}
    # When
    (tile,) = tiles_of(layers, [3], recipe_of("fourier", diversity=2, precision="bf16"))
    # Then
    assert tile.precision == "bf16"
    assert tile.error == ""
    assert tile.activation > tile.start_activation
    assert all(torch.equal(before[name], tensor) for name, tensor in layers.state_dict().items())
