"""Winograd's convolution and its gradient equal torch's in double precision, except for rounding."""

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

#: Largest accepted error relative to the largest output. That of a direct convolution of this size is 2e-6.
MOST_ERROR = 3e-5


#: The compile command of setuptools, for processors with vectors of 8 numbers.
COMPILE = ("cc", "-O3", "-march=x86-64-v3", "-fno-signed-zeros", "-fopenmp", "-fPIC")

SOURCE = Path(winograd.__file__).parent / "src" / "winograd.c"


def convolution(*, padding: int = 1, bias: bool = True) -> nn.Conv2d:
    """A seeded, frozen convolution that can be compiled."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        conv = nn.Conv2d(48, 80, 3, padding=padding, bias=bias)
    return conv.requires_grad_(False)


def compile_library(folder: Path, source: Path, width: int, *options: str) -> Path:
    """Compile a winograd.c for vectors of that width, on a processor with AVX2."""
    code, built = folder / "wide.o", folder / "wide.so"
    subprocess.run([*COMPILE, *options, f"-DWIDTH={width}", "-c", "-o", str(code), str(source)], check=True)
    subprocess.run(["cc", "-shared", "-o", str(built), str(code)], check=True)
    return built


def compiled_library() -> ctypes.CDLL:
    """The installed library for this processor."""
    installed = loader.library()
    if installed is None:
        pytest.skip("no compiled convolutions for this processor")
    return installed


@pytest.fixture(autouse=True)
def fresh_loader(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test chooses and loads its library anew."""
    monkeypatch.setenv("FILTERFARM_KERNELS", "auto")
    loader.library.cache_clear()
    yield
    loader.library.cache_clear()


