"""Filters that do not answer to the start image: woken where anything can activate them, and dead where nothing can."""

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

    The mean of a layer's maps answers to flat colour and nothing else, and random weights nearly cancel in that.
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
    """Filters that the start image, grey, excites little: alive with a bias of 0.5, inactive with one below -0.5."""
    made = frozen(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=inplace)))
    return excitable(made, bias)


def depthwise(bias: dict[int, float], *, shift: float = 0.0, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    """Layer "2": a depthwise convolution whose filter c sees nothing but channel c of layer "0" """
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
def test_a_sleeping_filter_that_a_picture_can_excite_is_rescued(recipe: Recipe) -> None:
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
def test_a_sleeping_batch_mate_changes_nothing_for_those_that_live(recipe: Recipe, bias: float) -> None:
    # Given
    model = one_layer({3: bias})
    living = [0, 1, 5]
    # When
    without = tiles_of(model, living, recipe)
    first, second, dead_filter, third = tiles_of(model, [0, 1, 3, 5], recipe)
    # Then
    assert dead_filter.status == ("rescued" if bias == -0.6 else "dead")
    for one, other in zip((first, second, third), without, strict=True):
        assert other.status == "live"
        assert_alike(one, other)


@both_methods
def test_a_sleeping_filter_is_rescued_beside_any_number_that_live(recipe: Recipe) -> None:
    # Given what rescue by the whole batch would lose: batches that are not inactive as a whole
    model = one_layer({3: -0.6})
    # When (with two at least: the mean of a single convolution has hardly any gradient but float noise, of which Adam
    # makes whole steps, and the noise of one picture alone is another)
    beside_one = tiles_of(model, [3, 5], recipe)[0]
    together = tiles_of(model, [0, 1, 2, 3, 4, 5, 6, 7], recipe)
    # Then
    assert [tile.status for tile in together] == ["live"] * 3 + ["rescued"] + ["live"] * 4
    assert_alike(together[3], beside_one)


@both_methods
@pytest.mark.parametrize("bias", [-0.6, -1e6], ids=["rescued", "dead"])
def test_filters_that_live_are_bit_identical_with_and_without_rescue(recipe: Recipe, bias: float) -> None:
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
def test_filters_that_live_are_bit_identical_where_a_batch_mate_rises_through_a_gradient_override(
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
def test_a_depthwise_filter_whose_only_channel_dead_is_rescued(recipe: Recipe, activation: type[nn.Module]) -> None:
    # Given a filter that nothing reaches: what it is before its activation function is flat too
    model = depthwise({3: -0.6}, activation=activation)
    # When
    (tile,) = tiles_of(model, [3], recipe, layer="2")
    # Then
    assert (tile.status, tile.restarts, tile.error) == ("rescued", 0, "")
    assert tile.start_activation == 0
    assert tile.activation > 0


@both_methods
@pytest.mark.parametrize("shift", [-0.01, 0.01])
def test_a_depthwise_filter_with_a_bias_whose_only_channel_dead_is_rescued(recipe: Recipe, shift: float) -> None:
    # Given a filter that nothing reaches, at rest a little below zero or a little above
    model = depthwise({3: -0.6}, shift=shift)
    # When
    (tile,) = tiles_of(model, [3], recipe, layer="2")
    # Then
    assert tile.status == "rescued"
    assert tile.activation > max(shift, 0)


@both_methods
@pytest.mark.parametrize("shift", [-0.01, 0.0, 0.01])
@pytest.mark.parametrize("against", [{"total_variation": 0.1}, {"diversity": 2}], ids=["penalty", "diversity"])
def test_what_counts_against_a_picture_keeps_no_sleeping_filter_from_its_rescue(
    recipe: Recipe, shift: float, against: dict[str, object]
) -> None:
    # Given a filter that nothing reaches, and something that moves its picture all the same
    model = depthwise({3: -0.6}, shift=shift)
    # When
    (tile,) = tiles_of(model, [3], changed(recipe, **against), layer="2")
    # Then
    assert tile.status == "rescued"
    assert tile.activation > max(shift, 0)


def test_without_rescue_a_filter_that_another_view_wakes_is_live() -> None:
    # Given a filter that is dead on the tile, and not on what lies around it
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
    # Then nobody helped it
    assert tile.start_activation == 0
    assert tile.activation > 0
    assert (tile.status, tile.restarts) == ("live", 0)


@both_methods
def test_a_filter_that_a_start_image_saturates_is_not_dead(recipe: Recipe) -> None:
    # Given the largest answer there is, everywhere, and so no gradient
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
def test_what_a_layer_is_fed_is_the_same_whether_a_picture_is_stuck_or_not(name: str) -> None:
    # Given
    model = registry.build(name, seed=2)
    trace = tracing.trace(model)
    layer = list(tracing.convolutions(model, trace))[-1]
    tap = LayerExtractor(model, trace, layer, "activation")
    side_px = 112 if name == "inception_v3" else 32  # on maps of one pixel, whose memory has no order, it may be noise
    pictures = torch.randn(2, 3, side_px, side_px, generator=torch.Generator().manual_seed(0))
    # When
    plain = tap.features(pictures.clone(), None)
    overridden = tap.features(pictures.clone(), GradientOverride(torch.tensor([True, False])))
    none_stuck = tap.features(pictures.clone(), GradientOverride(torch.tensor([False, False])))
    # Then
    assert plain.abs().max() > 0
    torch.testing.assert_close(overridden, plain, rtol=0, atol=0)
    torch.testing.assert_close(none_stuck, plain, rtol=0, atol=0)


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
def test_a_hard_swish_has_its_own_gradient_and_leaks_where_that_is_flat(inplace: bool) -> None:
    # Given units that be dead, stand at the edges of what is curved, lie between, and go straight
    units = [-8.0, -3.0, -2.0, 0.0, 2.0, 3.0, 8.0]
    model = frozen(lambda: nn.Sequential(nn.Conv2d(3, 7, 1), nn.Hardswish(inplace), nn.Conv2d(7, 7, 1, groups=7)))
    first = model.get_submodule("0")
    assert isinstance(first, nn.Conv2d)
    assert first.bias is not None
    first.weight.data.fill_(1.0)
    first.bias.data.copy_(torch.tensor(units))
    tap = LayerExtractor(model, tracing.trace(model), "2", "activation")
    # When unit by unit is climbed, in a picture that is stuck and in one that is not
    found = []
    for unit in range(len(units)):
        pictures = torch.zeros(2, 3, 1, 1, requires_grad=True)
        fed = tap.features(pictures, GradientOverride(torch.tensor([True, False])))
        torch.testing.assert_close(fed[0].flatten(), F.hardswish(torch.tensor(units)))
        (gradient,) = torch.autograd.grad(fed[:, unit].sum(), pictures)
        found.append(gradient[:, 0, 0, 0])
    # Then: of x (x + 3) / 6 it is (2 x + 3) / 6
    wanted = [0.0, 0.0, -1 / 6, 0.5, 7 / 6, 1.0, 1.0]
    torch.testing.assert_close(torch.stack(found)[:, 1], torch.tensor(wanted))
    torch.testing.assert_close(torch.stack(found)[:, 0], torch.tensor([0.1, 0.1, *wanted[2:]]))


@pytest.mark.parametrize("activation", [nn.ReLU, FunctionalReLU, MethodReLU, nn.Hardswish])
def test_only_stuck_pictures_get_a_gradient_through_sleeping_channels(activation: type[nn.Module]) -> None:
    # Given a trunk in which everything is dead
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
        # what climbs by a lower unit, and what climbs by a higher one: inactive, active, saturated
        (nn.ReLU6, {-1.0: [0.0, -1.0, -1.0], 1.0: [1.0, 1.0, 0.0]}),
        (nn.ReLU, {-1.0: [0.0, -1.0, -1.0], 1.0: [1.0, 1.0, 1.0]}),
        (FunctionalReLU, {-1.0: [0.0, -1.0, -1.0], 1.0: [1.0, 1.0, 1.0]}),
    ],
)
def test_what_helps_passes_through_flat_units_and_nothing_else(
    kind: type[nn.Module], passes: dict[float, list[float]]
) -> None:
    # Given a trunk of one activation function, whose units are inactive, active and saturated
    identity = nn.Conv2d(3, 3, 1, bias=False)
    nn.init.dirac_(identity.weight)
    model = frozen(lambda: nn.Sequential(identity, kind(), nn.Conv2d(3, 3, 1, groups=3)))
    tap = LayerExtractor(model, tracing.trace(model), "2", "activation")
    pictures = torch.tensor([-2.0, 3.0, 8.0]).view(1, 3, 1, 1).requires_grad_(True)
    for climbs, wanted in passes.items():
        # When the gradient wants all of them lower, or all of them higher
        fed = tap.features(pictures, GradientOverride(torch.tensor([False]), helpful=1.0))
        (gradient,) = torch.autograd.grad(climbs * fed.sum(), pictures)
        # Then it reaches those that it helps to move
        assert gradient.flatten().tolist() == wanted


