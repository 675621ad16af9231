"""Dead-filter rescue: filters that are zero on the start image are rescued if any picture activates them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.recipes import recipe_of
from tests.unit.rendering.ascents import optimise, optimise_parametrization
from workers.contract.recipe import Recipe
from workers.networks import registry, tracing
from workers.networks.gradient_override import GradientOverride
from workers.networks.layer_extractor import LayerExtractor
from workers.rendering import images
from workers.rendering.objectives import LayerResponse
from workers.rendering.parametrization import Parametrization, fourier_parametrization, longest_wave_px
from workers.rendering.render import MAX_RESTARTS, render
from workers.rendering.rng import PictureRng
from workers.rendering.tile import Tile
from workers.rendering.transforms import Transforms

CPU = torch.device("cpu")
NOTEBOOK = recipe_of("notebook", size_px=24, steps=16, step_size=8.0, seed=1)
FOURIER = recipe_of("fourier", size_px=24, steps=24, step_size=0.33, seed=1)

both_methods = pytest.mark.parametrize("recipe", [NOTEBOOK, FOURIER], ids=["notebook", "fourier"])


def frozen(make: Callable[[], nn.Module]) -> nn.Module:
    """The network with seeded random parameters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return make().eval().requires_grad_(False)


def excitable(model: nn.Module, bias: dict[int, float]) -> nn.Module:
    """The network with biases set in layer "0", and its weights such that a brighter picture excites every filter.

    The mean of a convolution's map depends on the picture's mean colour alone, for which random weights nearly cancel.
    """
    conv = model.get_submodule("0")
    assert isinstance(conv, nn.Conv2d)
    conv.weight.data += 0.1
    if conv.bias is not None:
        conv.bias.data.fill_(0.5)
        for channel, value in bias.items():
            conv.bias.data[channel] = value
    return model


def one_layer(bias: dict[int, float], *, inplace: bool = True) -> nn.Module:
    """Layer "0": on the grey start image a filter is active with a bias of 0.5, and zero with one below -0.5."""
    made = frozen(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=inplace)))
    return excitable(made, bias)


def depthwise(bias: dict[int, float], *, shift: float = 0.0, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    """Layer "2": a depthwise convolution whose filter c has channel c of layer "0" as its only input."""
    made = frozen(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3), activation(inplace=True), nn.Conv2d(8, 8, 3, groups=8), activation(inplace=True)
        )
    )
    last = made.get_submodule("2")
    assert isinstance(last, nn.Conv2d)
    last.weight.data.abs_()
    assert last.bias is not None
    last.bias.data.fill_(shift)
    return excitable(made, bias)


def normed(gain: dict[int, float], variance: dict[int, float], shift: float = 0.5) -> nn.Module:
    made = frozen(lambda: nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()))
    norm = made.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    norm.bias.data.fill_(shift)
    for channel, value in gain.items():
        norm.weight.data[channel] = value
    for channel, value in variance.items():
        norm.running_var[channel] = value
    return excitable(made, {})


def tiles_of(model: nn.Module, filters: list[int], recipe: Recipe, layer: str = "0") -> list[Tile]:
    return render(model, tracing.trace(model), layer, filters, recipe, CPU)


def changed(recipe: Recipe, **change: object) -> Recipe:
    return recipe.model_copy(update=change)


