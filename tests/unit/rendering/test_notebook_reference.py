"""The notebook method against a second, plain implementation that shares no code with ours.

The reference is written the way the notebook is: one filter at a time, with the unsliced layer and without batches.
"""

import copy
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import fx, nn

from producer.collector.contact_sheet import sheet
from tests.recipes import RAW, recipe_of
from tests.unit.rendering.ascents import filter_objective, optimise
from tests.unit.rendering.tiny import randomise
from workers.contract.job import Grid
from workers.contract.recipe import Recipe
from workers.networks import tracing
from workers.networks.layer_extractor import LayerExtractor
from workers.rendering import images
from workers.rendering.render import render
from workers.rendering.rng import PictureRng
from workers.rendering.tile import Tile

if TYPE_CHECKING:
    from numpy.typing import NDArray

CPU = torch.device("cpu")

#: The notebook feeds raw pixels and rescues no filters.
BARE: dict[str, Any] = {"preprocess": RAW, "rescue": False}

#: A sliced convolution adds the same products in another order than the whole one, and values within float noise of a
#: whole number are truncated to either neighbour. So a small share of the pixels may differ by one grey level.
MAX_GREY_LEVELS = 1
MAX_SHARE = 0.01


def reference_start(layer: str, filter_: int, size_px: int, seed: int) -> "NDArray[np.float32]":
    bits = np.random.PCG64(np.random.SeedSequence([seed, 0, filter_, zlib.crc32(layer.encode())]))
    noise = np.random.Generator(bits).random((size_px, size_px, 3), dtype=np.float32)
    return noise * 20 + 128


def reference_optimise(
    network: nn.Module, filter_: int, start: torch.Tensor, steps: int, step_size: float
) -> torch.Tensor:
    picture = start  # (1, 3, H, W)
    for _ in range(steps):
        picture = picture.detach().requires_grad_(True)
        network(picture)[:, filter_, :, :].mean().backward()
        gradient = picture.grad
        assert gradient is not None
        gradient = gradient / (torch.sqrt(torch.mean(torch.square(gradient))) + 1e-5)
        picture = picture.detach() + step_size * gradient
    return picture.detach()


def reference_deprocess(picture: "NDArray[np.float32]") -> "NDArray[np.uint8]":
    x = (picture - np.mean(picture)) / (np.std(picture) + 1e-5) * 0.1 + 0.5
    pixels: NDArray[np.uint8] = np.trunc(np.clip(x, 0, 1) * 255).astype(np.uint8)
    return pixels


def reference_tile(network: nn.Module, layer: str, filter_: int, recipe: Recipe) -> "NDArray[np.uint8]":
    start = reference_start(layer, filter_, recipe.height_px, recipe.seed)
    planes = torch.from_numpy(start.transpose(2, 0, 1)[None].copy())
    result = reference_optimise(network, filter_, planes, recipe.steps, recipe.step_size)
    return reference_deprocess(result[0].numpy().transpose(1, 2, 0))


def reference_sheet(tiles: "list[NDArray[np.uint8]]", size_px: int, margin_px: int) -> "NDArray[np.uint8]":
    side = 8 * size_px + 7 * margin_px
    results = np.zeros((side, side, 3), np.uint8)
    for i in range(8):
        for j in range(8):
            down, right = i * (size_px + margin_px), j * (size_px + margin_px)
            results[down : down + size_px, right : right + size_px] = tiles[i + 8 * j]
    return results


def live_filters(network: nn.Module, layer: str, channels: int, size_px: int, seed: int) -> list[int]:
    """Filters that their own start noise activates in the plain network."""
    starts = np.stack([reference_start(layer, filter_, size_px, seed) for filter_ in range(channels)])
    with torch.no_grad():
        maps = network(torch.from_numpy(starts.transpose(0, 3, 1, 2).copy()))
    return [filter_ for filter_ in range(channels) if float(maps[filter_, filter_].mean()) > 0]


def assert_same_pixels(got: "NDArray[np.uint8]", wanted: "NDArray[np.uint8]") -> None:
    difference = np.abs(got.astype(int) - wanted.astype(int))
    assert difference.max() <= MAX_GREY_LEVELS
    assert (difference > 0).mean() <= MAX_SHARE


