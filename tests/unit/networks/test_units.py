"""Tensors of any kind: names, kinds, layouts, and extractors that agree with the network itself."""

from collections import Counter

import pytest
import torch
from torch import fx, nn
from torchvision.models.feature_extraction import NodePathTracer

from workers.contract.errors import UnknownLayer
from workers.contract.keys import is_name
from workers.networks import registry, tracing, units
from workers.networks.gradient_override import GradientOverride
from workers.networks.layouts import as_maps, layout_of, propagate
from workers.networks.tensor_extractor import TensorExtractor, extractor_of


def network(name: str) -> tuple[nn.Module, fx.Graph]:
    model = registry.build(name, seed=2)
    return model, tracing.trace(model)


def output_of(model: nn.Module, graph: fx.Graph, name: str, pictures: torch.Tensor) -> torch.Tensor:
    """The tensor of that name, recorded while torch.fx runs the whole graph node by node."""
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # type: ignore[assignment]  # an activation's
    runner = fx.Interpreter(model, garbage_collect_values=False, graph=graph)
    with torch.no_grad():
        runner.run(pictures)
    value: torch.Tensor = runner.env[units.find(model, graph, name).node]
    return value


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "inception_v3", "vit_b_32", "swin_t", "shufflenet_v2_x0_5"])
def test_names_are_those_of_torchvisions_feature_extraction(name: str) -> None:
    # Given a network, and torchvision's own names of its operations
    model = registry.skeleton(name)
    graph = tracing.trace(model)
    tracer = NodePathTracer()
    # torchvision cuts the number off a module's name (ln_2), and counts anew
    theirs = [
        str(node.target) if node.op == "call_module" and str(node.target)[-2:-1] == "_" else name
        for node, name in ((node, tracer.node_to_qualname.get(node, "")) for node in tracer.trace(model).nodes)
        if node.op.startswith("call_")
    ]
    # When its tensors are named
    found = units.named(model, graph)
    # Then the names are the same, but for that of the logits, and all of them can be in keys
    ours = [units.own_name(graph, unit.node) if key == "logits" else key for key, unit in found.items()]
    assert ours == theirs
    assert all(map(is_name, found))


def test_blocks_are_sums_and_concatenations_of_branches_and_their_activation_functions() -> None:
    # Given networks with residual sums, and with concatenations
    for name, first, last, count in (
        ("resnet18", "layer1.0.add", "layer4.1.relu_1", 16),
        ("googlenet", "inception3a.cat", "inception5b.cat", 9),
    ):
        model = registry.skeleton(name)
        found = units.named(model, tracing.trace(model))
        # Then these are its blocks
        blocks = [key for key, unit in found.items() if unit.kind == "block"]
        assert (blocks[0], blocks[-1], len(blocks)) == (first, last, count)
        assert Counter(unit.kind for unit in found.values())["logits"] == 1
        assert list(found)[-1] == "logits"


@pytest.mark.parametrize(
    ("name", "size_px", "layer", "axis", "channels", "map_px"),
    [
        ("resnet18", 64, "layer2.0.add", 1, 128, (8, 8)),
        ("resnet18", 64, "logits", 1, 1000, (1, 1)),
        ("googlenet", 64, "inception4a.cat", 1, 512, (4, 4)),
        # the class token is no place of the map
        ("vit_b_32", 224, "encoder.layers.encoder_layer_3.mlp.0", 2, 3072, (7, 7)),
        ("vit_b_32", 224, "encoder.layers.encoder_layer_3.add_1", 2, 768, (7, 7)),
        ("swin_t", 64, "features.3.0.mlp.0", 3, 768, (8, 8)),
        ("swin_t", 64, "logits", 1, 1000, (1, 1)),
        ("convnext_tiny", 64, "features.1.0.block.3", 3, 384, (16, 16)),
        ("shufflenet_v2_x0_5", 64, "stage2.1.cat", 1, 48, (8, 8)),
        # windows times their places
        ("maxvit_t", 224, "blocks.0.layers.0.layers.window_attention.mlp_layer.1", 3, 256, (64, 49)),
    ],
)
def test_the_axis_of_the_channels_is_followed_through_the_network(
    name: str, size_px: int, layer: str, axis: int, channels: int, map_px: tuple[int, int]
) -> None:
    # Given the tensor of a layer
    model = registry.skeleton(name)
    graph = tracing.trace(model)
    # When
    layout = layout_of(model, graph, units.find(model, graph, layer).node, (size_px, size_px))
    # Then
    assert (layout.axis, layout.channels, layout.map_px) == (axis, channels, map_px)
    assert layout.has_map == (layer != "logits")


def test_the_output_of_every_operation_of_a_transformer_has_its_channels_on_the_axis_of_768_or_3072() -> None:
    # Given ViT-B/32
    model = registry.skeleton("vit_b_32")
    # Then each of its tensors with a map has one of the two widths
    steps = propagate(model, tracing.trace(model), (224, 224))
    widths = {step.layout.channels for step in steps if step.layout and step.layout.has_map}
    assert widths == {768, 3072}