def assert_alike(one: Tile, other: Tile) -> None:
    """Equal up to float noise."""
    assert (one.filter, one.status, one.restarts, one.error) == (other.filter, other.status, other.restarts, "")
    assert one.activation == pytest.approx(other.activation, rel=1e-4)
    difference = np.abs(one.pixels.astype(int) - other.pixels.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 0.01


@both_methods
def test_a_dead_filter_that_a_picture_can_excite_is_rescued(recipe: Recipe) -> None:
    # Given a filter that the start image leaves at zero
    model = one_layer({3: -0.6})
    # When
    (tile,) = tiles_of(model, [3], recipe)
    # Then
    assert (tile.status, tile.restarts, tile.error) == ("rescued", 0, "")
    assert tile.start_activation == 0
    assert tile.activation > 0


@both_methods
def test_without_rescue_it_is_dead(recipe: Recipe) -> None:
    # Given
    model = one_layer({3: -0.6})
    # When
    (tile,) = tiles_of(model, [3], changed(recipe, rescue=False))
    # Then
    assert (tile.status, tile.restarts, tile.error) == ("dead", 0, "")
    assert (tile.start_activation, tile.activation) == (0, 0)


def test_without_rescue_its_picture_is_the_start_noise() -> None:
    # Given
    model = one_layer({3: -0.6})
    # When
    (tile,) = tiles_of(model, [3], changed(NOTEBOOK, rescue=False))
    # Then
    noise = images.start_noise(PictureRng(seed=1, restart=0, layer="0", filter=3), (24, 24))
    assert np.array_equal(tile.pixels, images.deprocess(images.notebook_start(noise)))


@both_methods
@pytest.mark.parametrize("bias", [-0.6, -1e6], ids=["rescued", "dead"])
def test_a_dead_filter_changes_no_live_tile_of_its_batch(recipe: Recipe, bias: float) -> None:
    # Given
    model = one_layer({3: bias})
    live = [0, 1, 5]
    # When
    without = tiles_of(model, live, recipe)
    first, second, dead_filter, third = tiles_of(model, [0, 1, 3, 5], recipe)
    # Then
    assert dead_filter.status == ("rescued" if bias == -0.6 else "dead")
    for one, other in zip((first, second, third), without, strict=True):
        assert other.status == "live"
        assert_alike(one, other)


@both_methods
def test_a_dead_filter_is_rescued_beside_any_number_of_live_ones(recipe: Recipe) -> None:
    # Given a filter that a rescue of whole batches would miss, beside live ones
    model = one_layer({3: -0.6})
    # When it is rendered in batches of two and of eight. A batch of one has other float noise, which Adam turns into
    # whole steps where the gradient is nearly zero, as that of a single convolution's mean is.
    beside_one = tiles_of(model, [3, 5], recipe)[0]
    together = tiles_of(model, [0, 1, 2, 3, 4, 5, 6, 7], recipe)
    # Then
    assert [tile.status for tile in together] == ["live"] * 3 + ["rescued"] + ["live"] * 4
    assert_alike(together[3], beside_one)


@both_methods
@pytest.mark.parametrize("bias", [-0.6, -1e6], ids=["rescued", "dead"])
def test_live_filters_are_bit_identical_with_and_without_rescue(recipe: Recipe, bias: float) -> None:
    # Given
    model = one_layer({3: bias})
    filters = [0, 1, 3, 5]
    # When
    rescuing = tiles_of(model, filters, recipe)
    bare = tiles_of(model, filters, changed(recipe, rescue=False))
    # Then
    for one, other in zip(rescuing, bare, strict=True):
        if one.filter != 3:
            assert one.status == other.status == "live"
            assert np.array_equal(one.pixels, other.pixels)
            assert (one.activation, one.restarts) == (other.activation, 0)


@both_methods
def test_live_filters_are_bit_identical_beside_one_that_needs_a_gradient_override(
    recipe: Recipe,
) -> None:
    # Given
    model = depthwise({3: -0.6})
    # When
    rescuing = tiles_of(model, [0, 3, 5], recipe, layer="2")
    bare = tiles_of(model, [0, 3, 5], changed(recipe, rescue=False), layer="2")
    # Then
    assert [tile.status for tile in rescuing] == ["live", "rescued", "live"]
    assert [tile.status for tile in bare] == ["live", "dead", "live"]
    for place in (0, 2):
        assert np.array_equal(rescuing[place].pixels, bare[place].pixels)


@both_methods
@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6])
def test_a_depthwise_filter_of_a_dead_channel_is_rescued(recipe: Recipe, activation: type[nn.Module]) -> None:
    # Given a filter whose input is zero, so that its pre-activation has no gradient either
    model = depthwise({3: -0.6}, activation=activation)
    # When
    (tile,) = tiles_of(model, [3], recipe, layer="2")
    # Then
    assert (tile.status, tile.restarts, tile.error) == ("rescued", 0, "")
    assert tile.start_activation == 0
    assert tile.activation > 0


@both_methods
@pytest.mark.parametrize("shift", [-0.01, 0.01])
def test_a_depthwise_filter_of_a_dead_channel_with_a_bias_is_rescued(recipe: Recipe, shift: float) -> None:
    # Given a filter whose input is zero, and whose pre-activation is a little below zero or a little above
    model = depthwise({3: -0.6}, shift=shift)
    # When
    (tile,) = tiles_of(model, [3], recipe, layer="2")
    # Then
    assert tile.status == "rescued"
    assert tile.activation > max(shift, 0)