def test_what_helps_passes_the_last_activation_whole_and_those_before_it_weakly() -> None:
    # Given two activation functions behind each other, both inactive
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
    # Then one passes it whole, the other a tenth of it
    torch.testing.assert_close(gradient.flatten(), torch.full((3,), 0.1))


def test_what_helps_passes_by_less_when_asked_to() -> None:
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
def test_a_filter_that_one_unit_wakes_and_all_together_hold_back_is_rescued(bias: float, others: float) -> None:
    # Given a depthwise kernel of one positive weight among negative ones, whose sum is negative, and a dead channel
    model = depthwise({3: bias}, shift=-0.05)
    kernel = model.get_submodule("2").weight
    assert isinstance(kernel, torch.Tensor)
    kernel.data[3] = others
    kernel.data[3, 0, 1, 1] = 1.0
    # When
    (tile,) = tiles_of(model, [3], FOURIER, "2")
    # Then one place of its map is climbed until it activates
    assert tile.start_activation == 0.0
    assert tile.status == "rescued"
    assert tile.activation > 0.0


def held_back(channel_bias: float) -> nn.Module:
    """Depthwise filters that their channels can only hold back, and these inactive on a grey picture."""
    first, last = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 1, groups=3)
    nn.init.constant_(first.weight, 0.1)
    for tensor, value in ((first.bias, channel_bias), (last.weight, -1.0), (last.bias, 2.0)):
        assert tensor is not None
        nn.init.constant_(tensor, value)
    return frozen(lambda: nn.Sequential(first, nn.ReLU(), last, nn.ReLU()))


