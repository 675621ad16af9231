"""A network cut at a layer gives the maps, and the gradients, of the whole one.

The oracle is the whole network with a forward hook; the hook copies what it sees, because many networks' ReLU then
overwrites it in place.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from workers.contract.errors import UnknownLayer
from workers.networks import registry, tracing, weights
from workers.networks.layer_extractor import LayerExtractor

Post = Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def outputs_of(model: nn.Module, module: str) -> Iterator[list[torch.Tensor]]:
    seen: list[torch.Tensor] = []
    hook = model.get_submodule(module).register_forward_hook(lambda _m, _i, output: seen.append(output.clone()))
    try:
        yield seen
    finally:
        hook.remove()


def give_every_channel_its_own_norm(model: nn.Module) -> None:
    """Untrained batch-norms are alike in all channels, so that mixing channels up would not show."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.data.uniform_(0.5, 1.5, generator=generator)


@pytest.fixture(scope="module")
def network() -> Iterator[Callable[[str], tuple[nn.Module, fx.Graph]]]:
    """Networks by name, each built once."""
    built: dict[str, tuple[nn.Module, fx.Graph]] = {}

    def get(name: str) -> tuple[nn.Module, fx.Graph]:
        if name not in built:
            model = registry.build(name, seed=2)
            give_every_channel_its_own_norm(model)
            built[name] = model, tracing.trace(model)
        return built[name]

    yield get
    built.clear()