@both_methods
@pytest.mark.parametrize("shift", [-0.01, 0.0, 0.01])
@pytest.mark.parametrize("further", [{"total_variation": 0.1}, {"diversity": 2}], ids=["penalty", "diversity"])
def test_penalties_and_diversity_prevent_no_rescue(recipe: Recipe, shift: float, further: dict[str, object]) -> None:
    # Given a filter whose input is zero, and a further term that changes its picture
    model = depthwise({3: -0.6}, shift=shift)
    # When
    (tile,) = tiles_of(model, [3], changed(recipe, **further), layer="2")
    # Then
    assert tile.status == "rescued"
    assert tile.activation > max(shift, 0)


def test_without_rescue_a_filter_that_a_transform_activates_is_live() -> None:
    # Given a filter that is zero on the tile, and not on the margins around it
    stream = PictureRng(seed=1, restart=0, layer="0", filter=3)
    model = one_layer({3: 0.0}, inplace=False)
    parametrization = fourier_parametrization(
        [stream], size_px=(24, 24), channels=3, longest_px=longest_wave_px(1.0), device=CPU
    )
    with torch.no_grad():
        inside, around = (
            float(model.get_submodule("0")(pictures / 127.5 - 1)[0, 3].max())
            for pictures in (parametrization.tiles(), parametrization.whole())
        )
    assert inside < around
    # When
    bias = -(inside + around) / 2
    (tile,) = tiles_of(one_layer({3: bias}), [3], changed(FOURIER, rescue=False))
    # Then no restart was needed
    assert tile.start_activation == 0
    assert tile.activation > 0
    assert (tile.status, tile.restarts) == ("live", 0)


@both_methods
def test_a_filter_that_a_start_image_saturates_is_not_dead(recipe: Recipe) -> None:
    # Given a filter whose map is 6, the maximum of its ReLU6, everywhere: its gradient is zero
    model = excitable(frozen(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6())), {3: 50.0})
    # When
    (tile,) = tiles_of(model, [3], recipe)
    # Then
    assert tile.activation == 6
    assert tile.status == "live"