@pytest.mark.parametrize(
    ("name", "size_px", "layer"),
    [
        ("resnet18", 32, "layer1.0.add"),
        ("resnet18", 32, "layer2.1.relu_1"),
        ("resnet18", 32, "logits"),
        ("squeezenet1_1", 48, "features.3.cat"),
        ("squeezenet1_1", 48, "logits"),
        ("vgg11", 32, "classifier.0"),
        ("swin_t", 64, "features.1.1.add_1"),
    ],
)
def test_an_extractor_computes_what_the_network_computes(name: str, size_px: int, layer: str) -> None:
    # Given the tensor of a layer in the whole network
    model, graph = network(name)
    pictures = torch.rand(3, 3, size_px, size_px, generator=torch.Generator().manual_seed(0))
    expected = output_of(model, graph, layer, pictures)
    if layer == "classifier.0":
        expected = expected.relu()
    # When three of its units are extracted
    extractor = extractor_of(model, graph, layer, "activation", (size_px, size_px))
    chosen = torch.tensor([extractor.channels - 1, 0, 5])
    with torch.no_grad():
        after, before = extractor.slice(chosen).both(pictures)
        whole, _ = extractor.slice(chosen).whole(pictures)
    # Then each has the map of its picture, and so have they together, in ascending order
    axis = layout_of(model, graph, units.find(model, graph, layer).node, (size_px, size_px)).axis
    maps = as_maps(expected, axis, None)
    torch.testing.assert_close(after, maps[torch.arange(3), chosen], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole, maps[:, [0, 5, extractor.channels - 1]], rtol=1e-4, atol=1e-5)
    # And its pre-activation differs from it only after an activation function
    if layer in {"layer2.1.relu_1", "classifier.0"}:
        assert (before < 0).any()
        torch.testing.assert_close(before.relu(), after)
    else:
        torch.testing.assert_close(before, after)


def test_a_vision_transformers_hidden_units_are_those_after_the_activation_at_its_patches() -> None:
    # Given a hidden layer of an MLP, 50 tokens of which the first is the class token
    model, graph = network("vit_b_32")
    pictures = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    layer = "encoder.layers.encoder_layer_0.mlp.0"
    tokens = output_of(model, graph, layer, pictures)
    # When
    extractor = extractor_of(model, graph, layer, "activation", (224, 224))
    with torch.no_grad():
        after, before = extractor.slice(torch.tensor([7, 3000])).both(pictures)
    # Then
    for picture, unit in ((0, 7), (1, 3000)):
        patches = tokens[picture, 1:, unit].reshape(7, 7)
        torch.testing.assert_close(before[picture], patches, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(after[picture], nn.functional.gelu(patches), rtol=1e-4, atol=1e-5)
    # And pictures of other sizes are refused without a word
    assert not extractor.takes(256, 256)


class _TokensOfChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm, self.hidden = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        maps = self.norm(self.patches(pictures).permute(0, 2, 3, 1))
        tokens: torch.Tensor = self.hidden(maps.reshape(maps.shape[0], -1, maps.shape[3]))
        return tokens.mean(1)


def test_tokens_of_a_map_with_its_channels_last_are_in_its_rows_and_columns() -> None:
    # Given
    torch.manual_seed(0)
    model, pictures = _TokensOfChannelsLast().eval().requires_grad_(False), torch.rand(1, 3, 8, 24)
    graph = tracing.trace(model)
    # When
    after, _ = extractor_of(model, graph, "hidden", "activation", (8, 24)).slice(torch.tensor([3])).both(pictures)
    # Then
    maps = model.norm(model.patches(pictures).permute(0, 2, 3, 1))
    torch.testing.assert_close(after[0], model.hidden(maps)[0, :, :, 3])


def test_only_what_reads_one_convolution_at_most_has_the_field_of_view_of_a_stem() -> None:
    model, graph = network("resnet18")
    found = {
        name: TensorExtractor(model, graph, name, "activation", (32, 32)).stem
        for name in ("bn1", "relu", "maxpool", "layer1.0.bn1", "layer1.0.add", "logits")
    }
    assert found == {
        "bn1": True, "relu": True, "maxpool": True, "layer1.0.bn1": False, "layer1.0.add": False, "logits": False,
    }  # fmt: skip


def test_a_linear_unit_without_weights_is_inert() -> None:
    # Given a classifier of which one class has no weights
    model, graph = network("resnet18")
    weight = model.get_submodule("fc").weight
    assert isinstance(weight, nn.Parameter)
    weight[3] = 0.0
    # Then no picture can excite that class
    assert TensorExtractor(model, graph, "logits", "activation", (32, 32)).inert.nonzero().tolist() == [[3]]


def test_a_gradient_passes_through_dead_units_of_a_linear_layer_too() -> None:
    # Given a hidden layer whose ReLU is inactive for every picture
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5), nn.ReLU())
    model.append(nn.Linear(5, 2)).eval().requires_grad_(False)
    hidden = model[3]
    assert isinstance(hidden, nn.Linear)
    hidden.bias.fill_(-100.0)
    extractor = TensorExtractor(model, tracing.trace(model), "logits", "activation", (8, 8))
    # When one of two pictures is allowed gradients through them
    pictures = torch.rand(2, 3, 8, 8, requires_grad=True)
    maps, _ = extractor.slice(torch.tensor([0, 1])).both(pictures, GradientOverride(torch.tensor([True, False])))
    (gradient,) = torch.autograd.grad(maps.sum(), pictures)
    # Then only that one has any
    assert [bool(one.abs().sum() > 0) for one in gradient] == [True, False]


def test_a_tensor_that_does_not_exist_or_has_no_channels_is_refused() -> None:
    model, graph = network("vit_b_32")
    with pytest.raises(UnknownLayer, match="no layer 'encoder.add_9' in this network"):
        extractor_of(model, graph, "encoder.add_9", "activation", (224, 224))
    with pytest.raises(UnknownLayer, match="getitem has no axis of channels"):
        extractor_of(model, graph, "getitem", "activation", (224, 224))


def test_a_network_that_ends_in_a_convolution_has_no_logits() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
    assert list(units.named(model, tracing.trace(model))) == ["0", "1", "2"]
