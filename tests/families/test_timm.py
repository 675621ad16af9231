"""A spread of timm's families: layers listed, and the first, middle and last filter of three layers rendered."""

import pytest
import torch

from producer.planning.layers import layers
from tests.recipes import recipe_of
from workers.networks import registry, tracing
from workers.rendering.render import render

pytestmark = pytest.mark.families

#: network -> side of its pictures in pixels; the smallest of a family that takes small pictures, where there is one
FAMILIES = {
    "test_resnet": 64, "test_efficientnet": 64, "test_convnext": 64, "test_nfnet": 64, "test_byobnet": 64,
    "test_mambaout": 64, "mobilenetv3_small_050": 64, "regnetx_002": 64, "dla34": 64, "ghostnet_050": 64,
    "repvgg_a0": 64, "levit_128s": 224, "vit_tiny_patch16_224": 224, "swin_tiny_patch4_window7_224": 224,
    "mixer_s32_224": 224, "xcit_nano_12_p16_224": 224,
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_are_listed_and_filters_rendered(name: str) -> None:
    # Given a network of random weights
    address, size_px = f"timm:{name}", FAMILIES[name]
    model = registry.build(address)
    graph = tracing.trace(model)
    # When its layers are listed
    plans = layers(address, (size_px, size_px))
    # Then each has a map and a cost
    assert plans
    assert all(plan.output_px and plan.step_gflop > 0 for plan in plans)
    # And the first, middle and last filter of the first, middle and last layer are rendered
    recipe = recipe_of(
        size_px=size_px, preprocess=registry.get(address).preprocess, steps=2, method="fourier", rescue=False
    )
    for plan in {plan.name: plan for plan in (plans[0], plans[len(plans) // 2], plans[-1])}.values():
        filters = sorted({0, plan.channels // 2, plan.channels - 1})
        tiles = render(model, graph, plan.name, filters, recipe, torch.device("cpu"))
        assert [tile.filter for tile in tiles] == filters
        assert not any(tile.error for tile in tiles)
        assert all(tile.pixels.shape == (size_px, size_px, 3) for tile in tiles)