@pytest.mark.parametrize(
    "name",
    ["resnet18", "densenet121", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_lite0", "vgg16", "inception_v3"],
)
def test_a_gradient_override_changes_no_layers_input(name: str) -> None:
    # Given
    model = registry.build(name, seed=2)
    trace = tracing.trace(model)
    layer = list(tracing.convolutions(model, trace))[-1]
    tap = LayerExtractor(model, trace, layer, "activation")
    # Maps of one pixel have no unique strides, and may differ by float noise.
    side_px = 112 if name == "inception_v3" else 32
    pictures = torch.randn(2, 3, side_px, side_px, generator=torch.Generator().manual_seed(0))
    # When
    plain = tap.features(pictures.clone(), None)
    overridden = tap.features(pictures.clone(), GradientOverride(torch.tensor([True, False])))
    no_override = tap.features(pictures.clone(), GradientOverride(torch.tensor([False, False])))
    # Then
    assert plain.abs().max() > 0
    torch.testing.assert_close(overridden, plain, rtol=0, atol=0)
    torch.testing.assert_close(no_override, plain, rtol=0, atol=0)


class FunctionalReLU(nn.Module):
    """As Inception v3 and GoogLeNet have it: a function, in place."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self._inplace = inplace

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape."""
        return F.relu(x, inplace=self._inplace)


class MethodReLU(FunctionalReLU):
    """A method of the tensor."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape."""
        return x.relu_() if self._inplace else x.relu()


@pytest.mark.parametrize("inplace", [False, True])
def test_a_hard_swish_has_its_own_gradient_and_an_override_where_that_is_zero(inplace: bool) -> None:
    # Given units in the flat part, at both ends of the curved part, within it, and in the linear part
    units = [-8.0, -3.0, -2.0, 0.0, 2.0, 3.0, 8.0]
    model = frozen(lambda: nn.Sequential(nn.Conv2d(3, 7, 1), nn.Hardswish(inplace), nn.Conv2d(7, 7, 1, groups=7)))
    first = model.get_submodule("0")
    assert isinstance(first, nn.Conv2d)
    assert first.bias is not None
    first.weight.data.fill_(1.0)
    first.bias.data.copy_(torch.tensor(units))
    tap = LayerExtractor(model, tracing.trace(model), "2", "activation")
    # When each unit's gradient is taken, in a picture with an override and in one without
    found = []
    for unit in range(len(units)):
        pictures = torch.zeros(2, 3, 1, 1, requires_grad=True)
        fed = tap.features(pictures, GradientOverride(torch.tensor([True, False])))
        torch.testing.assert_close(fed[0].flatten(), F.hardswish(torch.tensor(units)))
        (gradient,) = torch.autograd.grad(fed[:, unit].sum(), pictures)
        found.append(gradient[:, 0, 0, 0])
    # Then it is (2 x + 3) / 6, the derivative of x (x + 3) / 6
    wanted = [0.0, 0.0, -1 / 6, 0.5, 7 / 6, 1.0, 1.0]
    torch.testing.assert_close(torch.stack(found)[:, 1], torch.tensor(wanted))
    torch.testing.assert_close(torch.stack(found)[:, 0], torch.tensor([0.1, 0.1, *wanted[2:]]))


@pytest.mark.parametrize("activation", [nn.ReLU, FunctionalReLU, MethodReLU, nn.Hardswish])
def test_only_pictures_with_an_override_get_a_gradient_through_dead_channels(activation: type[nn.Module]) -> None:
    # Given a layer whose input is zero everywhere
    model = depthwise(dict.fromkeys(range(8), -50.0), activation=activation)
    tap = LayerExtractor(model, tracing.trace(model), "2", "activation")
    pictures = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    # When
    fed = tap.features(pictures, GradientOverride(torch.tensor([False, True, False])))
    (gradient,) = torch.autograd.grad(fed.sum(), pictures)
    # Then
    assert not fed.any()
    assert gradient.flatten(1).abs().amax(1).gt(0).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("kind", "passes"),
    [
        # sign of the gradient -> the gradient before an inactive, an active and a saturated unit
        (nn.ReLU6, {-1.0: [0.0, -1.0, -1.0], 1.0: [1.0, 1.0, 0.0]}),
        (nn.ReLU, {-1.0: [0.0, -1.0, -1.0], 1.0: [1.0, 1.0, 1.0]}),
        (FunctionalReLU, {-1.0: [0.0, -1.0, -1.0], 1.0: [1.0, 1.0, 1.0]}),
    ],
)
def test_a_helpful_gradient_passes_flat_units_and_no_other_does(
    kind: type[nn.Module], passes: dict[float, list[float]]
) -> None:
    # Given one activation function, whose units are inactive, active and saturated
    identity = nn.Conv2d(3, 3, 1, bias=False)
    nn.init.dirac_(identity.weight)
    model = frozen(lambda: nn.Sequential(identity, kind(), nn.Conv2d(3, 3, 1, groups=3)))
    tap = LayerExtractor(model, tracing.trace(model), "2", "activation")
    pictures = torch.tensor([-2.0, 3.0, 8.0]).view(1, 3, 1, 1).requires_grad_(True)
    for sign, wanted in passes.items():
        # When the gradient is negative for all of them, or positive for all of them
        fed = tap.features(pictures, GradientOverride(torch.tensor([False]), helpful=1.0))
        (gradient,) = torch.autograd.grad(sign * fed.sum(), pictures)
        # Then it passes the units that it moves away from their flat part
        assert gradient.flatten().tolist() == wanted


def test_a_helpful_gradient_passes_the_last_activation_whole_and_earlier_ones_at_a_tenth() -> None:
    # Given two consecutive activation functions, both inactive
    convs = [nn.Conv2d(3, 3, 1) for _ in range(2)]
    for conv in convs:
        nn.init.dirac_(conv.weight)
        nn.init.constant_(conv.bias, -1.0)  # type: ignore[arg-type]  # these have one
    model = frozen(lambda: nn.Sequential(convs[0], nn.ReLU6(), convs[1], nn.ReLU6(), nn.Conv2d(3, 3, 1, groups=3)))
    tap = LayerExtractor(model, tracing.trace(model), "4", "activation")
    pictures = torch.zeros(1, 3, 1, 1, requires_grad=True)
    # When
    fed = tap.features(pictures, GradientOverride(torch.tensor([False]), helpful=1.0))
    (gradient,) = torch.autograd.grad(fed.sum(), pictures)
    # Then the last one passes it whole, and the first a tenth of it
    torch.testing.assert_close(gradient.flatten(), torch.full((3,), 0.1))


