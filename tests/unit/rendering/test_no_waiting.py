"""A gradient step reads no value of the device on the host, which would have to wait for all queued work."""

import pytest
import torch

from tests.benchmarks.counts import run_on_meta, without_values
from workers.networks import registry, tracing
from workers.networks.layer_extractor import LayerExtractor
from workers.networks.tensor_extractor import extractor_of
from workers.rendering.lagged_mask import LaggedMask
from workers.rendering.rescue import AscentLoss


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "fourier"},
        {"method": "notebook"},
        {"method": "maco"},
        {"method": "pixel"},
        {"method": "notebook", "octaves": 2},
        {"objective": "neuron"},
        {"objective": "deepdream"},
        {"diversity": 2},
        {"negative": True},
        {"grey": True},
        {"total_variation": 0.1, "l2": 0.1, "blur": 0.1},
        {"rescue": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("layer", ["features.3.conv.0.0", "features.3.conv.1.0"])  # the latter is depthwise
def test_the_engine_runs_on_a_device_without_values(layer: str, changes: dict[str, object]) -> None:
    # Given a network on the meta device, where item(), cpu(), nonzero() and boolean indexing raise
    model = registry.skeleton("mobilenet_v2")
    with without_values():
        extractor = LayerExtractor(model, tracing.trace(model), layer, "activation", "bf16")
    # When tiles are rendered, Then nothing raises
    run_on_meta(extractor, layer, size_px=32, batch=2, steps=4, **changes)


@pytest.mark.parametrize("layer", ["features.3.add", "logits"])
def test_units_other_than_filters_do_too(layer: str) -> None:
    # Given a sum of branches, and the class logits
    model = registry.skeleton("mobilenet_v2")
    with without_values():
        extractor = extractor_of(model, tracing.trace(model), layer, "activation", (32, 32), "bf16")
    # When / Then
    run_on_meta(extractor, layer, size_px=32, batch=2, steps=4)


def test_that_check_finds_a_value_that_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a loss that asks in each step whether any picture needs a rescue
    loss = AscentLoss.loss

    def asking(self: AscentLoss, pictures: torch.Tensor, *, early: float = 0.0) -> torch.Tensor:
        value = loss(self, pictures, early=early)
        if self.redirected.any():
            pass
        return value

    monkeypatch.setattr(AscentLoss, "loss", asking)
    model = registry.skeleton("mobilenet_v2")
    with without_values():
        extractor = LayerExtractor(model, tracing.trace(model), "features.3.conv.0.0", "activation", "bf16")
    # When / Then
    with pytest.raises(RuntimeError, match="meta"):
        run_on_meta(extractor, "features.3.conv.0.0", size_px=32, batch=2, steps=4)


def test_a_mask_has_no_lag_on_a_cpu() -> None:
    # Given
    none, second = torch.tensor([False, False]), torch.tensor([False, True])
    lagged = LaggedMask(none)
    # When / Then
    assert lagged.read() is None
    lagged.push(second)
    read = lagged.read()
    assert read is not None
    assert read.tolist() == [False, True]
