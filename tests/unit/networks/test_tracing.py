"""Which convolutions a network has, what follows each, and what each costs."""

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from workers.contract.errors import UnknownLayer
from workers.networks import cost, registry, tracing


def channels(model: nn.Module, layer: str) -> int:
    conv = model.get_submodule(layer)
    assert isinstance(conv, _ConvNd)
    return conv.out_channels


def convolutions_as_they_run(model: nn.Module, size_px: int) -> list[str]:
    """Names of the convolutions in the order in which a real forward first calls them."""
    called: dict[str, None] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _m, _i, name=name: called.setdefault(name))
        for name, module in model.named_modules()
        if isinstance(module, _ConvNd)
    ]
    model(torch.empty(1, 3, size_px, size_px, device="meta"))
    for hook in hooks:
        hook.remove()
    return list(called)


@pytest.mark.parametrize("name", registry.names())
def test_every_model_lists_its_convolutions_in_the_order_they_run(name: str) -> None:
    # Given
    model = registry.skeleton(name)
    # When
    found = tracing.convolutions(model, tracing.trace(model))
    # Then
    assert list(found) == convolutions_as_they_run(model, size_px=224)
    assert all(node.target == layer for layer, node in found.items())


@pytest.mark.parametrize(
    ("name", "layers", "filters"),
    [("vgg16", 13, 4_224), ("inception_v3", 94, 17_216), ("efficientnet_lite0", 49, 21_008)],
)
def test_layers_and_filters_are_counted(name: str, layers: int, filters: int) -> None:
    # Given
    model = registry.skeleton(name)
    # When
    found = tracing.convolutions(model, tracing.trace(model))
    # Then
    assert len(found) == layers
    assert sum(channels(model, layer) for layer in found) == filters


@pytest.mark.parametrize(("name", "head"), [("inception_v3", "AuxLogits"), ("googlenet", "aux")])
def test_auxiliary_heads_are_left_out(name: str, head: str) -> None:
    # Given
    model = registry.skeleton(name)
    # When / Then
    assert not [layer for layer in tracing.convolutions(model, tracing.trace(model)) if layer.startswith(head)]


def test_an_unknown_layer_is_named() -> None:
    # Given
    model = registry.skeleton("resnet18")
    # When / Then
    with pytest.raises(UnknownLayer, match="layer9"):
        tracing.find(model, tracing.trace(model), "layer9.conv1")


def chain_of(model: nn.Module, layer: str, tap: str = "activation") -> list[str]:
    """What runs from the layer's convolution to the tapped tensor; modules that do nothing are left out."""
    trace = tracing.trace(model)
    return [
        name_of(node)
        for node in tracing.tapped(model, tracing.find(model, trace, layer), tap)
        if node.op != "call_module" or not isinstance(model.get_submodule(str(node.target)), nn.Identity)
    ]