def test_a_helpful_gradient_is_scaled_by_the_given_factor() -> None:
    # Given an activation function that is inactive
    identity = nn.Conv2d(3, 3, 1, bias=False)
    nn.init.dirac_(identity.weight)
    model = frozen(lambda: nn.Sequential(identity, nn.ReLU(), nn.Conv2d(3, 3, 1, groups=3)))
    tap = LayerExtractor(model, tracing.trace(model), "2", "activation")
    pictures = torch.full((1, 3, 1, 1), -1.0, requires_grad=True)
    # When
    fed = tap.features(pictures, GradientOverride(torch.tensor([False]), helpful=0.25))
    (gradient,) = torch.autograd.grad(fed.sum(), pictures)
    # Then
    assert gradient.flatten().tolist() == [0.25] * 3


@pytest.mark.parametrize("others", [-0.2, -0.5, -0.9])
@pytest.mark.parametrize("bias", [-0.8, -1.2, -1.6, -2.0])
def test_a_filter_that_one_unit_excites_and_all_together_inhibit_is_rescued(bias: float, others: float) -> None:
    # Given a depthwise kernel of one positive weight among negative ones, whose sum is negative, and a dead channel
    model = depthwise({3: bias}, shift=-0.05)
    kernel = model.get_submodule("2").weight
    assert isinstance(kernel, torch.Tensor)
    kernel.data[3] = others
    kernel.data[3, 0, 1, 1] = 1.0
    # When
    (tile,) = tiles_of(model, [3], FOURIER, "2")
    # Then one place of its map is maximised until the filter is active
    assert tile.start_activation == 0.0
    assert tile.status == "rescued"
    assert tile.activation > 0.0


def inhibited(channel_bias: float) -> nn.Module:
    """Depthwise filters of negative weights alone, whose input channels are zero on a grey picture."""
    first, last = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 1, groups=3)
    nn.init.constant_(first.weight, 0.1)
    for tensor, value in ((first.bias, channel_bias), (last.weight, -1.0), (last.bias, 2.0)):
        assert tensor is not None
        nn.init.constant_(tensor, value)
    return frozen(lambda: nn.Sequential(first, nn.ReLU(), last, nn.ReLU()))


# The first is active on another start image, the second on none.
@pytest.mark.parametrize("channel_bias", [-1.0, -100.0])
def test_a_filter_of_negative_weights_alone_has_a_picture_at_which_its_input_is_zero(channel_bias: float) -> None:
    # When
    (tile,) = tiles_of(inhibited(channel_bias), [1], FOURIER, "2")
    # Then its activation is the maximum, and its picture is not the grey one it started from
    assert tile.start_activation == tile.activation == 2.0
    assert tile.status == "rescued"
    assert tile.pixels.std() > 5


@both_methods
def test_without_rescue_a_filter_of_negative_weights_alone_is_dead(recipe: Recipe) -> None:
    # When
    (tile,) = tiles_of(inhibited(-100.0), [1], changed(recipe, rescue=False), "2")
    # Then
    assert (tile.status, tile.activation) == ("dead", 2.0)


def test_a_gradient_override_does_not_change_the_network() -> None:
    # Given
    model = depthwise({3: -0.6})
    modules = [type(module) for module in model.modules()]
    tap = LayerExtractor(model, tracing.trace(model), "2", "activation")
    pictures = torch.zeros(1, 3, 8, 8)
    # When
    tap.features(pictures, GradientOverride(torch.tensor([True])))
    plain = tap.features(pictures.requires_grad_(True), None)
    # Then the network is unchanged, and so are the layers that the extractor runs
    assert [type(module) for module in model.modules()] == modules
    assert all(module.inplace for module in model.modules() if isinstance(module, nn.ReLU))
    (gradient,) = torch.autograd.grad(plain[:, 3].sum(), pictures)
    assert not gradient.any()


