"""From a network, a layer and filters to tiles: batches, dead filters, broken weights."""

import numpy as np
import pytest
import torch
from torch import fx, nn

from tests.recipes import HALVES, RAW, recipe_of
from tests.unit.networks.test_layer_extractor import give_every_channel_its_own_norm
from tests.unit.rendering.tiny import assert_alike
from workers.contract.errors import UnknownLayer
from workers.contract.recipe import Recipe
from workers.networks import registry, tracing
from workers.rendering import images
from workers.rendering.render import render
from workers.rendering.rng import PictureRng
from workers.rendering.tile import Tile

CPU = torch.device("cpu")
RECIPE = recipe_of(preprocess=RAW, size_px=32, steps=4, seed=1)


def network(*, dead: int | None = None, broken: int | None = None, normed: bool = False) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, last = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 16, 3)
    assert last.bias is not None
    last.bias.data.fill_(50.0)
    if dead is not None:
        last.bias.data[dead] = -1e6
    norm = nn.BatchNorm2d(16)
    if broken is not None:
        (norm if normed else last).weight.data[broken] = float("nan")
    middle = (norm,) if normed else ()
    return nn.Sequential(first, nn.Softplus(), last, *middle, nn.ReLU(inplace=True)).eval().requires_grad_(False)


def tiles_of(model: nn.Module, filters: list[int], layer: str = "2", recipe: Recipe = RECIPE) -> list[Tile]:
    return render(model, tracing.trace(model), layer, filters, recipe, CPU)


def test_a_tile_has_its_filter_pixels_and_activations() -> None:
    # Given
    model = network()
    # When
    tiles = tiles_of(model, [9, 2])
    # Then
    assert [tile.filter for tile in tiles] == [9, 2]
    for tile in tiles:
        assert tile.pixels.shape == (32, 32, 3)
        assert tile.pixels.dtype == np.uint8
        assert tile.pixels.std() > 0
        assert (tile.status, tile.error, tile.device) == ("live", "", "cpu")
        assert tile.activation > tile.start_activation > 0
        assert tile.seconds > 0


def test_a_batch_of_eight_equals_eight_batches_of_one() -> None:
    # Given
    model = network()
    filters = [3, 14, 0, 7, 8, 9, 1, 15]
    # When
    together = tiles_of(model, filters)
    alone = [tiles_of(model, [filter_])[0] for filter_ in filters]
    # Then
    for one, other in zip(together, alone, strict=True):
        assert_alike(one, other, rel=1e-4)


def test_a_batch_of_eight_in_vgg16_equals_eight_batches_of_one(vgg16: tuple[nn.Module, fx.Graph]) -> None:
    # Given
    model, trace = vgg16
    filters = [3, 40, 0, 7, 63, 9, 21, 33]
    # When
    together = render(model, trace, "features.2", filters, RECIPE, CPU)
    alone = [render(model, trace, "features.2", [filter_], RECIPE, CPU)[0] for filter_ in filters]
    # Then
    for one, other in zip(together, alone, strict=True):
        assert_alike(one, other, rel=1e-4)


@pytest.fixture(
    scope="module",
    params=[
        ("vgg16", "features.10"),  # after a convolution by Winograd's algorithm
        ("inception_v3", "Mixed_6b.branch7x7_2.conv"),
        ("resnet18", "layer2.0.conv2"),
        ("efficientnet_lite0", "blocks.2.0.conv_pw"),
        ("efficientnet_lite0", "blocks.2.0.conv_dw"),  # depthwise, with a gradient override in the layers before it
        ("resnext50_32x4d", "layer2.0.conv2"),  # grouped
    ],
    ids=lambda param: "-".join(param),
)
def real_layer(request: pytest.FixtureRequest) -> tuple[nn.Module, fx.Graph, str]:
    """A network with random parameters, its trace, and the name of a layer; built once for all methods."""
    name, layer = request.param
    model = registry.build(name, seed=2)
    give_every_channel_its_own_norm(model)
    return model, tracing.trace(model), layer


@pytest.mark.parametrize(("method", "step_size"), [("notebook", 1.0), ("fourier", 0.05)])
def test_a_batch_in_a_real_network_equals_batches_of_one(
    real_layer: tuple[nn.Module, fx.Graph, str], method: str, step_size: float
) -> None:
    # Given a batch in which one filter comes twice
    model, trace, layer = real_layer
    channels = int(model.get_submodule(layer).out_channels)  # type: ignore[arg-type]
    recipe = recipe_of(method, size_px=80, steps=3, seed=1, step_size=step_size, precision="auto")
    filters = [3, channels - 1, 0, 7, 3, 9]
    # When
    together = render(model, trace, layer, filters, recipe, CPU)
    alone = [render(model, trace, layer, [filter_], recipe, CPU)[0] for filter_ in filters]
    # Then they differ by float noise alone, which Adam scales to a grey level where the gradient is nearly zero
    levels = 0.1 if method == "notebook" else 3.0
    for one, other in zip(together, alone, strict=True):
        assert (one.filter, one.status, one.restarts, one.error) == (other.filter, other.status, other.restarts, "")
        assert one.start_activation == pytest.approx(other.start_activation, rel=1e-4)
        assert one.activation == pytest.approx(other.activation, rel=5e-3)
        assert float(np.abs(one.pixels.astype(int) - other.pixels.astype(int)).mean()) < levels
    # And the tiles of two filters differ by much more
    assert float(np.abs(together[0].pixels.astype(int) - together[1].pixels.astype(int)).mean()) > 5