def assert_sliced_equals_whole(
    model: nn.Module,
    trace: fx.Graph,
    layer: str,
    tap: str,
    hooked: str,
    *,
    size_px: int,
    post: Post = torch.clone,
    filters: tuple[int, ...] = (),
) -> None:
    """The sliced maps of some filters, and their gradient in the picture, are those of the hooked whole network."""
    channels = int(model.get_submodule(layer).out_channels)  # type: ignore[arg-type]
    chosen = torch.tensor(filters or (channels - 1, 0, channels // 3, 0))
    pictures = torch.randn(len(chosen), 3, size_px, size_px, generator=torch.Generator().manual_seed(3))
    places = torch.arange(len(chosen))

    def both(
        network: nn.Module, pictures: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Maps and gradients, sliced and whole."""
        whole = pictures.clone().requires_grad_(True)
        with outputs_of(network, hooked) as seen:
            network(whole)
        wanted = post(seen[0])[places, chosen]
        (wanted_gradient,) = torch.autograd.grad(wanted.mean(dim=(1, 2)).sum(), whole)
        cut = pictures.clone().requires_grad_(True)
        got = LayerExtractor(network, trace, layer, tap).slice(chosen)(cut)
        (got_gradient,) = torch.autograd.grad(got.mean(dim=(1, 2)).sum(), cut)
        return got.detach(), wanted.detach(), got_gradient, wanted_gradient

    got, wanted, got_gradient, wanted_gradient = both(model, pictures)
    assert wanted.abs().max() > 0
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=float(wanted.abs().max()) * 1e-5)
    # Of two numbers that are as good as equal a max-pool may take the other one, and hand the gradient to its place:
    # float32 shows that they are alike as a whole, and float64, in which no two are that close, number by number.
    off, length = (float(gradient.double().norm()) for gradient in (got_gradient - wanted_gradient, wanted_gradient))
    assert off < 0.05 * length
    _, _, got_gradient, wanted_gradient = both(copy.deepcopy(model).double(), pictures.double())
    torch.testing.assert_close(got_gradient, wanted_gradient, rtol=1e-7, atol=float(wanted_gradient.abs().max()) * 1e-9)


@pytest.mark.parametrize("layer", [0, 2, 10, 28])
@pytest.mark.parametrize("tap", ["activation", "conv"])
def test_sliced_equals_unsliced_in_vgg16(vgg16: tuple[nn.Module, fx.Graph], layer: int, tap: str) -> None:
    # Given a network whose ReLU overwrites the convolution's output in place
    model, trace = vgg16
    hooked = f"features.{layer + 1 if tap == 'activation' else layer}"
    # When / Then
    assert_sliced_equals_whole(model, trace, f"features.{layer}", tap, hooked, size_px=32)


@pytest.mark.parametrize(
    ("name", "layer", "normed", "post"),
    [
        # the first, a 1 x 7, one after an average pool; BasicConv2d: batch-norm, then functional ReLU in place
        ("inception_v3", "Conv2d_1a_3x3.conv", "Conv2d_1a_3x3.bn", F.relu),
        ("inception_v3", "Mixed_6b.branch7x7_2.conv", "Mixed_6b.branch7x7_2.bn", F.relu),
        ("inception_v3", "Mixed_7c.branch_pool.conv", "Mixed_7c.branch_pool.bn", F.relu),
        ("resnet18", "conv1", "bn1", F.relu),
        # one ReLU module serves a whole block; the block's last convolution is added to before it
        ("resnet18", "layer2.0.conv1", "layer2.0.bn1", F.relu),
        ("resnet18", "layer2.0.conv2", "layer2.0.bn2", torch.clone),
        ("resnet18", "layer2.0.downsample.0", "layer2.0.downsample.1", torch.clone),
        ("resnet18", "layer4.1.conv2", "layer4.1.bn2", torch.clone),
        # depthwise, squeeze-and-excitation, projection, last
        ("efficientnet_b0", "features.2.0.block.1.0", "features.2.0.block.1.1", F.silu),
        ("efficientnet_b0", "features.2.0.block.2.fc1", "features.2.0.block.2.fc1", F.silu),
        ("efficientnet_b0", "features.2.0.block.2.fc2", "features.2.0.block.2.fc2", torch.sigmoid),
        ("efficientnet_b0", "features.2.0.block.3.0", "features.2.0.block.3.1", torch.clone),
        ("efficientnet_b0", "features.8.0", "features.8.1", F.silu),
        # timm's BatchNormAct2d holds its ReLU6; depthwise Conv2dSame with stride; projection without activation
        ("efficientnet_lite0", "conv_stem", "bn1", torch.clone),
        ("efficientnet_lite0", "blocks.1.0.conv_dw", "blocks.1.0.bn2", torch.clone),
        ("efficientnet_lite0", "blocks.2.0.conv_pw", "blocks.2.0.bn1", torch.clone),
        ("efficientnet_lite0", "blocks.2.0.conv_pwl", "blocks.2.0.bn3", torch.clone),
        # grouped, 32 groups of 4 and more channels
        ("resnext50_32x4d", "layer1.0.conv2", "layer1.0.bn2", F.relu),
        ("resnext50_32x4d", "layer2.0.conv2", "layer2.0.bn2", F.relu),
        ("mobilenet_v2", "features.2.conv.1.0", "features.2.conv.1.1", F.relu6),
    ],
)
@pytest.mark.parametrize("tap", ["activation", "conv"])
def test_sliced_equals_unsliced(
    network: Callable[[str], tuple[nn.Module, fx.Graph]], name: str, layer: str, normed: str, post: Post, tap: str
) -> None:
    # Given
    model, trace = network(name)
    size_px = 96 if name == "inception_v3" else 32
    hooked, after = (normed, post) if tap == "activation" else (layer, torch.clone)
    # When / Then
    assert_sliced_equals_whole(model, trace, layer, tap, hooked, size_px=size_px, post=after)


def prelu_network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        layers = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Conv2d(8, 12, 3, groups=4, bias=False), nn.PReLU(), nn.Conv2d(12, 2, 3)
        )
        nn.init.uniform_(layers[1].weight, -1, 1)  # type: ignore[arg-type]
    return layers.eval().requires_grad_(False)


@pytest.mark.parametrize(("layer", "tap", "hooked"), [("0", "activation", "1"), ("2", "activation", "3")])
def test_sliced_equals_unsliced_with_a_slope_per_channel_and_with_one_for_all(
    layer: str, tap: str, hooked: str
) -> None:
    # Given
    model = prelu_network()
    # When / Then
    assert_sliced_equals_whole(model, tracing.trace(model), layer, tap, hooked, size_px=16)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 6, 3, padding=2, padding_mode="circular"),
        nn.Conv2d(3, 6, 3, padding="same", padding_mode="reflect"),
        nn.Conv2d(3, 6, 3, stride=2, dilation=2),
        nn.Conv2d(3, 6, 5, padding=2, groups=3),
        nn.Conv2d(3, 6, 1, bias=False),
    ],
    ids=["circular", "reflect", "strided-dilated", "grouped", "pointwise-without-bias"],
)
def test_sliced_equals_unsliced_for_every_kind_of_convolution(conv: nn.Conv2d) -> None:
    # Given
    model = nn.Sequential(conv, nn.ReLU()).eval().requires_grad_(False)
    # When / Then
    assert_sliced_equals_whole(model, tracing.trace(model), "0", "activation", "1", size_px=16)


@pytest.mark.parametrize("filters", [(5,), (5, 5, 5), (7, 0, 7, 3, 0), tuple(range(8)), (7, 6, 5, 4, 3, 2, 1, 0)])
@pytest.mark.parametrize("layer", ["0", "2"])
def test_filters_may_repeat_and_come_in_any_order(layer: str, filters: tuple[int, ...]) -> None:
    # Given
    model = prelu_network()
    # When / Then
    assert_sliced_equals_whole(model, tracing.trace(model), layer, "conv", layer, size_px=16, filters=filters)


def test_one_tap_gives_many_slices_that_do_not_disturb_each_other() -> None:
    # Given a grouped convolution, whose group count depends on the slice
    model = prelu_network()
    tap = LayerExtractor(model, tracing.trace(model), "2", "conv")
    pictures = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    # When
    narrow, wide = tap.slice(torch.tensor([4, 4])), tap.slice(torch.tensor([0, 11]))
    first, second, again = narrow(pictures), wide(pictures), narrow(pictures)
    # Then
    whole = model[:3](pictures)
    assert torch.equal(first, again)
    torch.testing.assert_close(first, whole[:, 4])
    torch.testing.assert_close(second, torch.stack([whole[0, 0], whole[1, 11]]))


@pytest.mark.parametrize(
    ("channels", "groups"), [((8, 8), 8), ((8, 16), 8), ((8, 12), 4)], ids=["depthwise", "multiplied", "grouped"]
)
@pytest.mark.parametrize("sizes", [(1, 5), (5, 1), (3, 3)])
def test_slicing_a_tap_again_for_other_filters_of_a_grouped_convolution_gives_the_whole_networks_maps(
    channels: tuple[int, int], groups: int, sizes: tuple[int, int]
) -> None:
    # Given
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        model = nn.Sequential(nn.Conv2d(3, channels[0], 3), nn.Softplus(), nn.Conv2d(*channels, 3, groups=groups))
    model.eval().requires_grad_(False)
    tap = LayerExtractor(model, tracing.trace(model), "2", "activation")
    pictures = torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    whole = model(pictures)
    for first in (0, 2):
        # When each slice is made after the one before it has run
        for size in sizes:
            filters = torch.arange(first, first + size) % channels[1]
            maps = tap.slice(filters)(pictures[:size])
            # Then
            torch.testing.assert_close(maps, whole[torch.arange(size), filters])
    conv = model[2]
    assert isinstance(conv, nn.Conv2d)
    assert conv.groups == groups


def test_a_slice_gives_the_maps_before_and_after_the_activation_function() -> None:
    # Given a batch-norm and a ReLU that works in place
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    model.eval().requires_grad_(False)
    give_every_channel_its_own_norm(model)
    model[1].bias.data.zero_()  # type: ignore[operator]
    pictures = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    # When
    maps, before = (
        LayerExtractor(model, tracing.trace(model), "0", "activation").slice(torch.tensor([5, 0, 5])).both(pictures)
    )
    # Then
    normed = model[:2](pictures)[torch.arange(3), [5, 0, 5]]
    assert (normed < 0).any()
    torch.testing.assert_close(before, normed)
    torch.testing.assert_close(maps, normed.relu())


@pytest.mark.parametrize("affine", [True, False])
def test_the_statistics_of_a_batch_norm_are_its_gain_and_variance(affine: bool) -> None:
    # Given
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=affine), nn.ReLU()).eval().requires_grad_(False)
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    norm.running_var.copy_(torch.arange(8.0))
    if affine:
        norm.weight.data.copy_(torch.arange(8.0) - 4)
    trace = tracing.trace(model)
    # When
    statistics = tracing.norm_statistics(model, tracing.tapped(model, tracing.find(model, trace, "0"), "activation"))
    # Then
    assert statistics is not None
    gain, variance = statistics
    assert torch.equal(gain, norm.weight if affine else torch.ones(8))
    assert torch.equal(variance, torch.arange(8.0))
    assert LayerExtractor(model, trace, "0", "activation").inert.tolist() == [
        place == 0 or (affine and place == 4) for place in range(8)
    ]


@pytest.mark.parametrize("tap", ["activation", "conv"])
def test_where_there_is_no_batch_norm_there_are_no_statistics(tap: str) -> None:
    # Given
    model = nn.Sequential(nn.Conv2d(3, 8, 3), *([nn.BatchNorm2d(8)] if tap == "conv" else []), nn.ReLU()).eval()
    trace = tracing.trace(model)
    # When
    statistics = tracing.norm_statistics(model, tracing.tapped(model, tracing.find(model, trace, "0"), tap))
    # Then
    assert statistics is None


def test_the_statistics_of_timms_functional_batch_norm_are_its_modules(
    network: Callable[[str], tuple[nn.Module, fx.Graph]],
) -> None:
    # Given
    model, trace = network("efficientnet_lite0")
    for layer, norm in (("conv_stem", "bn1"), ("blocks.3.1.conv_dw", "blocks.3.1.bn2"), ("conv_head", "bn2")):
        # When
        statistics = tracing.norm_statistics(
            model, tracing.tapped(model, tracing.find(model, trace, layer), "activation")
        )
        # Then
        assert statistics is not None
        assert torch.equal(statistics[0], model.get_submodule(norm).weight)  # type: ignore[arg-type]
        assert torch.equal(statistics[1], model.get_submodule(norm).running_var)  # type: ignore[arg-type]


def test_of_the_trained_efficientnet_lite0_130_channels_of_21008_are_inert() -> None:
    # Given
    chosen, file = weights.choose("efficientnet_lite0", None)
    model = weights.load("efficientnet_lite0", chosen, file, seed=0)
    trace = tracing.trace(model)
    # When
    inert = {
        layer: LayerExtractor(model, trace, layer, "activation").inert for layer in tracing.convolutions(model, trace)
    }
    # Then
    assert sum(len(channels) for channels in inert.values()) == 21008
    assert sum(int(channels.sum()) for channels in inert.values()) == 130
    assert int(inert["conv_stem"].sum()) == 4


@pytest.mark.parametrize("tap", ["activation", "conv"])
def test_a_filter_without_weights_is_inert(tap: str) -> None:
    # Given
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval().requires_grad_(False)
    model[0].weight[2] = 0.0  # type: ignore[operator]  # a convolution's
    # Then
    assert LayerExtractor(model, tracing.trace(model), "0", tap).inert.nonzero().tolist() == [[2]]


def test_cutting_a_network_changes_nothing_in_it() -> None:
    # Given
    model = prelu_network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pictures = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    answer = model(pictures)
    # When
    LayerExtractor(model, tracing.trace(model), "2", "activation").slice(torch.tensor([4]))(pictures)
    # Then
    assert torch.equal(model(pictures), answer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    conv = model[2]
    assert isinstance(conv, nn.Conv2d)
    assert (conv.groups, conv.weight.shape[0]) == (4, 12)


def test_nothing_behind_the_layer_runs(vgg16: tuple[nn.Module, fx.Graph]) -> None:
    # Given
    model, trace = vgg16
    pictures = torch.rand(1, 3, 32, 32)
    # When
    with outputs_of(model, "features.4") as runs_before, outputs_of(model, "features.7") as runs_behind:
        LayerExtractor(model, trace, "features.5", "activation").slice(torch.tensor([0]))(pictures)
    # Then
    assert (len(runs_before), len(runs_behind)) == (1, 0)


class Windows(nn.Module):
    """Cuts maps into windows and puts them together again; raises where they do not fit."""

    def __init__(self, side_px: int) -> None:
        super().__init__()
        self.side_px = side_px

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count, channels, height, width = x.shape
        windows = x.reshape(count, channels, height // self.side_px, self.side_px, width // self.side_px, self.side_px)
        return windows.flatten(4, 5).flatten(2, 3)


def test_each_input_size_is_tried_once() -> None:
    # Given a network of which the layer sees windows of 8 px, as attention has them
    model = nn.Sequential(OrderedDict(first=nn.Conv2d(3, 4, 1), windows=Windows(8), last=nn.Conv2d(4, 4, 1)))
    tap = LayerExtractor(model, tracing.trace(model), "last", "conv")
    # When / Then
    with outputs_of(model, "first") as runs:
        assert [tap.takes(*size) for size in [(16, 24), (16, 20), (20, 16)]] == [True, False, False]
        assert len(runs) == 3
        assert [tap.takes(*size) for size in [(16, 24), (16, 20), (20, 16)]] == [True, False, False]
        assert tap.map_px(16, 24) == (16, 24)
        assert len(runs) == 3
        # And nobody is told a map where there is none
        with pytest.raises(RuntimeError, match="shape"):
            tap.map_px(16, 20)


def test_out_of_memory_does_not_count_as_an_unsupported_input_size(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1))
    tap = LayerExtractor(model, tracing.trace(model), "1", "conv")

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    # When / Then
    with monkeypatch.context() as patched:
        patched.setattr(nn.Conv2d, "_conv_forward", full)
        with pytest.raises(torch.OutOfMemoryError):
            tap.takes(16, 16)
    assert tap.takes(16, 16)


def test_the_number_of_filters_is_known() -> None:
    # Given
    model = prelu_network()
    # When / Then
    assert LayerExtractor(model, tracing.trace(model), "2", "conv").channels == 12


def test_extracting_a_module_that_is_no_convolution_is_an_unknown_layer() -> None:
    # Given
    model = prelu_network()
    # When / Then
    with pytest.raises(UnknownLayer, match="'1'"):
        LayerExtractor(model, tracing.trace(model), "1", "activation")