def small_network(dtype: torch.dtype = torch.float32, *, smooth: bool = False) -> nn.Sequential:
    """Three layers. ``smooth`` is for single precision, in which float noise decides a ReLU or a maximum near a tie,
    so that pictures diverge."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        network = nn.Sequential(
            nn.Conv2d(3, 64, 3, padding=1),
            nn.Softplus(0.05) if smooth else nn.ReLU(inplace=True),
            nn.AvgPool2d(2) if smooth else nn.MaxPool2d(2),
            nn.Conv2d(64, 24, 3, padding=1),
            nn.BatchNorm2d(24),
            nn.Softplus(0.05) if smooth else nn.ReLU(inplace=True),
            nn.Conv2d(24, 8, 3),
        )
        randomise(network[4])
    return network.eval().requires_grad_(False).to(dtype)


@pytest.mark.parametrize(("layer", "end"), [("0", 2), ("3", 6), ("6", 7)])
def test_forty_steps_in_double_precision_equal_the_reference(layer: str, end: int) -> None:
    # Given
    network = small_network(torch.float64)
    filters = [5, 0, 5]
    starts = np.stack([reference_start(layer, filter_, 20, 3) for filter_ in filters]).transpose(0, 3, 1, 2)
    start = torch.from_numpy(starts.astype(np.float64))
    # When
    tap = LayerExtractor(network, tracing.trace(network), layer, "activation").slice(torch.tensor(filters))
    result = optimise(filter_objective(tap), start, steps=40)
    # Then
    wanted = [reference_optimise(network[:end], f, start[b : b + 1], 40, 1.0) for b, f in enumerate(filters)]
    torch.testing.assert_close(result.pictures, torch.cat(wanted), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("layer", "end"), [("0", 2), ("3", 6), ("6", 7)])
def test_tiles_of_a_small_network_equal_the_reference(layer: str, end: int) -> None:
    # Given
    network = small_network(smooth=True)
    recipe = recipe_of(**BARE, size_px=32, steps=10)
    filters = [7, 0, 2, 5, 3]
    # When
    tiles = render(network, tracing.trace(network), layer, filters, recipe, CPU)
    # Then
    assert [tile.status for tile in tiles] == ["live"] * len(filters)
    for tile in tiles:
        assert_same_pixels(tile.pixels, reference_tile(network[:end], layer, tile.filter, recipe))


@pytest.mark.parametrize(
    ("layer", "end", "channels", "size_px", "steps", "step_size"),
    [
        ("features.0", 2, 64, 48, 6, 1.0),
        ("features.0", 2, 64, 33, 4, 2.5),
        ("features.10", 12, 32, 32, 2, 1.0),
    ],
)
def test_tiles_of_vgg16_equal_the_reference(
    vgg16: tuple[nn.Module, fx.Graph], layer: str, end: int, channels: int, size_px: int, steps: int, step_size: float
) -> None:
    # Given
    model, trace = vgg16
    features = model.get_submodule("features")
    assert isinstance(features, nn.Sequential)
    recipe = recipe_of(**BARE, size_px=size_px, steps=steps, step_size=step_size)
    filters = live_filters(features[:end], layer, channels, size_px, recipe.seed)[:4]
    # When
    tiles = render(model, trace, layer, filters, recipe, CPU)
    # Then
    assert len(filters) == 4
    for tile in tiles:
        assert_same_pixels(tile.pixels, reference_tile(features[:end], layer, tile.filter, recipe))


def test_deep_in_vgg16_the_ascent_in_double_precision_equals_the_reference(vgg16: tuple[nn.Module, fx.Graph]) -> None:
    # Given ten convolutions, which in single precision amplify rounding errors to several grey levels
    features = copy.deepcopy(vgg16[0].get_submodule("features")).double()
    assert isinstance(features, nn.Sequential)
    filters = live_filters(vgg16[0].features[:26], "features.24", 32, 32, 3)[:2]  # type: ignore[index, arg-type]
    starts = np.stack([reference_start("features.24", filter_, 32, 3) for filter_ in filters]).transpose(0, 3, 1, 2)
    start = torch.from_numpy(starts.astype(np.float64))
    # When
    tap = LayerExtractor(features, tracing.trace(features), "24", "activation").slice(torch.tensor(filters))
    result = optimise(filter_objective(tap), start, steps=3)
    # Then
    wanted = [reference_optimise(features[:26], f, start[b : b + 1], 3, 1.0) for b, f in enumerate(filters)]
    torch.testing.assert_close(result.pictures, torch.cat(wanted), rtol=0, atol=1e-5)


def test_activations_are_the_means_of_the_reference_maps() -> None:
    # Given
    network = small_network()
    recipe = recipe_of(**BARE, size_px=24, steps=5)
    (filter_,) = live_filters(network[:2], "0", 64, recipe.height_px, recipe.seed)[:1]
    start = torch.from_numpy(reference_start("0", filter_, 24, 3).transpose(2, 0, 1)[None].copy())
    # When
    (tile,) = render(network, tracing.trace(network), "0", [filter_], recipe, CPU)
    # Then
    end = reference_optimise(network[:2], filter_, start, 5, 1.0)
    assert tile.start_activation == pytest.approx(float(network[:2](start)[0, filter_].mean()), rel=1e-5)
    assert tile.activation == pytest.approx(float(network[:2](end)[0, filter_].mean()), rel=1e-5)


def test_the_start_image_equals_the_reference() -> None:
    # Given
    layer, filter_, size_px, seed = "features.17", 200, 40, 9
    # When
    noise = images.start_noise(PictureRng(seed=seed, restart=0, layer=layer, filter=filter_), (size_px, size_px))
    # Then
    assert np.array_equal(images.notebook_start(noise), reference_start(layer, filter_, size_px, seed))


def test_deprocess_equals_the_reference() -> None:
    # Given
    generator = np.random.default_rng(5)
    pictures = generator.normal(140, 30, (20, 16, 16, 3)).astype(np.float32)
    for picture in pictures:
        # When
        pixels = images.deprocess(picture.copy())
        # Then
        assert_same_pixels(pixels, reference_deprocess(picture))


@pytest.mark.parametrize("size_px", [9, 64])
def test_the_sheet_equals_the_notebooks(size_px: int) -> None:
    # Given
    generator = np.random.default_rng(1)
    tiles = [generator.integers(0, 256, (size_px, size_px, 3), np.uint8) for _ in range(64)]
    # When
    parametrization = sheet(
        [(tile, "live") for tile in tiles], Grid(rows=8, columns=8, margin_px=5), (size_px, size_px)
    )
    # Then
    assert np.array_equal(parametrization, reference_sheet(tiles, size_px, 5))


def test_a_rendered_sheet_of_64_filters_equals_the_reference_at_live_filters() -> None:
    # Given
    network = small_network()
    recipe = recipe_of(**BARE, size_px=16, steps=3)
    # When
    tiles: list[Tile] = render(network, tracing.trace(network), "0", list(range(64)), recipe, CPU)
    parametrization = sheet([(tile.pixels, "live") for tile in tiles], Grid(rows=8, columns=8, margin_px=5), (16, 16))
    # Then
    live = live_filters(network[:2], "0", 64, 16, recipe.seed)
    wanted = reference_sheet([reference_tile(network[:2], "0", filter_, recipe) for filter_ in range(64)], 16, 5)
    assert [tile.filter for tile in tiles if tile.status == "live"] == live
    assert_same_pixels(parametrization, wanted)


def test_filters_active_on_the_start_image_are_bit_identical_with_and_without_rescue() -> None:
    # Given
    network = small_network()
    bare, rescuing = (recipe_of(preprocess=RAW, size_px=16, steps=3, rescue=rescue) for rescue in (False, True))
    filters = list(range(64))
    # When
    without = render(network, tracing.trace(network), "0", filters, bare, CPU)
    with_rescue = render(network, tracing.trace(network), "0", filters, rescuing, CPU)
    # Then
    live = live_filters(network[:2], "0", 64, 16, bare.seed)
    assert 0 < len(live) < 64
    for filter_ in live:
        one, other = without[filter_], with_rescue[filter_]
        assert one.status == other.status == "live"
        assert np.array_equal(one.pixels, other.pixels)
        assert (one.start_activation, one.activation, one.restarts) == (
            other.start_activation,
            other.activation,
            other.restarts,
        )
