"""Every network of the registry: units of each kind are found, and those of small networks are rendered."""

import pytest
import torch

from tests.recipes import recipe_of
from workers.networks import registry, tracing, units
from workers.networks.layouts import Layout, propagate
from workers.rendering.render import render

pytestmark = pytest.mark.families

#: Sizes of pictures; the first that a network accepts is taken.
SIZES_PX = (224, 299, 256, 384, 518)

#: One small network of each family, and the size of its pictures.
RENDERED = {
    "alexnet": 64, "vgg11": 32, "squeezenet1_1": 32, "densenet121": 32, "googlenet": 32, "inception_v3": 80,
    "mnasnet0_5": 32, "mobilenet_v2": 32, "mobilenet_v3_small": 32, "shufflenet_v2_x0_5": 32, "resnet18": 32,
    "regnet_y_400mf": 32, "efficientnet_b0": 32, "efficientnet_lite0": 32, "convnext_tiny": 32, "swin_t": 32,
    "swin_v2_t": 64, "vit_b_32": 224,
}  # fmt: skip


def layouts(name: str, size_px: int) -> dict[str, tuple[str, Layout]]:
    """Name -> kind and layout of every tensor with channels, up to the first that does not accept the size."""
    model = registry.skeleton(name)
    graph = tracing.trace(model)
    found = {step.node: step.layout for step in propagate(model, graph, (size_px, size_px))}
    named = units.named(model, graph).items()
    return {key: (unit.kind, layout) for key, unit in named if (layout := found.get(unit.node)) is not None}


@pytest.mark.parametrize("name", registry.names())
def test_every_network_has_its_units(name: str) -> None:
    # Given the first size that the network accepts
    found = next(found for px in SIZES_PX if "logits" in (found := layouts(name, px)))
    # Then its logits are a thousand classes without a map
    kind, logits = found["logits"]
    assert (kind, logits.has_map) == ("logits", False)
    assert logits.channels in {1000, 1008}
    # And all of its convolutions, and nothing else, have their channels on axis 1
    model = registry.skeleton(name)
    convolutions = tracing.convolutions(model, tracing.trace(model))
    assert {key for key, (kind, _) in found.items() if kind == "conv"} == set(convolutions)
    for key in convolutions:
        assert found[key][1].axis == 1
        assert found[key][1].channels == model.get_submodule(key).out_channels


@pytest.mark.parametrize("name", sorted(RENDERED))
def test_first_middle_and_last_unit_of_each_kind_are_rendered(name: str) -> None:
    # Given a network with random parameters, and the last layer of each kind
    size_px = RENDERED[name]
    last = {kind: key for key, (kind, _) in layouts(name, size_px).items()}
    channels = {key: layout.channels for key, (_, layout) in layouts(name, size_px).items()}
    model = registry.build(name, seed=3)
    graph = tracing.trace(model)
    assert "logits" in last
    # When three of its units are rendered in one step
    recipe = recipe_of("fourier", size_px=size_px, steps=1, rescue=False)
    for kind, key in last.items():
        chosen = sorted({0, channels[key] // 2, channels[key] - 1})
        tiles = render(model, graph, key, chosen, recipe, torch.device("cpu"))
        # Then each has a picture
        assert [(kind, tile.filter, tile.error) for tile in tiles] == [(kind, unit, "") for unit in chosen]
        assert all(tile.pixels.shape == (size_px, size_px, 3) for tile in tiles)
