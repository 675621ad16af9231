"""Tiles rendered on a GPU equal those of the CPU within the rounding errors of TF32 and bf16."""

import numpy as np
import pytest
import torch
from torch import fx, nn

from tests.recipes import RAW, recipe_of
from workers.contract.errors import DeviceFull
from workers.contract.recipe import Recipe
from workers.networks import devices, registry, tracing
from workers.rendering.render import render
from workers.rendering.tile import Tile
from workers.runtime import render_child

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

RECIPE = recipe_of(preprocess=RAW, size_px=48, steps=5, seed=1)

#: Convolutions on Ampere and later multiply in TF32, with a mantissa of ten bits; errors add up over layers and steps.
RELATIVE_TOLERANCE = 0.02


@pytest.fixture(scope="module")
def vgg16() -> tuple[nn.Module, fx.Graph]:
    """VGG16 with seeded random parameters, and its trace."""
    model = registry.build("vgg16", seed=7)
    return model, tracing.trace(model)


def tiles_on(
    device: str, network: tuple[nn.Module, fx.Graph], layer: str, filters: list[int], recipe: Recipe = RECIPE
) -> list[Tile]:
    model, trace = network
    try:
        return render(model.to(device), trace, layer, filters, recipe, torch.device(device))
    finally:
        model.to("cpu")


@pytest.mark.parametrize("layer", ["features.0", "features.10"])
def test_cpu_and_gpu_agree_on_activations_and_on_which_filters_are_dead(
    vgg16: tuple[nn.Module, fx.Graph], layer: str
) -> None:
    # Given
    filters = list(range(16))
    # When
    on_cpu, on_gpu = tiles_on("cpu", vgg16, layer, filters), tiles_on("cuda", vgg16, layer, filters)
    # Then
    for one, other in zip(on_cpu, on_gpu, strict=True):
        assert (one.filter, one.status, one.error) == (other.filter, other.status, other.error)
        assert other.start_activation == pytest.approx(one.start_activation, rel=RELATIVE_TOLERANCE, abs=0.05)
        assert other.activation == pytest.approx(one.activation, rel=RELATIVE_TOLERANCE, abs=0.05)


def test_a_dead_filters_tile_is_the_same_on_both(vgg16: tuple[nn.Module, fx.Graph]) -> None:
    # Given
    filters = list(range(32))
    bare = RECIPE.model_copy(update={"rescue": False})
    # When it is rendered without rescue
    on_cpu = tiles_on("cpu", vgg16, "features.0", filters, bare)
    on_gpu = {tile.filter: tile for tile in tiles_on("cuda", vgg16, "features.0", filters, bare)}
    # Then its picture is the start noise, which is drawn on the CPU for every device
    dead = [tile for tile in on_cpu if tile.status == "dead"]
    assert dead
    assert all(np.array_equal(tile.pixels, on_gpu[tile.filter].pixels) for tile in dead)


def test_the_gpus_name_is_recorded(vgg16: tuple[nn.Module, fx.Graph]) -> None:
    # Given / When
    (tile,) = tiles_on("cuda", vgg16, "features.0", [0])
    # Then
    assert tile.device == torch.cuda.get_device_name(0) == devices.describe(torch.device("cuda"))
    assert devices.available()[0] == "cuda:0"
    devices.check(torch.device("cuda:0"))


def test_a_tile_from_a_batch_is_the_tile_rendered_alone(vgg16: tuple[nn.Module, fx.Graph]) -> None:
    # Given / When
    together = tiles_on("cuda", vgg16, "features.10", list(range(8)))
    (alone,) = tiles_on("cuda", vgg16, "features.10", [5])
    # Then
    assert alone.activation == pytest.approx(together[5].activation, rel=RELATIVE_TOLERANCE, abs=0.05)


@pytest.mark.parametrize("layer", ["features.2", "features.17"])
def test_the_default_method_reaches_on_a_gpu_what_it_does_on_a_cpu(
    vgg16: tuple[nn.Module, fx.Graph], layer: str
) -> None:
    # Given a shallow layer, whose input is shifted, and a deep one, whose input is rotated too
    recipe = RECIPE.model_copy(update={"method": "fourier", "steps": 16, "step_size": 0.05})
    # When
    on_cpu, on_gpu = (tiles_on(device, vgg16, layer, list(range(8)), recipe) for device in ("cpu", "cuda"))
    # Then
    for one, other in zip(on_cpu, on_gpu, strict=True):
        assert (one.filter, one.error) == (other.filter, other.error)
        assert other.start_activation == pytest.approx(one.start_activation, rel=RELATIVE_TOLERANCE, abs=0.05)
    # Small differences grow during the optimisation, but the mean activation is the same.
    means = [np.mean([tile.activation for tile in tiles]) for tiles in (on_cpu, on_gpu)]
    assert means[1] == pytest.approx(means[0], rel=0.05)


def test_pictures_optimised_in_bf16_excite_their_filters_as_much(vgg16: tuple[nn.Module, fx.Graph]) -> None:
    # Given a device that supports bf16, which auto then takes
    if devices.precision("auto", torch.device("cuda")) != "bf16":
        pytest.skip("no bf16 on this device")
    # When the same tiles are made in both precisions
    auto = RECIPE.model_copy(update={"precision": "auto"})
    halves, wholes = (tiles_on("cuda", vgg16, "features.10", list(range(16)), recipe) for recipe in (auto, RECIPE))
    # Then each tile records its precision, and the activations agree on average; on CPUs their ratio is 0.99 or more
    assert {tile.precision for tile in halves} == {"bf16"}
    live = [(half.activation, whole.activation) for half, whole in zip(halves, wholes, strict=True) if whole.activation]
    assert live
    assert np.mean([half / whole for half, whole in live]) >= 0.97


def test_running_out_of_memory_is_the_error_device_full() -> None:
    # Given the size of the device's memory
    memory = torch.cuda.get_device_properties(0).total_memory
    # When a tensor larger than that is allocated
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2 * memory, dtype=torch.uint8, device="cuda")
    # Then the renderer converts the error to DeviceFull
    assert isinstance(render_child.failure(caught.value), DeviceFull)