def test_the_order_of_the_filters_does_not_matter() -> None:
    # Given
    model = network()
    filters = [3, 14, 0, 7]
    # When
    forward, backward = tiles_of(model, filters), tiles_of(model, filters[::-1])
    # Then
    for one, other in zip(forward, backward[::-1], strict=True):
        assert_alike(one, other, rel=1e-4)


def test_a_repeated_filter_gives_the_same_tile_twice() -> None:
    # Given
    model = network()
    # When
    first, other, again = tiles_of(model, [5, 2, 5])
    # Then
    assert_alike(first, again, rel=1e-4)
    assert not np.array_equal(first.pixels, other.pixels)


def test_rendering_again_gives_the_same_pixels() -> None:
    # Given
    model = network()
    # When
    first, second = tiles_of(model, [5, 2]), tiles_of(model, [5, 2])
    # Then
    assert all(np.array_equal(one.pixels, other.pixels) for one, other in zip(first, second, strict=True))


def test_the_activation_increases_with_the_steps() -> None:
    # Given
    model = network()
    # When
    ends = [
        tiles_of(model, [4], recipe=RECIPE.model_copy(update={"steps": steps}))[0].activation for steps in (1, 3, 9)
    ]
    # Then
    assert ends == sorted(ends)
    assert ends[0] < ends[-1]


@pytest.mark.parametrize("change", [{"seed": 2}, {"steps": 9}, {"step_size": 3.0}])
def test_seed_steps_and_step_size_change_the_tile(change: dict[str, object]) -> None:
    # Given
    model = network()
    # When
    plain = tiles_of(model, [4])[0]
    changed = tiles_of(model, [4], recipe=RECIPE.model_copy(update=change))[0]
    # Then
    assert plain.activation != changed.activation


def test_the_network_is_fed_the_preprocessed_picture() -> None:
    # Given
    model = network()
    recipe = RECIPE.model_copy(update={"preprocess": HALVES})
    # When
    (tile,) = tiles_of(model, [4], recipe=recipe)
    # Then
    noise = images.start_noise(PictureRng(seed=1, restart=0, layer="2", filter=4), (32, 32))
    fed = torch.from_numpy((noise * 20 + 128) / 127.5 - 1).permute(2, 0, 1)[None]
    assert tile.start_activation == pytest.approx(float(model(fed)[0, 4].mean()), rel=1e-4)


def test_without_rescue_a_dead_filter_is_marked_and_its_picture_is_the_start_noise() -> None:
    # Given a ReLU after a bias so negative that no picture activates it
    model = network(dead=3)
    # When
    before, dead, after = tiles_of(model, [2, 3, 4], recipe=RECIPE.model_copy(update={"rescue": False}))
    # Then
    start = images.notebook_start(images.start_noise(PictureRng(seed=1, restart=0, layer="2", filter=3), (32, 32)))
    assert (dead.status, dead.error) == ("dead", "")
    assert (dead.start_activation, dead.activation) == (0, 0)
    assert np.array_equal(dead.pixels, images.deprocess(start))
    assert before.status == after.status == "live"
    assert [tile.restarts for tile in (before, dead, after)] == [0, 0, 0]


def test_a_dead_filter_is_live_at_the_output_of_its_convolution() -> None:
    # Given
    model = network(dead=3)
    # When
    (tile,) = tiles_of(model, [3], recipe=RECIPE.model_copy(update={"tap": "conv"}))
    # Then
    assert tile.status == "live"
    assert tile.activation > tile.start_activation


def test_a_filter_of_nan_weights_has_an_error_and_no_picture() -> None:
    # Given
    model = network(broken=3)
    # When
    (tile,) = tiles_of(model, [3])
    # Then
    assert "not a finite number" in tile.error
    assert "--step-size" in tile.error
    assert tile.pixels.shape == (32, 32, 3)
    assert not tile.pixels.any()


@pytest.mark.parametrize("normed", [False, True])
def test_a_filter_of_nan_weights_changes_no_other_tile_of_its_batch(normed: bool) -> None:
    # Given one filter whose convolution, or whose batch-norm, holds NaN
    model = network(broken=3, normed=normed)
    # When
    before, broken, after = tiles_of(model, [2, 3, 4])
    # Then
    assert broken.error
    for tile in (before, after):
        assert tile.error == ""
        assert_alike(tile, tiles_of(model, [tile.filter])[0], rel=1e-4)


def test_nan_weights_in_an_earlier_layer_are_an_error_of_every_tile() -> None:
    # Given
    model = network()
    model[0].weight.data.fill_(float("nan"))  # type: ignore[operator]
    # When
    tiles = tiles_of(model, [0, 1])
    # Then
    assert all(tile.error for tile in tiles)


def test_an_unknown_layer_is_named() -> None:
    # Given / When / Then
    with pytest.raises(UnknownLayer, match="conv9"):
        tiles_of(network(), [0], layer="conv9")


def test_the_demo_network_is_rendered_from_its_first_to_its_last_layer() -> None:
    # Given
    model = registry.build("efficientnet_lite0", seed=1)
    recipe = RECIPE.model_copy(update={"preprocess": HALVES, "steps": 2})
    # When / Then
    trace = tracing.trace(model)
    for layer in ("conv_stem", "blocks.3.1.conv_dw", "conv_head"):
        for tile in render(model, trace, layer, [0, 5], recipe, CPU):
            assert tile.error == ""