@pytest.fixture(params=["installed", 8, 16], scope="module")
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The installed library for this processor, and the same source compiled for vectors of 8 and of 16 numbers.

    With AVX2 alone the compiler makes two instructions of each operation on 16 numbers, which takes it half a minute
    where it optimises.
    """
    if request.param == "installed":
        return compiled_library()
    folder = tmp_path_factory.mktemp("compiled")
    options = ("-O1",) if request.param == 16 else ()
    built = loader.load(str(compile_library(folder, SOURCE, request.param, *options)))
    assert built.panel_width() == 2 * request.param
    return built


# Each tile size is the best for one of these maps; 5 x 13 and 11 are multiples of none. Two maps of 100 x 70 have
# enough tiles for each thread to compute blocks of its own.
@pytest.mark.parametrize("size", [(4, 4), (6, 6), (9, 9), (16, 16), (5, 13), (11, 11), (3, 3), (100, 70), (58, 90)])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_maps_and_gradients_are_those_of_a_direct_convolution(
    size: tuple[int, int], padding: int, bias: bool, library: ctypes.CDLL
) -> None:
    # Given
    conv = convolution(padding=padding, bias=bias)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 48, *size, generator=generator).to(memory_format=torch.channels_last).requires_grad_(True)
    exact = x.detach().double().requires_grad_(True)
    # When
    got = winograd.WinogradConv(conv, library)(x)
    wanted = convolution(padding=padding, bias=bias).double()(exact)
    direction = torch.randn(got.shape, generator=generator)
    (gradient,) = torch.autograd.grad(got, x, direction)
    (exact_gradient,) = torch.autograd.grad(wanted, exact, direction.double())
    # Then
    for result, truth in ((got.detach(), wanted.detach()), (gradient, exact_gradient)):
        assert result.shape == truth.shape
        assert (result - truth).abs().max() < MOST_ERROR * truth.abs().max()


@pytest.mark.parametrize("tile", winograd.TILES)
def test_every_tile_is_the_best_for_some_map(tile: int) -> None:
    # When / Then
    assert tile in {winograd._best_tile(size, size) for size in range(1, 20)}


def test_a_picture_has_the_same_map_in_any_batch() -> None:
    # Given
    conv = winograd.WinogradConv(convolution(), compiled_library())
    x = torch.randn(5, 48, 9, 9, generator=torch.Generator().manual_seed(0))
    # When
    together = conv(x)
    # Then
    for place in range(5):
        assert torch.equal(together[place : place + 1], conv(x[place : place + 1]))


def test_inputs_in_another_memory_format_are_converted() -> None:
    # Given
    conv = winograd.WinogradConv(convolution(), compiled_library())
    x = torch.randn(2, 48, 9, 7, generator=torch.Generator().manual_seed(0))
    # When / Then
    assert torch.equal(conv(x), conv(x.to(memory_format=torch.channels_last)))


def test_without_compiled_code_torch_convolves_and_one_warning_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    # Given an installation that found no compiler, and one whose code cannot be loaded
    broken = tmp_path / "broken.so"
    broken.write_text("no library")
    for origin in (None, broken):
        found = None if origin is None else importlib.machinery.ModuleSpec("name", None, origin=str(origin))
        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
            patch.setattr(importlib.util, "find_spec", lambda name, found=found: found)
            loader.library.cache_clear()
            caplog.clear()
            # When / Then
            assert type(loader.compiled(convolution())) is nn.Conv2d
            assert type(loader.compiled(convolution())) is nn.Conv2d
            (message,) = caplog.messages
            assert "twice as long" in message
    loader.library.cache_clear()
    assert type(loader.compiled(convolution())) is winograd.WinogradConv


def test_a_processor_without_wide_vectors_uses_torchs_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
        loader.library.cache_clear()
        # When / Then
        assert type(loader.compiled(convolution())) is nn.Conv2d
    loader.library.cache_clear()


def test_its_threads_are_torchs() -> None:
    # Given
    installed = Path(compiled_library()._name)
    # When / Then it is not linked with an OpenMP library: torch's may have another name, and two would be loaded
    assert b"libgomp" not in installed.read_bytes()
    # And this process has loaded one
    libraries = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "omp" in line}
    assert len({name for name in libraries if Path(name).name.startswith(("libgomp", "libomp", "libiomp"))}) == 1


def test_memory_that_does_not_suffice_is_an_error_of_the_kind_that_halves_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a batch whose tiles exceed the memory of any machine
    fresh = ctypes.CDLL(compiled_library()._name)
    too_many = ctypes.c_long(2**44)
    # When
    pointers, sizes = [None] * 5, [ctypes.c_long(1)] * 3
    failed = fresh.convolve(
        *pointers, *sizes, too_many, ctypes.c_long(16), ctypes.c_long(1), ctypes.c_int(4), ctypes.c_float(0)
    )
    # Then
    assert failed == 1
    # And
    conv = winograd.WinogradConv(convolution(), compiled_library())
    x = torch.zeros(1, 48, 8, 8)
    conv(x)

    width = compiled_library().panel_width()

    class Full:
        panel_width = staticmethod(lambda: width)
        convolve = staticmethod(lambda *_: 1)

    monkeypatch.setattr(conv, "_library", Full)
    with pytest.raises(MemoryError, match="tiles"):
        conv(x)


def test_the_next_operation_may_work_in_place() -> None:
    # Given
    conv = winograd.WinogradConv(convolution(), compiled_library())
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
def test_a_fused_relu_clamps_values_and_masks_gradients(
    ceiling: float, size: tuple[int, int], library: ctypes.CDLL
) -> None:
    # Given
    bare = winograd.WinogradConv(convolution(), library)
    x = torch.randn(2, 48, *size, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    # When
    y = bare.with_relu(ceiling)(x)
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(y, x, direction)
    # Then
    assert torch.equal(y, bare(x).clamp(0, ceiling))
    active = (y > 0) & (y < ceiling)
    assert 0 < int(active.sum()) < y.numel()
    (wanted,) = torch.autograd.grad(bare(x), x, direction * active)
    assert torch.equal(gradient, wanted)
    # And the convolution it was made from has no ReLU
    assert bare.ceiling == 0


def test_nan_passes_through_a_fused_relu() -> None:
    # Given
    x = torch.randn(1, 48, 8, 8, generator=torch.Generator().manual_seed(0))
    x[0, 3, 2, 2] = float("nan")
    conv = winograd.WinogradConv(convolution(), compiled_library())
    # When / Then
    assert conv.with_relu(float("inf"))(x).isnan().any()
    assert torch.equal(conv.with_relu(6.0)(x).isnan(), conv(x).isnan())


def test_switched_off_torch_convolves(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    # Given
    monkeypatch.setenv("FILTERFARM_KERNELS", "off")
    # When / Then
    conv = convolution()
    assert loader.compiled(conv) is conv
    assert not caplog.messages


def test_another_value_of_the_setting_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    monkeypatch.setenv("FILTERFARM_KERNELS", "fast")
    # When / Then
    with pytest.raises(ValueError, match=r"^FILTERFARM_KERNELS is 'fast'; it must be 'auto' or 'off'$"):
        loader.compiled(convolution())


@pytest.mark.parametrize("right", ["{2,-1,-2,1,0}", "(value > 0)"])
def test_a_library_whose_results_are_wrong_is_not_used(
    right: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    # Given the source with one constant changed: of tiles of 3 x 3 outputs, or of the ReLU's gradient
    text = SOURCE.read_text()
    assert right in text
    source = tmp_path / "winograd.c"
    source.write_text(text.replace(right, right.replace("1", "3", 1).replace("> 0", "< 0")))
    built = compile_library(tmp_path, source, 8, "-O1")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: importlib.machinery.ModuleSpec(name, None, origin=str(built))
    )
    # When / Then
    assert type(loader.compiled(convolution())) is nn.Conv2d
    assert type(loader.compiled(convolution())) is nn.Conv2d
    (message,) = caplog.messages
    assert "error=" in message


def test_the_check_passes_and_draws_no_random_numbers(library: ctypes.CDLL) -> None:
    # Given
    before = torch.get_rng_state()
    # When / Then
    with torch.no_grad():
        assert loader.largest_error(library) < 1e-5
    assert torch.equal(torch.get_rng_state(), before)