# Another start activates the channel, and none does.
@pytest.mark.parametrize("channel_bias", [-1.0, -100.0])
def test_a_filter_that_can_only_be_held_back_shows_what_leaves_it_alone(channel_bias: float) -> None:
    # When
    (tile,) = tiles_of(held_back(channel_bias), [1], FOURIER, "2")
    # Then its map is as high as it can be, and the picture is not the grey one it began with
    assert tile.start_activation == tile.activation == 2.0
    assert tile.status == "rescued"
    assert tile.pixels.std() > 5


@both_methods
def test_without_rescue_nothing_moves_a_filter_that_can_only_be_held_back(recipe: Recipe) -> None:
    # When
    (tile,) = tiles_of(held_back(-100.0), [1], changed(recipe, rescue=False), "2")
    # Then
    assert (tile.status, tile.activation) == ("dead", 2.0)


def test_the_gradient_override_leaves_the_network_alone() -> None:
    # Given
    model = depthwise({3: -0.6})
    modules = [type(module) for module in model.modules()]
    tap = LayerExtractor(model, tracing.trace(model), "2", "activation")
    pictures = torch.zeros(1, 3, 8, 8)
    # When
    tap.features(pictures, GradientOverride(torch.tensor([True])))
    plain = tap.features(pictures.requires_grad_(True), None)
    # Then the network and the tap's own trunk are what they were
    assert [type(module) for module in model.modules()] == modules
    assert all(module.inplace for module in model.modules() if isinstance(module, nn.ReLU))
    (gradient,) = torch.autograd.grad(plain[:, 3].sum(), pictures)
    assert not gradient.any()


@both_methods
@pytest.mark.parametrize("shift", [-0.5, 0.5])
def test_a_filter_that_its_norm_multiplies_away_is_dead_and_no_other_is(recipe: Recipe, shift: float) -> None:
    # Given gains and variances at, below and above what counts as none
    model = normed({1: 0.0, 2: 1e-9, 3: -1e-9, 6: 1e-3, 7: -1e-3}, {4: 0.0, 5: 1e-9}, shift=shift)
    # When
    tap = LayerExtractor(model, tracing.trace(model), "0", "activation")
    tiles = tiles_of(model, list(range(8)), recipe)
    # Then
    inert = [False, True, True, True, True, True, False, False]
    assert tap.inert.tolist() == inert
    assert [tile.status == "dead" for tile in tiles[:6]] == inert[:6]
    # Nothing else is worth trying.
    assert [tile.restarts for tile in tiles[1:6]] == [0] * 5


def test_a_filter_of_a_faint_norm_that_answers_is_live() -> None:
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
def test_a_filter_that_can_never_answer_is_dead_after_all_restarts(recipe: Recipe) -> None:
    # Given
    model = one_layer({3: -1e6})
    # When
    (tile,) = tiles_of(model, [3], recipe)
    # Then
    assert (tile.status, tile.restarts, tile.error) == ("dead", 3, "")
    assert MAX_RESTARTS == 3
    assert (tile.start_activation, tile.activation, tile.stored_activation) == (0, 0, 0)