def name_of(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else node.target.__name__


@pytest.mark.parametrize(
    ("name", "layer", "chain"),
    [
        ("vgg16", "features.0", ["features.0", "features.1"]),
        ("vgg16", "features.28", ["features.28", "features.29"]),
        ("vgg16_bn", "features.0", ["features.0", "features.1", "features.2"]),
        ("alexnet", "features.10", ["features.10", "features.11"]),
        ("resnet18", "conv1", ["conv1", "bn1", "relu"]),
        ("resnet18", "layer1.0.conv1", ["layer1.0.conv1", "layer1.0.bn1", "layer1.0.relu"]),
        # before the addition
        ("resnet18", "layer1.0.conv2", ["layer1.0.conv2", "layer1.0.bn2"]),
        ("resnet50", "layer1.0.conv3", ["layer1.0.conv3", "layer1.0.bn3"]),
        ("resnet50", "layer1.0.downsample.0", ["layer1.0.downsample.0", "layer1.0.downsample.1"]),
        # the next block's norm stands behind a concatenation, a pooling
        (
            "densenet121",
            "features.denseblock1.denselayer1.conv1",
            [f"features.denseblock1.denselayer1.{step}" for step in ("conv1", "norm2", "relu2")],
        ),
        (
            "densenet121",
            "features.denseblock1.denselayer1.conv2",
            ["features.denseblock1.denselayer1.conv2"],
        ),
        ("densenet121", "features.transition1.conv", ["features.transition1.conv"]),
        ("inception_v3", "Mixed_5b.branch1x1.conv", ["Mixed_5b.branch1x1.conv", "Mixed_5b.branch1x1.bn", "relu"]),
        ("efficientnet_b0", "features.0.0", ["features.0.0", "features.0.1", "features.0.2"]),
        (
            "efficientnet_b0",
            "features.1.0.block.1.fc2",
            ["features.1.0.block.1.fc2", "features.1.0.block.1.scale_activation"],
        ),
        ("efficientnet_b0", "features.2.1.block.3.0", ["features.2.1.block.3.0", "features.2.1.block.3.1"]),
        ("mobilenet_v3_small", "features.12.0", ["features.12.0", "features.12.1", "features.12.2"]),
        ("efficientnet_lite0", "conv_stem", ["conv_stem", "batch_norm", "bn1.act"]),
        ("efficientnet_lite0", "blocks.1.0.conv_pwl", ["blocks.1.0.conv_pwl", "batch_norm"]),
        # a layer-norm over permuted axes is no batch-norm
        ("convnext_tiny", "features.1.0.block.0", ["features.1.0.block.0"]),
        ("vit_b_16", "conv_proj", ["conv_proj"]),
        ("squeezenet1_0", "classifier.1", ["classifier.1", "classifier.2"]),
        (
            "shufflenet_v2_x0_5",
            "stage2.0.branch1.0",
            ["stage2.0.branch1.0", "stage2.0.branch1.1"],
        ),
    ],
)
def test_the_activation_tap_ends_after_the_batch_norm_and_activation_that_follow(
    name: str, layer: str, chain: list[str]
) -> None:
    # Given
    model = registry.skeleton(name)
    # When / Then
    assert chain_of(model, layer) == chain


@pytest.mark.parametrize("name", ["vgg16", "resnet18", "efficientnet_lite0"])
def test_the_conv_tap_ends_at_the_convolution(name: str) -> None:
    # Given
    model = registry.skeleton(name)
    # When / Then
    trace = tracing.trace(model)
    for conv in tracing.convolutions(model, trace).values():
        assert tracing.tapped(model, conv, "conv") == [conv]


class ReadTwice(nn.Module):
    """Adds what the convolution gave to what the ReLU made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return x + F.relu(x)


class Method(nn.Module):
    """Activates by a tensor's method."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activated: torch.Tensor = self.conv(x).relu()
        return activated.sigmoid()


class Twice(nn.Module):
    """Runs one convolution twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.conv(torch.tanh(self.conv(x))))


def test_the_tap_ends_where_something_else_reads_the_tensor() -> None:
    # Given / When / Then
    assert chain_of(ReadTwice().eval(), "conv") == ["conv"]


def test_an_activation_by_method_is_one() -> None:
    # Given / When / Then
    assert chain_of(Method().eval(), "conv") == ["conv", "relu"]


def test_a_convolution_that_runs_twice_is_tapped_where_it_runs_first() -> None:
    # Given
    model = Twice().eval()
    # When / Then
    assert chain_of(model, "conv") == ["conv", "tanh"]
    assert list(tracing.convolutions(model, tracing.trace(model))) == ["conv"]


@pytest.mark.parametrize(
    ("behind", "length"),
    [
        ((nn.ReLU(), nn.BatchNorm2d(4)), 2),
        ((nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.ReLU()), 2),
        ((nn.Dropout(), nn.ReLU(), nn.ReLU()), 3),
        ((nn.MaxPool2d(2), nn.ReLU()), 1),
        ((nn.GroupNorm(2, 4), nn.ReLU()), 1),
        ((), 1),
    ],
    ids=["relu-norm", "norm-norm", "dropout-relu", "pool", "group-norm", "nothing"],
)
def test_one_norm_and_one_activation_belong_to_a_layer(behind: tuple[nn.Module, ...], length: int) -> None:
    # Given
    model = nn.Sequential(nn.Conv2d(3, 4, 3), *behind).eval()
    # When / Then
    assert chain_of(model, "0") == [str(place) for place in range(length)]


@pytest.mark.parametrize(
    ("name", "classifier", "last_norm"),
    [
        ("resnet18", "fc", "layer4.1.bn2"),
        ("vgg16_bn", "classifier.6", "features.41"),
        ("efficientnet_b0", "classifier.1", "features.8.1"),
        ("inception_v3", "fc", "Mixed_7c.branch_pool.bn"),
        ("googlenet", "fc", "inception5b.branch4.1.bn"),
    ],
)
def test_the_head_begins_behind_the_last_layers_own_norm(name: str, classifier: str, last_norm: str) -> None:
    # Given the activation tap of the last layer, which depends on the norm behind it
    model = registry.skeleton(name)
    trace = tracing.trace(model)
    last = list(tracing.convolutions(model, trace))[-1]
    assert last_norm in chain_of(model, last)
    # When
    needed = tracing.is_needed(model, trace)
    # Then
    assert not needed(f"{classifier}.weight")
    assert needed(f"{last_norm}.running_var")
    assert needed(f"{last}.weight")


def test_the_cost_of_a_small_network_is_the_one_computed_by_hand() -> None:
    # Given 16 px -> 4 maps of 16 x 16 -> 8 x 8 -> 6 maps of 6 x 6 -> 12 maps of 6 x 6 in two groups
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3),
        nn.Conv2d(6, 12, 1, groups=2),
    ).to("meta")
    # When
    costs = cost.costs(model.eval(), tracing.trace(model), (16, 16))
    # Then a multiply-add counts two
    first, second, third = 16 * 16 * (3 * 9) * 2, 6 * 6 * (4 * 9) * 2, 6 * 6 * 3 * 2
    assert [cost.output_px for cost in costs.values()] == [(16, 16), (6, 6), (6, 6)]
    assert [cost.filter_flop for cost in costs.values()] == [first, second, third]
    assert [cost.upstream_flop for cost in costs.values()] == [0, 4 * first, 4 * first + 6 * second]
    # and the way back to the picture costs as much as the way there
    assert costs["3"].step_gflop() == pytest.approx(2 * (4 * first + second) / 1e9)
    assert costs["3"].step_gflop(6) == pytest.approx(2 * (4 * first + 6 * second) / 1e9)


class Branches(nn.Module):
    """Two convolutions side by side, then a third on both."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 1)
        self.right = nn.Conv2d(3, 8, 1)
        self.both = nn.Conv2d(12, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both: torch.Tensor = self.both(torch.cat([self.left(x), self.right(x)], 1))
        return both


def test_a_branch_does_not_pay_for_its_neighbour() -> None:
    # Given
    model = Branches().eval().to("meta")
    # When
    costs = cost.costs(model, tracing.trace(model), (8, 8))
    # Then
    assert costs["right"].upstream_flop == 0
    assert costs["both"].upstream_flop == 64 * 2 * 3 * (4 + 8)


def test_all_of_vgg16_at_the_notebooks_size_costs_76_tflop_a_step() -> None:
    # Given
    model = registry.skeleton("vgg16")
    # When
    costs = cost.costs(model, tracing.trace(model), (150, 150))
    # Then
    step_gflop = sum(cost.step_gflop() * channels(model, layer) for layer, cost in costs.items())
    assert step_gflop == pytest.approx(76_091, abs=0.5)


@pytest.mark.parametrize(("size_px", "deepest"), [(8, "features.21"), (15, "features.21"), (16, "features.28")])
def test_layers_that_a_small_picture_does_not_reach_are_left_out(size_px: int, deepest: str) -> None:
    # Given VGG16 halves its maps four times before its last block, and 8 px only three
    model = registry.skeleton("vgg16")
    # When
    costs = cost.costs(model, tracing.trace(model), (size_px, size_px))
    # Then
    assert list(costs)[-1] == deepest


def test_a_network_that_takes_one_size_only_costs_nothing_at_another() -> None:
    # Given
    model = registry.skeleton("vit_b_16")
    trace = tracing.trace(model)
    # When / Then
    assert list(cost.costs(model, trace, (224, 224))) == ["conv_proj"]
    assert cost.costs(model, trace, (100, 100)) == {}