@both_methods
@pytest.mark.parametrize("shift", [-0.5, 0.5])
def test_filters_whose_norm_scales_them_to_zero_are_dead_and_no_others_are(recipe: Recipe, shift: float) -> None:
    # Given gains and variances of zero, below the threshold and above it
    model = normed({1: 0.0, 2: 1e-9, 3: -1e-9, 6: 1e-3, 7: -1e-3}, {4: 0.0, 5: 1e-9}, shift=shift)
    # When
    tap = LayerExtractor(model, tracing.trace(model), "0", "activation")
    tiles = tiles_of(model, list(range(8)), recipe)
    # Then
    inert = [False, True, True, True, True, True, False, False]
    assert tap.inert.tolist() == inert
    assert [tile.status == "dead" for tile in tiles[:6]] == inert[:6]
    # They are not restarted.
    assert [tile.restarts for tile in tiles[1:6]] == [0] * 5


def test_a_filter_whose_norm_scales_it_little_is_live() -> None:
    # Given
    model = normed({6: 1e-3, 7: -1e-3}, {5: 1e-4})
    # When
    tiles = tiles_of(model, [5, 6, 7], NOTEBOOK)
    # Then
    assert [tile.status for tile in tiles] == ["live"] * 3


def test_before_the_norm_no_filter_is_inert() -> None:
    # Given
    model = normed({1: 0.0}, {4: 0.0})
    # When
    tap = LayerExtractor(model, tracing.trace(model), "0", "conv")
    tiles = tiles_of(model, [1, 4], changed(NOTEBOOK, tap="conv"))
    # Then
    assert not tap.inert.any()
    assert [tile.status for tile in tiles] == ["live", "live"]


def test_a_filter_without_a_norm_is_not_inert() -> None:
    # Given
    model = one_layer({3: -1e6})
    # When
    tap = LayerExtractor(model, tracing.trace(model), "0", "activation")
    # Then
    assert tap.inert.tolist() == [False] * 8


@both_methods
def test_a_filter_that_no_picture_activates_is_dead_after_all_restarts(recipe: Recipe) -> None:
    # Given
    model = one_layer({3: -1e6})
    # When
    (tile,) = tiles_of(model, [3], recipe)
    # Then
    assert (tile.status, tile.restarts, tile.error) == ("dead", 3, "")
    assert MAX_RESTARTS == 3
    assert (tile.start_activation, tile.activation, tile.stored_activation) == (0, 0, 0)


@both_methods
def test_only_filters_that_are_still_dead_are_restarted(recipe: Recipe) -> None:
    # Given
    model = one_layer({3: -1e6, 4: -0.6})
    # When
    tiles = tiles_of(model, [3, 4, 5, 3], recipe)
    # Then
    assert [(tile.filter, tile.status, tile.restarts) for tile in tiles] == [
        (3, "dead", 3),
        (4, "rescued", 0),
        (5, "live", 0),
        (3, "dead", 3),
    ]


def test_a_filter_that_another_start_image_activates_is_rescued_and_its_restarts_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a first start so dark that one step does not activate the filter, and others so bright that it is active
    model = one_layer({3: -0.6})
    conv = model.get_submodule("0")
    assert isinstance(conv, nn.Conv2d)
    conv.weight.data[3] = 0.1
    plain = images.start_noise

    def start_noise(stream: PictureRng, size_px: tuple[int, int], channels: int = 3) -> np.ndarray:
        return plain(stream, size_px, channels) + np.float32(5.0 if stream.restart >= 2 else -6.0)

    monkeypatch.setattr(images, "start_noise", start_noise)
    # When
    (tile,) = tiles_of(model, [3], changed(NOTEBOOK, steps=1))
    # Then the start activation is that of the first start image, which is the job's
    assert (tile.status, tile.restarts) == ("rescued", 2)
    assert tile.start_activation == 0
    assert tile.activation > 0
    # And the picture is that of the last restart
    start = images.notebook_start(start_noise(PictureRng(seed=1, restart=2, layer="0", filter=3), (24, 24)))
    difference = np.abs(tile.pixels.astype(int) - images.deprocess(start).astype(int))
    assert difference.mean() < 10


