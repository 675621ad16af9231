"""Networks use the compiled convolutions where these suit, and tiles say so."""

import pytest
import torch
from torch import fx, nn

from tests.unit.networks.test_fusion import normed, pooled, whole
from workers.kernels import loader
from workers.kernels.winograd import WinogradConv
from workers.networks import tracing
from workers.networks.fusion import FusedConvolutions
from workers.networks.layer_extractor import LayerExtractor


def operations(upstream: fx.GraphModule) -> list[str]:
    return [node.name for node in upstream.graph.nodes if node.op.startswith("call")]


def test_extractors_of_one_network_share_compiled_convolutions() -> None:
    # Given
    model = normed()
    fused = FusedConvolutions()
    # When
    first, second = (fused.optimize(whole(model), "fp32") for _ in range(2))
    # Then
    assert first.get_submodule("2") is second.get_submodule("2")
    assert isinstance(first.get_submodule("2"), WinogradConv) == (loader.library() is not None)


@pytest.mark.skipif(loader.library() is None, reason="no compiled convolutions for this processor")
def test_relus_are_fused_into_compiled_convolutions_unless_they_are_needed_separately() -> None:
    # Given
    model = pooled()
    x = torch.randn(2, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    fused = FusedConvolutions()
    # When
    fast, apart = fused.optimize(whole(model), "fp32"), fused.optimize(whole(model), "fp32", relus=False)
    # Then
    assert operations(fast) == ["first", "second", "pool", "read_twice", "relu", "meeting", "add"]
    assert operations(apart) == ["first", "relu6", "second", "relu_", "pool", "read_twice", "relu", "meeting", "add"]
    for upstream in (fast, apart):
        torch.testing.assert_close(upstream(x), model(x), rtol=1e-4, atol=1e-5)


def test_an_extractor_names_the_convolutions_that_render() -> None:
    # Given
    model = nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3), nn.Conv2d(32, 8, 1)).eval().requires_grad_(False)
    trace = tracing.trace(model)
    available = "torch" if loader.library() is None else "winograd"
    # When / Then
    assert LayerExtractor(model, trace, "1", "conv").kernels == "torch"  # the layer itself is never compiled
    assert LayerExtractor(model, trace, "2", "conv").kernels == available
    assert LayerExtractor(model, trace, "2", "conv", "bf16").kernels == "torch"
