"""The penalties against NumPy: total variation, distance from grey, and the detail that a blur removes."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from tests.recipes import recipe_of
from tests.unit.rendering.tiny import AFTER, CPU, LAYER, fed, network, pictures, tap_of, tiles_of
from workers.rendering.methods import render_batch
from workers.rendering.objectives import objective
from workers.rendering.regularizers import is_regularised, penalty
from workers.rendering.rescue import AscentLoss
from workers.rendering.rng import PictureRng

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIZES = [(9, 14), (24, 24)]


def total_variation(picture: "NDArray[np.float64]") -> float:
    """Of a picture (C, H, W) in 0..1."""
    channels, height, width = picture.shape
    down = [abs(picture[c, y + 1, x] - picture[c, y, x])
            for c in range(channels) for y in range(height - 1) for x in range(width)]  # fmt: skip
    right = [abs(picture[c, y, x + 1] - picture[c, y, x])
             for c in range(channels) for y in range(height) for x in range(width - 1)]  # fmt: skip
    return float(np.mean(down) + np.mean(right))


def distance_from_grey(picture: "NDArray[np.float64]") -> float:
    return float(np.mean((picture - 0.5) ** 2))


def blurred_away(picture: "NDArray[np.float64]") -> float:
    channels, height, width = picture.shape
    removed = [
        picture[c, y, x] - picture[c, y - 1 : y + 2, x - 1 : x + 2].mean()
        for c in range(channels)
        for y in range(1, height - 1)
        for x in range(1, width - 1)
    ]
    return float(np.mean(np.square(removed)))


OF_UNIT = {"total_variation": total_variation, "l2": distance_from_grey, "blur": blurred_away}


@pytest.mark.parametrize("size_px", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OF_UNIT)
def test_each_penalty_equals_its_definition(name: str, channels: int, size_px: tuple[int, int]) -> None:
    # Given
    seen = pictures(2, size_px)[:, :channels]
    # When
    recipe = recipe_of().model_copy(update={name: 2.5})
    found = penalty(seen, recipe)
    # Then
    wanted = [2.5 * OF_UNIT[name](picture.double().numpy() / 255) for picture in seen]
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert is_regularised(recipe)


def test_penalties_add_up() -> None:
    # Given
    seen = pictures(2, (12, 10))
    weights: dict[str, Any] = {"total_variation": 0.5, "l2": 3.0, "blur": 7.0}
    # When
    found = penalty(seen, recipe_of(**weights))
    # Then
    one = seen.double().numpy() / 255
    wanted = [sum(weight * OF_UNIT[name](picture) for name, weight in weights.items()) for picture in one]
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_grey_has_no_penalty() -> None:
    # Given / When
    found = penalty(torch.full((1, 3, 8, 8), 127.5), recipe_of(total_variation=1.0, l2=1.0, blur=1.0))
    # Then
    assert found.abs().max() < 1e-12


def test_zero_weights_are_no_penalty() -> None:
    # Given / When / Then
    assert not is_regularised(recipe_of())
    assert torch.equal(penalty(pictures(3), recipe_of()), torch.zeros(3))


@pytest.mark.parametrize("method", ["notebook", "fourier"])
def test_a_negligible_weight_changes_nothing_and_a_larger_one_does(method: str) -> None:
    # Given
    layers = network()
    # When
    (plain,) = tiles_of(layers, [3], recipe_of(method))
    (faint,) = tiles_of(layers, [3], recipe_of(method, total_variation=1e-30, l2=1e-30, blur=1e-30))
    (heavy,) = tiles_of(layers, [3], recipe_of(method, total_variation=1.0))
    # Then
    assert np.array_equal(plain.pixels, faint.pixels)
    assert plain.activation == faint.activation
    assert not np.array_equal(plain.pixels, heavy.pixels)


def test_the_objective_is_the_activation_minus_the_penalty_in_units_of_the_activation() -> None:
    # Given
    layers, seen = network(), pictures(3)
    look = objective(tap_of(layers), [3, 0, 3], recipe_of(), CPU)
    weights = torch.tensor([0.25, 0.5, 4.0])
    # When
    loss = AscentLoss(look, seen, rescue=False, restarted=False, penalty=lambda _: weights).loss(seen)
    # Then
    maps = layers[:AFTER](fed(seen))
    activation = torch.stack([maps[b, f].mean() for b, f in enumerate([3, 0, 3])])
    torch.testing.assert_close(loss, activation * (1 - weights), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["notebook", "fourier", "maco", "pixel"])
def test_total_variation_falls_with_its_weight(method: str) -> None:
    # Given
    tap, stream = tap_of(network()), PictureRng(seed=3, restart=0, layer=LAYER, filter=3)
    found = []
    for weight in (0.0, 0.1, 0.3):
        recipe = recipe_of(method, total_variation=weight, steps=12)
        # When
        made = render_batch(objective(tap, [3], recipe, CPU), [stream], recipe, tap, CPU)
        # Then it falls in the picture before the notebook's method normalises its contrast
        found.append(total_variation(made.ascent.pictures[0].double().numpy()))
    assert found[0] > found[1] > found[2]


def test_distance_from_grey_falls_with_its_weight() -> None:
    # Given
    layers = network()
    # When
    tiles = [tiles_of(layers, [3], recipe_of("fourier", l2=weight, steps=30))[0] for weight in (0.0, 30.0, 1000.0)]
    # Then
    found = [distance_from_grey(tile.pixels / 255.0) for tile in tiles]
    assert found[0] > found[1] > found[2]


def test_fine_detail_falls_with_the_weight_of_the_blur() -> None:
    # Given
    layers = network()
    # When
    tiles = [tiles_of(layers, [3], recipe_of("pixel", blur=weight, steps=30))[0] for weight in (0.0, 30.0, 1000.0)]
    # Then
    found = [blurred_away(tile.pixels.transpose(2, 0, 1) / 255.0) for tile in tiles]
    assert found[0] > found[1] > found[2]


def test_a_batch_that_is_penalised_equals_its_tiles_rendered_alone() -> None:
    # Given
    layers = network()
    recipe = recipe_of("fourier", total_variation=0.5, l2=0.5, blur=0.5)
    # When
    together = tiles_of(layers, [5, 1, 2], recipe)
    # Then
    for tile in together:
        (alone,) = tiles_of(layers, [tile.filter], recipe)
        # Adam scales float noise to whole steps where the gradient is nearly zero.
        assert np.abs(tile.pixels.astype(int) - alone.pixels.astype(int)).mean() < 1
        assert tile.activation == pytest.approx(alone.activation, rel=1e-4)


def test_a_penalised_tile_is_bit_identical_whatever_the_other_filters_of_its_batch() -> None:
    # Given
    layers = network()
    recipe = recipe_of("fourier", total_variation=0.5, l2=0.5, blur=0.5)
    # When batches of the same size have the same filter in the middle
    one, other = (tiles_of(layers, filters, recipe)[1] for filters in ([0, 3, 7], [2, 3, 4]))
    # Then
    assert np.array_equal(one.pixels, other.pixels)
    assert one.activation == other.activation
