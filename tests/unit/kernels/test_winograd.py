"""Winograd's convolution and its gradient are those of torch's in double precision."""

import ctypes
import importlib.machinery
import importlib.util
import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from workers.kernels import loader, winograd

#: Of the largest output. A direct convolution of this size is off by 2e-6.
MOST_ERROR = 3e-5


#: How setuptools is told to compile, but always for a processor that has vectors of 8 numbers.
COMPILE = ("cc", "-O3", "-march=x86-64-v3", "-fno-signed-zeros", "-fopenmp", "-fPIC")


def convolution(*, padding: int = 1, bias: bool = True) -> nn.Conv2d:
    """Seeded, frozen, and of a kind that suits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        conv = nn.Conv2d(48, 80, 3, padding=padding, bias=bias)
    return conv.requires_grad_(False)


@pytest.fixture(params=[None, 8, 16], scope="module")
def width(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int | None]:
    """The code that was installed, and that of the same source for vectors of 8 and of 16 numbers."""
    if request.param is None:
        yield None
        return
    code = tmp_path_factory.mktemp("compiled") / "wide.o"
    built = code.with_suffix(".so")
    source = Path(winograd.__file__).with_name("winograd.c")
    subprocess.run([*COMPILE, f"-DWIDTH={request.param}", "-c", "-o", str(code), str(source)], check=True)
    subprocess.run(["cc", "-shared", "-o", str(built), str(code)], check=True)
    with pytest.MonkeyPatch.context() as patch:
        installed = importlib.util.find_spec

        def find_spec(name: str) -> importlib.machinery.ModuleSpec | None:
            if name.endswith("_half"):  # of other maps than these
                return installed(name)
            return importlib.machinery.ModuleSpec(name, None, origin=str(built))

        patch.setattr(importlib.util, "find_spec", find_spec)
        loader.winograd.cache_clear()
        assert loader.winograd() is not None
        yield request.param
    loader.winograd.cache_clear()


# All three tiles are some size's best; 5 x 13 and 11 fill none. Two of 100 x 70 are more than the threads' own blocks.
@pytest.mark.parametrize("size", [(4, 4), (6, 6), (9, 9), (16, 16), (5, 13), (11, 11), (3, 3), (100, 70), (58, 90)])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_maps_and_gradients_are_those_of_a_direct_convolution(
    size: tuple[int, int], padding: int, bias: bool, width: int | None
) -> None:
    # Given
    assert width is None or winograd._library().panel_width() == 2 * width
    conv = convolution(padding=padding, bias=bias)
    assert winograd.suits(conv)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 48, *size, generator=generator).to(memory_format=torch.channels_last).requires_grad_(True)
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
    x = torch.randn(5, 48, 9, 9, generator=torch.Generator().manual_seed(0))
    # When
    together = conv(x)
    # Then
    for place in range(5):
        assert torch.equal(together[place : place + 1], conv(x[place : place + 1]))


def test_memory_in_another_order_is_put_into_its_own() -> None:
    # Given
    conv = winograd.WinogradConv(convolution())
    x = torch.randn(2, 48, 9, 7, generator=torch.Generator().manual_seed(0))
    # When / Then
    assert torch.equal(conv(x), conv(x.to(memory_format=torch.channels_last)))


def test_without_compiled_code_torch_convolves_and_the_log_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    # Given an installation that found no compiler, and one whose code cannot be loaded
    broken = tmp_path / "broken.so"
    broken.write_text("no library")
    for origin in (None, broken):
        found = None if origin is None else importlib.machinery.ModuleSpec("name", None, origin=str(origin))
        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
            patch.setattr(importlib.util, "find_spec", lambda name, found=found: found)
            loader.winograd.cache_clear()
            caplog.clear()
            # When / Then
            assert not winograd.suits(convolution())
            assert not winograd.suits(convolution())
            (message,) = caplog.messages
            assert "twice as long" in message
    loader.winograd.cache_clear()
    assert winograd.suits(convolution())


def test_a_processor_without_wide_vectors_has_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
        loader.winograd.cache_clear()
        # When / Then
        assert not winograd.suits(convolution())
    loader.winograd.cache_clear()


def test_its_threads_are_torchs() -> None:
    # Given
    installed = Path(winograd._library()._name)
    # When / Then nothing asks the loader for an OpenMP library of its own beside torch's, which may have another name
    assert b"libgomp" not in installed.read_bytes()
    # And there is one in this process
    libraries = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "omp" in line}
    assert len({name for name in libraries if Path(name).name.startswith(("libgomp", "libomp", "libiomp"))}) == 1


def test_memory_that_does_not_suffice_is_an_error_of_the_kind_that_halves_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a network whose tiles' memory cannot be had: no machine has so much
    fresh = ctypes.CDLL(winograd._library()._name)
    too_many = ctypes.c_long(2**44)
    # When
    pointers, sizes = [None] * 5, [ctypes.c_long(1)] * 3
    failed = fresh.convolve(
        *pointers, *sizes, too_many, ctypes.c_long(16), ctypes.c_long(1), ctypes.c_int(4), ctypes.c_float(0)
    )
    # Then
    assert failed == 1
    # And
    conv = winograd.WinogradConv(convolution())
    x = torch.zeros(1, 48, 8, 8)
    conv(x)

    width = winograd._library().panel_width()

    class Full:
        panel_width = staticmethod(lambda: width)
        convolve = staticmethod(lambda *_: 1)

    monkeypatch.setattr(winograd, "_library", lambda **_: Full)
    with pytest.raises(MemoryError, match="tiles"):
        conv(x)


def test_what_follows_may_work_in_place() -> None:
    # Given
    conv = winograd.WinogradConv(convolution())
    x = torch.randn(1, 48, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
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
        nn.Conv2d(16, 128, 3),
        nn.Conv2d(72, 128, 3),
        nn.Conv2d(128, 16, 3),
        nn.Conv2d(128, 72, 3),
        nn.Conv2d(128, 128, 3).bfloat16(),
        nn.Conv2d(128, 128, 3, device="meta"),
    ],
)
def test_other_convolutions_are_left_alone(conv: nn.Conv2d) -> None:
    # When / Then
    assert not winograd.suits(conv)


@pytest.mark.parametrize("ceiling", [float("inf"), 0.5])
@pytest.mark.parametrize("size", [(9, 9), (58, 90)])
def test_a_relu_behind_it_cuts_off_values_and_gradients(
    ceiling: float, size: tuple[int, int], width: int | None
) -> None:
    # Given
    assert width is None or winograd._library().panel_width() == 2 * width
    bare = winograd.WinogradConv(convolution())
    x = torch.randn(2, 48, *size, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    # When
    y = bare.with_relu(ceiling)(x)
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(y, x, direction)
    # Then
    assert torch.equal(y, bare(x).clamp(0, ceiling))
    awake = (y > 0) & (y < ceiling)
    assert 0 < int(awake.sum()) < y.numel()
    (wanted,) = torch.autograd.grad(bare(x), x, direction * awake)
    assert torch.equal(gradient, wanted)
    # And what it was made from has none
    assert bare.ceiling == 0


def test_what_is_no_number_stays_that_behind_a_relu() -> None:
    # Given
    x = torch.randn(1, 48, 8, 8, generator=torch.Generator().manual_seed(0))
    x[0, 3, 2, 2] = float("nan")
    conv = winograd.WinogradConv(convolution())
    # When / Then
    assert conv.with_relu(float("inf"))(x).isnan().any()
    assert torch.equal(conv.with_relu(6.0)(x).isnan(), conv(x).isnan())


@pytest.mark.parametrize("size", [(4, 4), (9, 9), (16, 16), (5, 13), (3, 3), (58, 90)])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("ceiling", [0.0, 6.0])
def test_maps_and_gradients_in_bf16_are_those_of_a_direct_convolution(
    size: tuple[int, int], padding: int, ceiling: float
) -> None:
    # Given
    conv = convolution(padding=padding)
    assert winograd.suits(conv, half=True)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 48, *size, generator=generator).bfloat16().to(memory_format=torch.channels_last)
    x.requires_grad_(True)
    exact = x.detach().double().requires_grad_(True)
    # When
    mine = winograd.WinogradConv(conv, half=True)
    got = (mine.with_relu(ceiling) if ceiling else mine)(x)
    direction = torch.randn(got.shape, generator=generator).bfloat16()
    (gradient,) = torch.autograd.grad(got, x, direction)
    # Then
    wanted = convolution(padding=padding).double()(exact)
    awake = (got > 0) & (got < ceiling) if ceiling else torch.ones_like(got, dtype=torch.bool)
    (exact_gradient,) = torch.autograd.grad(wanted, exact, (direction * awake).double())
    for result, truth in ((got, wanted.clamp(0, ceiling) if ceiling else wanted), (gradient, exact_gradient)):
        assert result.dtype == torch.bfloat16
        assert result.shape == truth.shape
        assert (result.detach().double() - truth.detach()).norm() < 0.003 * truth.detach().norm()