def red_before_and_green_after(pictures: torch.Tensor, override: GradientOverride | None) -> LayerResponse:
    """Maps that are zero below a threshold of red and proportional to green above it; their pre-activation is red."""
    red, green = 100 * (pictures[:, 0] - 150.0), 100 * pictures[:, 1]
    return LayerResponse(activation=torch.where(red > 0, green, torch.zeros_like(green)), pre_activation=red)


def test_the_pre_activation_is_maximised_only_while_the_filter_is_dead() -> None:
    # Given
    start = torch.full((2, 3, 8, 8), 128.0)
    start[1, 0] = 200.0  # active
    # When
    bare = optimise(red_before_and_green_after, start, steps=30, step_size=2.0)
    rescued = optimise(red_before_and_green_after, start, steps=30, step_size=2.0, rescue=True)
    # Then
    assert bare.dead_at_start.tolist() == rescued.dead_at_start.tolist() == [True, False]
    assert (bare.moved.tolist(), rescued.moved.tolist()) == ([False, True], [True, True])
    assert bare.activation[0].item() == 0
    assert rescued.activation[0].item() > 0
    assert torch.equal(bare.pictures[1], rescued.pictures[1])
    # And a step changes one channel by 2 x sqrt(3). Seven steps of red exceed 150, and all others are of green.
    red, green, blue = rescued.pictures[0].mean(dim=(1, 2)).tolist()
    assert red == pytest.approx(128 + 7 * 2 * 3**0.5, rel=1e-4)
    assert green == pytest.approx(128 + 23 * 2 * 3**0.5, rel=1e-4)
    assert blue == 128


def test_the_fourier_method_maximises_the_pre_activation_of_dead_filters() -> None:
    # Given
    streams = [PictureRng(seed=0, restart=0, layer="a", filter=0)]
    transforms = Transforms(streams, steps=40, size_px=(24, 24), stride=8.0, device=CPU)

    def grey() -> Parametrization:
        parametrization = fourier_parametrization(
            streams, size_px=(24, 24), channels=3, longest_px=float("inf"), device=CPU
        )
        parametrization.coefficients.data.zero_()
        return parametrization

    # When
    bare, rescued = (
        optimise_parametrization(
            red_before_and_green_after, grey(), transforms, steps=40, learning_rate=1.0, rescue=rescue
        )
        for rescue in (False, True)
    )
    # Then
    assert bare.dead_at_start.tolist() == rescued.dead_at_start.tolist() == [True]
    assert (bare.moved.tolist(), rescued.moved.tolist()) == ([False], [True])
    assert (bare.activation.item(), bare.pictures.std().item()) == (0, 0)
    assert rescued.activation.item() > 0


@both_methods
def test_the_convolutions_own_output_needs_no_rescue(recipe: Recipe) -> None:
    # Given filters far below zero, with no activation function after them
    model = one_layer({3: -50.0, 4: -0.6})
    # When
    rescuing = tiles_of(model, [3, 4, 5], changed(recipe, tap="conv"))
    bare = tiles_of(model, [3, 4, 5], changed(recipe, tap="conv", rescue=False))
    # Then
    for one, other in zip(rescuing, bare, strict=True):
        assert (one.status, one.restarts) == (other.status, other.restarts) == ("live", 0)
        assert one.activation > one.start_activation
        assert np.array_equal(one.pixels, other.pixels)


def test_at_the_convolutions_own_output_maps_and_pre_activation_are_the_same() -> None:
    # Given
    model = one_layer({3: -50.0})
    sliced = LayerExtractor(model, tracing.trace(model), "0", "conv").slice(torch.tensor([3, 1]))
    # When
    maps, before = sliced.both(torch.rand(2, 3, 8, 8))
    # Then
    assert (maps[0] < 0).any()
    assert torch.equal(maps, before)


@pytest.mark.parametrize("inplace", [True, False])
def test_an_activation_function_in_place_leaves_the_pre_activation_as_it_was(inplace: bool) -> None:
    # Given
    model = one_layer({3: -0.6}, inplace=inplace)
    pictures = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    # When
    maps, before = (
        LayerExtractor(model, tracing.trace(model), "0", "activation").slice(torch.tensor([3, 1])).both(pictures)
    )
    # Then
    conv = model.get_submodule("0")(pictures)
    wanted = torch.stack([conv[0, 3], conv[1, 1]])
    torch.testing.assert_close(before, wanted)
    torch.testing.assert_close(maps, wanted.relu())
    assert (before < 0).any()
