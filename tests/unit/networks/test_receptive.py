"""Receptive fields and strides, against published ones and against gradients."""

import math

import pytest
import torch
from torch import nn

from workers.networks import receptive, registry, tracing, units


@pytest.mark.parametrize(
    ("name", "layer", "size_px", "stride_px"),
    [
        # Araujo et al., 2019, of the last tensor before the mean of the map
        ("vgg16", "features.30", 212, 32),
        ("mobilenet_v2", "features.18.0", 491, 32),
        ("vgg16", "features.28", 196, 16),
        ("googlenet", "conv1.conv", 7, 2),
        ("vit_b_32", "conv_proj", 32, 32),
    ],
)
def test_fields_are_the_published_ones(name: str, layer: str, size_px: int, stride_px: int) -> None:
    model = registry.skeleton(name)
    graph = tracing.trace(model)
    field = receptive.fields(model, graph)[units.find(model, graph, layer).node]
    assert (field.size_px, field.stride_px) == (size_px, stride_px)


def test_a_field_is_the_extent_of_the_gradient() -> None:
    # Given two branches of different width, the wider one dilated
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
            self.wide = nn.Conv2d(4, 4, 3, dilation=2, padding=2)
            self.narrow = nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            joined: torch.Tensor = self.wide(x) + self.narrow(x)
            return joined

    model = Branches().eval()
    graph = tracing.trace(model)
    picture = torch.zeros(1, 3, 64, 64, requires_grad=True)
    # When one place of the sum is derived
    (gradient,) = torch.autograd.grad(model(picture)[0, 0, 16, 16], picture)
    # Then it depends on as many pixels
    rows = gradient.abs().sum(dim=(0, 1, 3)).nonzero()
    field = receptive.fields(model, graph)[units.find(model, graph, "logits").node]
    assert (field.size_px, field.stride_px) == (int(rows.max() - rows.min()) + 1, 2) == (11, 2)


def test_logits_depend_on_the_whole_picture() -> None:
    model = registry.skeleton("resnet18")
    graph = tracing.trace(model)
    assert math.isinf(receptive.fields(model, graph)[units.find(model, graph, "logits").node].size_px)
