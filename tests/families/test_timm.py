"""A spread of timm's families: layers listed, and units of each kind of layer rendered."""

import pytest
import torch

from producer.planning.layers import KINDS, layers
from tests.recipes import recipe_of
from workers.networks import registry, tracing
from workers.rendering.render import render

pytestmark = pytest.mark.families

#: network -> side of its pictures in pixels; the smallest of a family that takes small pictures, where there is one
FAMILIES = {
    "test_resnet": 64, "test_efficientnet": 64, "test_convnext": 64, "test_nfnet": 64, "test_byobnet": 64,
    "test_mambaout": 64, "mobilenetv3_small_050": 64, "regnetx_002": 64, "dla34": 64, "ghostnet_050": 64,
    "repvgg_a0": 64, "levit_128s": 224, "vit_tiny_patch16_224": 224, "swin_tiny_patch4_window7_224": 224,
    "mixer_s32_224": 224, "xcit_nano_12_p16_224": 224, "test_vit": 160, "mobilevitv2_050": 64, "efficientvit_b0": 64,
    "nest_tiny": 224,
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_are_listed_and_units_rendered(name: str) -> None:
    # Given a network of random weights
    address, size_px = f"timm:{name}", FAMILIES[name]
    model = registry.build(address)
    graph = tracing.trace(model, (size_px, size_px))
    # When its layers are listed
    plans = layers(address, (size_px, size_px), KINDS)
    kinds = {kind: [plan for plan in plans if plan.kind == kind] for kind in KINDS}
    # Then each convolution has a map and a cost, and there are logits
    assert kinds["conv"]
    assert all(plan.output_px and plan.step_gflop > 0 for plan in kinds["conv"])
    assert len(kinds["logits"]) == 1
    # And the first, middle and last unit are rendered of the first, middle and last layer of each kind
    recipe = recipe_of(
        size_px=size_px, preprocess=registry.get(address).preprocess, steps=2, method="fourier", rescue=False
    )
    chosen = [found[place] for found in kinds.values() if found for place in (0, len(found) // 2, -1)]
    for plan in {plan.name: plan for plan in chosen}.values():
        filters = sorted({0, plan.channels // 2, plan.channels - 1})
        tiles = render(model, graph, plan.name, filters, recipe, torch.device("cpu"))
        assert [tile.filter for tile in tiles] == filters
        assert not any(tile.error for tile in tiles)
        assert all(tile.pixels.shape == (size_px, size_px, 3) for tile in tiles)
