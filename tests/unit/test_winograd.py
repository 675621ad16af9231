"""Winograd's convolution and its gradient are those of torch's in double precision."""

import pytest
import torch
from torch import nn

from workers import winograd

#: Of the largest output. A direct convolution of this size is off by 2e-6.
MOST_ERROR = 3e-5


def convolution(*, padding: int = 1, bias: bool = True) -> nn.Conv2d:
    """Seeded, frozen, and of a kind that suits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        conv = nn.Conv2d(128, 160, 3, padding=padding, bias=bias)
    return conv.requires_grad_(False)


# All three tiles are some size's best; 5 x 13 and 11 fill none.
@pytest.mark.parametrize("size", [(4, 4), (6, 6), (9, 9), (16, 16), (5, 13), (11, 11), (3, 3)])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_maps_and_gradients_are_those_of_a_direct_convolution(size: tuple[int, int], padding: int, bias: bool) -> None:
    # Given
    conv = convolution(padding=padding, bias=bias)
    assert winograd.suits(conv)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 128, *size, generator=generator).to(memory_format=torch.channels_last).requires_grad_(True)
    exact = x.detach().double().requires_grad_(True)
    # When
    got = winograd.WinogradConv(conv)(x)
    wanted = convolution(padding=padding, bias=bias).double()(exact)
    direction = torch.randn(got.shape, generator=generator)
    (gradient,) = torch.autograd.grad(got, x, direction)
    (exact_gradient,) = torch.autograd.grad(wanted, exact, direction.double())
    # Then
    for result, truth in ((got.detach(), wanted.detach()), (gradient, exact_gradient)):
        assert result.shape == truth.shape
        assert (result - truth).abs().max() < MOST_ERROR * truth.abs().max()


@pytest.mark.parametrize("tile", winograd._TILES)
def test_every_tile_is_the_best_for_some_map(tile: int) -> None:
    # When / Then
    assert tile in {winograd._best_tile(size, size) for size in range(1, 20)}


def test_a_picture_has_the_same_map_in_any_batch() -> None:
    # Given
    conv = winograd.WinogradConv(convolution())
    x = torch.randn(5, 128, 9, 9, generator=torch.Generator().manual_seed(0))
    # When
    together = conv(x)
    # Then
    for place in range(5):
        torch.testing.assert_close(together[place : place + 1], conv(x[place : place + 1]), rtol=1e-5, atol=1e-5)


def test_what_follows_may_work_in_place() -> None:
    # Given
    conv = winograd.WinogradConv(convolution())
    x = torch.randn(1, 128, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    # When
    (gradient,) = torch.autograd.grad(torch.relu_(conv(x)).sum(), x)
    # Then
    (wanted,) = torch.autograd.grad(torch.relu(conv(x)).sum(), x)
    assert torch.equal(gradient, wanted)
    assert wanted.abs().max() > 0


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(128, 128, 1),
        nn.Conv2d(128, 128, (3, 1)),
        nn.Conv2d(128, 128, 3, stride=2),
        nn.Conv2d(128, 128, 3, dilation=2),
        nn.Conv2d(128, 128, 3, padding=2),
        nn.Conv2d(128, 128, 3, padding="same"),
        nn.Conv2d(128, 128, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(128, 128, 3, groups=2),
        nn.Conv2d(64, 128, 3),
        nn.Conv2d(128, 64, 3),
        nn.Conv2d(128, 128, 3).bfloat16(),
        nn.Conv2d(128, 128, 3, device="meta"),
    ],
)
def test_other_convolutions_are_left_alone(conv: nn.Conv2d) -> None:
    # When / Then
    assert not winograd.suits(conv)
