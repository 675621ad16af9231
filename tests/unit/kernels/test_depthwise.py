"""Depthwise convolutions of bfloat16 maps, and the ReLU behind them, are those of double precision."""

import copy

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from tests.unit.kernels.halves import RELATIVE_ERROR, error, maps
from workers.kernels import depthwise, loader

pytestmark = pytest.mark.skipif(loader.amx() is None, reason="no AMX on this machine")


def convolution(
    channels: int, size: int | tuple[int, int], stride: int, padding: int | str, *, bias: bool = True
) -> nn.Conv2d:
    """Seeded, frozen, its weights such as a bfloat16 can be; the padding "same" is timm's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        conv: nn.Conv2d = (
            Conv2dSame(channels, channels, size, stride=stride, groups=channels, bias=bias)
            if padding == "same"
            else nn.Conv2d(channels, channels, size, stride, padding, groups=channels, bias=bias)
        )
        conv.weight.data = conv.weight.data.bfloat16().float()
    return conv.requires_grad_(False)


KINDS = [(3, 1, 1), (5, 1, 2), (3, 2, 1), (5, 2, 2), (7, 1, 3), (3, 1, 0), (3, 3, 0), (3, 2, "same"), (5, 2, "same")]


@pytest.mark.parametrize(("size", "stride", "padding"), [*KINDS, ((3, 5), 1, 0)])
@pytest.mark.parametrize("channels", [33, 40, 96])
@pytest.mark.parametrize("map_px", [(15, 14), (16, 9), (7, 7)])
@pytest.mark.parametrize("ceiling", [0.0, 6.0, float("inf")])
@pytest.mark.parametrize("bias", [True, False])
def test_maps_and_gradients_are_those_of_double_precision(
    channels: int, size: int | tuple[int, int], stride: int, padding: int | str, map_px: tuple[int, int],
    ceiling: float, bias: bool,
) -> None:  # fmt: skip
    # Given
    conv = convolution(channels, size, stride, padding, bias=bias)
    assert depthwise.suits(conv)
    x = (maps(3, channels, *map_px) * 8).requires_grad_(True)
    exact = x.detach().double().requires_grad_(True)
    bare = depthwise.DepthwiseConv(conv)
    # When
    y = (bare.with_relu(ceiling) if ceiling else bare)(x)
    direction = maps(*y.shape, seed=1)
    (gradient,) = torch.autograd.grad(y, x, direction)
    # Then
    wanted = copy.deepcopy(conv).double()(exact)
    awake = (y > 0) & (y < ceiling) if ceiling else torch.ones_like(y, dtype=torch.bool)
    (wanted_gradient,) = torch.autograd.grad(wanted, exact, (direction * awake).double())
    assert error(y, wanted.clamp(0, ceiling) if ceiling else wanted) < RELATIVE_ERROR
    assert error(gradient, wanted_gradient) < RELATIVE_ERROR


def test_a_picture_has_the_same_map_in_any_batch_and_memory_order() -> None:
    # Given
    conv = depthwise.DepthwiseConv(convolution(40, 3, 2, "same"))
    x = maps(4, 40, 11, 12)
    # When
    together = conv(x)
    # Then
    assert torch.equal(together, conv(x.contiguous()))
    for place in range(4):
        assert torch.equal(together[place : place + 1], conv(x[place : place + 1]))


def test_maps_that_are_too_small_are_refused() -> None:
    # When / Then
    with pytest.raises(RuntimeError, match="2 x 9 px are too small"):
        depthwise.DepthwiseConv(convolution(40, 3, 1, 0))(maps(1, 40, 2, 9))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(64, 64, 3),
        nn.Conv2d(64, 64, 3, groups=32),
        nn.Conv2d(64, 128, 3, groups=64),
        nn.Conv2d(64, 64, 3, groups=64, dilation=2),
        nn.Conv2d(64, 64, 3, groups=64, stride=(1, 2)),
        nn.Conv2d(64, 64, 3, groups=64, padding="same"),
        nn.Conv2d(64, 64, 3, groups=64, padding=1, padding_mode="reflect"),
        nn.Conv2d(64, 64, 3, groups=64, device="meta"),
    ],
)
def test_other_convolutions_are_left_alone(conv: nn.Conv2d) -> None:
    # When / Then
    assert not depthwise.suits(conv)