@both_methods
def test_only_what_is_still_dead_is_tried_again(recipe: Recipe) -> None:
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


def test_a_filter_that_another_start_wakes_is_rescued_and_its_restarts_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a first start so dark that one step does not activate the filter, and others so bright that it is active
    model = one_layer({3: -0.6})
    conv = model.get_submodule("0")
    assert isinstance(conv, nn.Conv2d)
    conv.weight.data[3] = 0.1
    plain = images.start_noise

    def start_noise(stream: PictureRng, size_px: tuple[int, int]) -> np.ndarray:
        return plain(stream, size_px) + np.float32(5.0 if stream.restart >= 2 else -6.0)

    monkeypatch.setattr(images, "start_noise", start_noise)
    # When
    (tile,) = tiles_of(model, [3], changed(NOTEBOOK, steps=1))
    # Then what is told of the start is of the first, which is the job's
    assert (tile.status, tile.restarts) == ("rescued", 2)
    assert tile.start_activation == 0
    assert tile.activation > 0
    # And the picture is the one of that restart
    start = images.notebook_start(start_noise(PictureRng(seed=1, restart=2, layer="0", filter=3), (24, 24)))
    difference = np.abs(tile.pixels.astype(int) - images.deprocess(start).astype(int))
    assert difference.mean() < 10


def red_before_and_green_after(pictures: torch.Tensor, override: GradientOverride | None) -> LayerResponse:
    """Maps that be dead until there is red enough, and then climb green; before the activation function, red alone."""
    red, green = 100 * (pictures[:, 0] - 150.0), 100 * pictures[:, 1]
    return LayerResponse(activation=torch.where(red > 0, green, torch.zeros_like(green)), pre_activation=red)


def test_a_picture_rises_what_it_was_before_its_activation_function_only_while_it_dead() -> None:
    # Given
    start = torch.full((2, 3, 8, 8), 128.0)
    start[1, 0] = 200.0  # one is active
    # When
    bare = optimise(red_before_and_green_after, start, steps=30, step_size=2.0)
    rescued = optimise(red_before_and_green_after, start, steps=30, step_size=2.0, rescue=True)
    # Then
    assert bare.dead_at_start.tolist() == rescued.dead_at_start.tolist() == [True, False]
    assert (bare.moved.tolist(), rescued.moved.tolist()) == ([False, True], [True, True])
    assert bare.activation[0].item() == 0
    assert rescued.activation[0].item() > 0
    assert torch.equal(bare.pictures[1], rescued.pictures[1])
    # And a step is 2 x sqrt(3) in one channel: seven of red pass 150, all others are green
    red, green, blue = rescued.pictures[0].mean(dim=(1, 2)).tolist()
    assert red == pytest.approx(128 + 7 * 2 * 3**0.5, rel=1e-4)
    assert green == pytest.approx(128 + 23 * 2 * 3**0.5, rel=1e-4)
    assert blue == 128


def test_in_the_fourier_method_too_only_sleeping_pictures_rise_what_they_were_before() -> None:
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
def test_the_convolutions_own_output_is_never_redirected(recipe: Recipe) -> None:
    # Given filters far below zero, which no activation function hides
    model = one_layer({3: -50.0, 4: -0.6})
    # When
    rescuing = tiles_of(model, [3, 4, 5], changed(recipe, tap="conv"))
    bare = tiles_of(model, [3, 4, 5], changed(recipe, tap="conv", rescue=False))
    # Then
    for one, other in zip(rescuing, bare, strict=True):
        assert (one.status, one.restarts) == (other.status, other.restarts) == ("live", 0)
        assert one.activation > one.start_activation
        assert np.array_equal(one.pixels, other.pixels)


def test_at_the_convolutions_own_output_the_maps_are_what_they_were_before() -> None:
    # Given
    model = one_layer({3: -50.0})
    sliced = LayerExtractor(model, tracing.trace(model), "0", "conv").slice(torch.tensor([3, 1]))
    # When
    maps, before = sliced.both(torch.rand(2, 3, 8, 8))
    # Then
    assert (maps[0] < 0).any()
    assert torch.equal(maps, before)


@pytest.mark.parametrize("inplace", [True, False])
def test_what_a_map_was_before_its_activation_function_is_kept_from_one_that_works_in_place(inplace: bool) -> None:
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
