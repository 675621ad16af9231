"""On Intel's matrix unit, convolutions of bfloat16 maps, their ReLUs and poolings are those of double precision.

Skipped where the processor has none: nothing can stand in for it there.
"""

import ctypes
import itertools
import logging
from typing import Any

import pytest
import torch
from torch import nn

from tests.unit.kernels.halves import RELATIVE_ERROR, error, maps
from workers.kernels import amx, loader
from workers.kernels.pool import FastMaxPool

pytestmark = pytest.mark.skipif(loader.amx() is None, reason="no AMX on this machine")


def convolution(
    channels: int = 40, kernels: int = 72, size: int | tuple[int, int] = 3, padding: int | tuple[int, int] = 1,
    *, bias: bool = True,
) -> nn.Conv2d:  # fmt: skip
    """Seeded, frozen, its weights such as a bfloat16 can be."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        conv = nn.Conv2d(channels, kernels, size, padding=padding, bias=bias)
        conv.weight.data = conv.weight.data.bfloat16().float()
    return conv.requires_grad_(False)


def gradient_of(conv: nn.Conv2d, x: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    exact = x.detach().double().requires_grad_(True)
    (gradient,) = torch.autograd.grad(conv.double()(exact), exact, direction.double())
    return gradient


@pytest.mark.parametrize(
    ("channels", "kernels", "size", "padding", "map_px"),
    [
        (3, 64, 3, 1, (20, 17)),  # a picture's, of which a row of the kernel is one step
        (3, 10, 7, 3, (20, 17)),
        (3, 10, 7, 0, (20, 17)),
        (64, 3, 3, 1, (20, 17)),
        (40, 72, 3, 1, (9, 9)),
        (32, 32, 3, 0, (9, 7)),
        (33, 65, 5, 2, (12, 11)),
        (33, 65, 9, 4, (12, 11)),
        (64, 64, (1, 7), (0, 3), (17, 17)),
        (64, 64, (7, 1), (3, 0), (17, 17)),
        (64, 32, 2, 1, (5, 6)),
        (16, 16, 3, 2, (4, 5)),
        (5, 16, 3, 1, (1, 1)),
        (64, 64, 3, 1, (100, 90)),  # in bands
        (512, 512, 3, 1, (4, 4)),  # several pictures at once
        (64, 96, 1, 0, (20, 17)),  # read as they are
        (64, 96, 1, 0, (2, 3)),
        (40, 24, 1, 0, (20, 17)),
        (16, 96, 1, 0, (20, 17)),
        (8, 40, (3, 2), (1, 0), (20, 17)),  # of whose gradient all columns are kernels of one place
        (1, 40, (1, 13), (0, 6), (20, 17)),
        (1024, 64, 1, 0, (100, 90)),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_maps_and_gradients_are_those_of_a_direct_convolution(
    channels: int, kernels: int, size: int | tuple[int, int], padding: int | tuple[int, int],
    map_px: tuple[int, int], bias: bool,
) -> None:  # fmt: skip
    # Given
    conv = convolution(channels, kernels, size, padding, bias=bias)
    assert amx.suits(conv)
    x = maps(5, channels, *map_px).requires_grad_(True)
    # When
    y = amx.AmxConv(conv)(x)
    direction = maps(*y.shape, seed=1)
    (gradient,) = torch.autograd.grad(y, x, direction)
    # Then
    assert error(gradient, gradient_of(conv, x, direction)) < RELATIVE_ERROR
    assert error(y, conv.double()(x.detach().double())) < RELATIVE_ERROR


@pytest.mark.parametrize("ceiling", [float("inf"), 0.5])
def test_a_relu_behind_it_cuts_off_values_and_gradients(ceiling: float) -> None:
    # Given
    conv = convolution()
    x = maps(3, 40, 9, 13).requires_grad_(True)
    bare = amx.AmxConv(conv)
    # When
    y = bare.with_relu(ceiling)(x)
    direction = maps(*y.shape, seed=1)
    (gradient,) = torch.autograd.grad(y, x, direction)
    # Then
    assert torch.equal(y, bare(x).clamp(0, ceiling))
    awake = (y > 0) & (y < ceiling)
    assert 0 < int(awake.sum()) < y.numel()
    assert error(gradient, gradient_of(conv, x, direction * awake)) < RELATIVE_ERROR
    # And what it was made from has none
    assert bare.ceiling == 0


@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("map_px", [(12, 18), (13, 17)])
@pytest.mark.parametrize("relu", [True, False])
def test_a_pooling_behind_it_is_that_of_its_maps(window: int, map_px: tuple[int, int], relu: bool) -> None:
    # Given
    conv = convolution()
    x = maps(3, 40, *map_px).requires_grad_(True)
    bare = amx.AmxConv(conv).with_relu(float("inf")) if relu else amx.AmxConv(conv)
    pool = nn.MaxPool2d(window)
    # When
    y = bare.with_pool(FastMaxPool(pool))(x)
    direction = maps(*y.shape, seed=1)
    (gradient,) = torch.autograd.grad(y, x, direction)
    # Then
    values = bare(x).detach().float().requires_grad_(True)
    wanted = pool(values)
    assert torch.equal(y.float(), wanted)
    (before,) = torch.autograd.grad(wanted, values, direction.float())
    assert error(gradient, gradient_of(conv, x, before * (values > 0) if relu else before)) < RELATIVE_ERROR


#: Channels, kernels, size and padding of two convolutions behind each other, and height and width of a map.
CHAINS = [
    ((3, 64, 3, 1), (64, 64, 3, 1), (150, 140)),  # in bands, a thread taking one behind another
    ((40, 72, 3, 1), (72, 40, 3, 1), (20, 17)),
    ((40, 72, 1, 0), (72, 40, 3, 1), (20, 17)),
    ((64, 72, 1, 0), (72, 40, 3, 0), (20, 17)),  # read as they are
    ((64, 72, 3, 1), (72, 96, 1, 0), (9, 9)),
    ((32, 40, 3, 0), (40, 33, 5, 2), (12, 11)),
    ((32, 40, 2, 1), (40, 33, (3, 1), (2, 0)), (12, 11)),
    ((64, 40, (1, 7), (0, 3)), (40, 64, (7, 1), (3, 0)), (17, 17)),
    ((192, 192, 3, 1), (192, 192, 3, 1), (4, 4)),  # several pictures at once
    ((64, 64, 3, 1), (64, 64, 3, 1), (90, 300)),
]


@pytest.mark.parametrize("batch", [1, 2, 9])
@pytest.mark.parametrize(("first", "second", "map_px"), CHAINS)
@pytest.mark.parametrize("window", [0, 2])
def test_two_in_one_are_the_two_to_the_last_bit(
    first: tuple[Any, ...], second: tuple[Any, ...], map_px: tuple[int, int], window: int, batch: int
) -> None:
    # Given
    before = amx.AmxConv(convolution(*first)).with_relu(1.0)
    conv = amx.AmxConv(convolution(*second)).with_relu(float("inf"))
    assert conv.follows(before)
    if window:
        conv = conv.with_pool(FastMaxPool(nn.MaxPool2d(window)))
    x = maps(batch, first[0], *map_px).requires_grad_(True)
    # When
    y = conv.behind(before)(x)
    direction = maps(*y.shape, seed=1)
    (gradient,) = torch.autograd.grad(y, x, direction)
    # Then
    apart = conv(before(x))
    assert torch.equal(y, apart)
    assert torch.equal(gradient, *torch.autograd.grad(apart, x, direction))
    assert y.count_nonzero() > 0.1 * y.numel()
    assert gradient.count_nonzero() > 0.1 * gradient.numel()


@pytest.mark.parametrize("batch", [1, 2, 9])
@pytest.mark.parametrize(("first", "second", "map_px"), CHAINS)
@pytest.mark.parametrize("window", [0, 2, 3])
@pytest.mark.parametrize("size", [3, 1])
def test_a_filter_of_its_own_for_each_picture_is_that_of_the_whole_convolution(
    first: tuple[Any, ...], second: tuple[Any, ...], map_px: tuple[int, int], window: int, batch: int, size: int
) -> None:
    # Given three behind each other, and three apart whose last has all the filters
    before = amx.AmxConv(convolution(*first)).with_relu(float("inf"))
    conv = amx.AmxConv(convolution(*second)).with_relu(float("inf"))
    conv = (conv.with_pool(FastMaxPool(nn.MaxPool2d(window))) if window else conv).behind(before)
    last = amx.AmxConv(convolution(second[1], 40, size, size // 2, bias=False))
    filters = torch.arange(batch) * 11 % 40
    own = last.of_each(filters)
    assert own.follows(conv)
    x = maps(batch, first[0], *map_px).requires_grad_(True)
    # When
    y = own.behind(conv)(x)
    direction = maps(*y.shape, seed=1)
    (gradient,) = torch.autograd.grad(y, x, direction)
    # Then
    among = last(conv(x))[torch.arange(batch), filters][:, None]
    (wanted,) = torch.autograd.grad(among, x, direction)
    assert error(y, among.double()) < RELATIVE_ERROR  # its sums are in another order
    assert error(gradient, wanted.double()) < RELATIVE_ERROR
    assert gradient.count_nonzero() > 0.1 * gradient.numel()
    # And to the last bit those of the same apart
    apart = own(conv(x))
    assert torch.equal(y, apart)
    assert torch.equal(gradient, *torch.autograd.grad(apart, x, direction))


def test_two_are_taken_apart_where_that_gains_nothing_or_cannot_be() -> None:
    # Given
    conv, inner = amx.AmxConv(convolution(72, 40)), amx.AmxConv(convolution(40, 72))
    fitting = inner.with_relu(6.0)
    wide = amx.AmxConv(convolution(40, 256)).with_relu(6.0)
    # When / Then
    assert conv.follows(fitting)
    assert not conv.follows(inner)  # no ReLU
    assert not conv.follows(fitting.with_pool(FastMaxPool(nn.MaxPool2d(2))))
    assert not conv.follows(fitting.behind(amx.AmxConv(convolution(3, 40)).with_relu(6.0)))
    assert not amx.AmxConv(convolution(256, 40)).follows(wide)
    assert not amx.AmxConv(convolution(3, 40)).follows(amx.AmxConv(convolution(40, 3)).with_relu(6.0))
    assert not conv.follows(nn.Conv2d(40, 72, 3))


POOLINGS = [(2, 2, 0), (3, 2, 1), (3, 2, 0), (3, 1, 1), (2, 2, 1), (3, 3, 0)]


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(("size", "stride", "padding"), POOLINGS)
@pytest.mark.parametrize("shape", [(2, 64, 15, 14), (1, 40, 13, 16), (2, 3, 7, 7), (2, 32, 3, 4)])
def test_max_pooling_is_torchs(size: int, stride: int, padding: int, ceil_mode: bool, shape: tuple[int, ...]) -> None:
    # Given
    pool = nn.MaxPool2d(size, stride, padding, ceil_mode=ceil_mode)
    x = maps(*shape).requires_grad_(True)
    # When
    y = FastMaxPool(pool)(x)
    direction = maps(*y.shape, seed=1)
    (gradient,) = torch.autograd.grad(y, x, direction)
    # Then
    exact = x.detach().double().requires_grad_(True)
    wanted = pool(exact)
    (wanted_gradient,) = torch.autograd.grad(wanted, exact, direction.double())
    assert torch.equal(y.double(), wanted)
    assert error(gradient, wanted_gradient) < RELATIVE_ERROR


def test_maps_that_are_too_small_are_refused() -> None:
    # When / Then
    with pytest.raises(RuntimeError, match="4 x 9 px is too small for kernels of 5 x 5"):
        amx.AmxConv(convolution(size=5, padding=0))(maps(1, 40, 4, 9))
    with pytest.raises(RuntimeError, match="2 px is too small for windows of 3"):
        FastMaxPool(nn.MaxPool2d(3))(maps(1, 8, 2, 5))


@pytest.mark.parametrize("map_px", [(9, 9), (100, 90)])
@pytest.mark.parametrize(("size", "padding"), [(3, 1), (1, 0)])
@pytest.mark.parametrize("channels", [40, 64])
def test_a_picture_has_the_same_map_and_gradient_in_any_batch(
    channels: int, size: int, padding: int, map_px: tuple[int, int]
) -> None:
    # Given
    conv = amx.AmxConv(convolution(channels, 72, size, padding)).with_relu(float("inf"))
    x = maps(5, channels, *map_px).requires_grad_(True)
    direction = maps(5, 72, *map_px, seed=1)
    # When
    together = conv(x)
    (gradient,) = torch.autograd.grad(together, x, direction)
    # Then
    for place in range(5):
        mine = slice(place, place + 1)
        alone = x.detach()[mine].requires_grad_(True)
        assert torch.equal(together[mine], conv(alone))
        (its_own,) = torch.autograd.grad(conv(alone), alone, direction[mine])
        assert torch.equal(gradient[mine], its_own)


def test_memory_in_another_order_is_put_into_its_own() -> None:
    # Given
    conv = amx.AmxConv(convolution())
    x = maps(2, 40, 9, 7)
    # When / Then
    assert torch.equal(conv(x.contiguous()), conv(x))
    assert torch.equal(FastMaxPool(nn.MaxPool2d(2))(x.contiguous()), FastMaxPool(nn.MaxPool2d(2))(x))


@pytest.mark.parametrize(
    ("value", "place"), list(itertools.product([float("inf"), float("nan"), 1e38], ["map", "kernel"]))
)
def test_what_is_no_number_stays_that(value: float, place: str) -> None:
    # Given
    conv, x = convolution(), maps(1, 40, 5, 5)
    if place == "map":
        x[0, 3] = value
    else:
        conv.weight[:, 3] = value
    wanted = conv.double()(x.double()).relu()
    # When
    y = amx.AmxConv(conv.float()).with_relu(float("inf"))(x)
    # Then
    assert torch.equal(y.isnan(), wanted.isnan())


def test_memory_that_does_not_suffice_is_an_error_of_the_kind_that_halves_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a kernel that takes a band of more memory than any machine has
    found = loader.amx()
    assert found is not None
    fresh = ctypes.CDLL(found._name)
    step = amx._Step(sizes=(1, 1, 0, 2**44, 16, 3, 3, 1, 1, 1, 1, 0, 0, 0))
    # When
    failed = fresh.convolve(ctypes.byref(step), ctypes.c_long(1), ctypes.c_long(1))
    # Then
    assert failed == 1

    # And
    class Full:
        convolve = staticmethod(lambda *_: 1)

    monkeypatch.setattr(amx, "_library", lambda: Full)
    with pytest.raises(MemoryError, match="bands"):
        amx.AmxConv(convolution())(maps(1, 40, 8, 8))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(64, 64, 3, stride=2),
        nn.Conv2d(64, 64, 3, dilation=2),
        nn.Conv2d(64, 64, 3, padding=3),
        nn.Conv2d(64, 64, 3, padding="same"),
        nn.Conv2d(64, 64, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(64, 64, 3, groups=2),
        nn.Conv2d(64, 64, 3, device="meta"),
    ],
)
def test_other_convolutions_are_left_alone(conv: nn.Conv2d) -> None:
    # When / Then
    assert not amx.suits(conv)


def test_without_compiled_code_torch_convolves_and_the_log_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Given an installation that found no compiler
    loader.amx.cache_clear()
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr("importlib.util.find_spec", lambda _name: None)
        # When / Then
        assert not amx.suits(convolution())
        assert not amx.suits(convolution())
        (message,) = caplog.messages
        assert "networks in bf16" in message
    loader.amx.cache_clear()
    assert amx.suits(convolution())


def test_a_processor_without_the_unit_has_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    loader.amx.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        # When / Then
        assert not amx.suits(convolution())
    loader.amx.cache_clear()
