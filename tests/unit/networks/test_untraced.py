"""Networks that cannot be traced: layers by hooks, with the values of a traced network of the same parameters."""

import pytest
import torch
from torch import nn

from tests.recipes import recipe_of
from workers.contract.errors import BadNetwork
from workers.networks import cost, registry, tracing, units, untraced
from workers.networks.tensor_extractor import extractor_of
from workers.rendering.render import render

PICTURES = torch.rand(2, 3, 20, 24)


class _Traced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 6, 3), nn.ReLU()
        )
        self.head = nn.Linear(6, 5)
        self.unused = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.features(x).mean((2, 3)))
        return y


class _Dynamic(_Traced):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        try:
            maps = self.features(x)
        except Exception:
            raise AssertionError("the network's handlers see no exception of ours") from None
        if maps.sum() > 1e9:
            maps = self.unused(maps)
        y: torch.Tensor = self.head(maps.mean((2, 3)))
        return y


def _network(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval().requires_grad_(False)


def test_layers_and_costs_are_those_of_a_traced_network() -> None:
    # Given two networks of the same layers, of which one decides by values
    dynamic, traced = _network(_Dynamic), _network(_Traced)
    graph, known = tracing.trace(dynamic), tracing.trace(traced)
    assert untraced.is_untraced(graph)
    assert not untraced.is_untraced(known)
    # When
    found = cost.costs(dynamic, graph, (20, 24), ("conv", "linear", "logits"))
    # Then maps and costs are the same; its last linear layer is not known to be its output
    expected = cost.costs(traced.to("meta"), known, (20, 24), ("conv", "linear", "logits"))
    for name in ("features.0", "features.4", "logits"):
        assert found[name].output_px == expected[name].output_px
        assert found[name].step_gflop() == pytest.approx(expected[name].step_gflop(), rel=0.01)
    assert found["head"].layout.channels == 5
    assert "unused" not in found
    assert list(units.named(dynamic, graph)) == [
        "features.0", "features.1", "features.2", "features.3", "features.4", "features.5", "head", "unused", "logits",
    ]  # fmt: skip


@pytest.mark.parametrize("layer", ["features.0", "features.4", "logits"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_values_and_gradients_are_those_of_a_traced_network(layer: str, precision: str) -> None:
    # Given
    results = []
    for kind in (_Dynamic, _Traced):
        model = _network(kind)
        extractor = extractor_of(model, tracing.trace(model), layer, "activation", (20, 24), precision)  # type: ignore[arg-type]
        pictures = PICTURES.clone().requires_grad_(True)
        # When
        maps = extractor.slice(torch.tensor([1, 3]))(pictures)
        maps.sum().backward()  # type: ignore[no-untyped-call]  # torch's
        results.append((maps.detach(), pictures.grad))
    # Then
    (maps, gradient), (expected, expected_gradient) = results
    tolerance = 1e-5 if precision == "fp32" else 0.05
    assert torch.allclose(maps, expected, atol=tolerance, rtol=tolerance)
    assert gradient is not None
    assert expected_gradient is not None
    assert torch.nn.functional.cosine_similarity(gradient.flatten(), expected_gradient.flatten(), dim=0) > 0.98


def test_no_hook_remains() -> None:
    # Given
    model = _network(_Dynamic)
    extractor = extractor_of(model, tracing.trace(model), "head", "activation", (20, 24))
    # When
    extractor.slice(torch.tensor([0, 1]))(PICTURES)
    # Then
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert model(PICTURES).shape == (2, 5)


def test_a_layer_that_never_runs_is_named() -> None:
    # Given
    model = _network(_Dynamic)
    extractor = extractor_of(model, tracing.trace(model), "unused", "activation", (20, 24))
    # When / Then
    with pytest.raises(BadNetwork, match="layer 'unused' never runs for pictures of 20x24 px; choose another layer"):
        extractor.slice(torch.tensor([0, 1]))(PICTURES)


def test_all_parameters_of_a_file_are_needed() -> None:
    # Given
    model = _network(_Dynamic)
    # When
    needed = tracing.is_needed(model, tracing.trace(model))
    # Then
    assert all(needed(name) for name in model.state_dict())
    assert list(model.state_dict()) == list(_network(_Dynamic).state_dict())


def test_a_network_of_timms_that_is_not_traced_is_rendered() -> None:
    # Given a network that assigns to parts of a tensor
    model = registry.build("timm:convit_tiny")
    graph = tracing.trace(model)
    assert untraced.is_untraced(graph)
    # When
    recipe = recipe_of("fourier", size_px=224, steps=2, rescue=False)
    tiles = render(model, graph, "patch_embed.proj", [0, 3], recipe, torch.device("cpu"))
    # Then
    assert not any(tile.error for tile in tiles)
