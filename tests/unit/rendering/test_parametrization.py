"""Parametrizations of any size, in colour and in grey, against a second implementation in NumPy."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.recipes import recipe_of
from tests.unit.rendering.tiny import CPU, LAYER, network, tiles_of
from workers.rendering.parametrization import (
    MARGIN_PX,
    Parametrization,
    fourier_parametrization,
    phase_parametrization,
    pixel_parametrization,
    spectrum_scale,
)
from workers.rendering.rng import PictureRng

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Height and width of tiles: each of them odd and even, and equal.
SIZES = [(8, 12), (11, 8), (8, 11), (9, 13), (10, 10)]

#: Canvas around the tile, to each side.
MARGIN = 24

MAKERS = {"fourier": fourier_parametrization, "maco": phase_parametrization, "pixel": pixel_parametrization}


def streams(count: int) -> list[PictureRng]:
    return [PictureRng(seed=2, restart=0, layer="a", filter=number) for number in range(count)]


def parametrization_of(
    method: str, size_px: tuple[int, int], channels: int = 3, *, louder: float = 1.0
) -> Parametrization:
    """Two pictures, whose start coefficients are multiplied by a factor."""
    maker: Callable[..., Parametrization] = MAKERS[method]
    parametrization = maker(streams(2), size_px=size_px, channels=channels, longest_px=math.inf, device=CPU)
    parametrization.coefficients.data *= louder
    return parametrization


def scale_of(height: int, width: int) -> "NDArray[np.float64]":
    """1 / frequency, in pixels per cycle; a quarter of it for the constant term and the lowest frequency."""
    scale = np.empty((height, width // 2 + 1))
    lowest = 1 / max(height, width)
    for row in range(height):
        for column in range(width // 2 + 1):
            cycles = math.hypot((row if 2 * row < height else row - height) / height, column / width)
            scale[row, column] = 1 / cycles if cycles > lowest * (1 + 1e-9) else 0.25 / lowest
    return scale


def reference_planes(method: str, start: "NDArray[np.float64]", size_px: tuple[int, int]) -> "NDArray[np.float64]":
    """(C, H, W) in decorrelated colour, before the sigmoid, of one picture's coefficients."""
    whole_px = size_px[0] + 2 * MARGIN, size_px[1] + 2 * MARGIN
    if method == "pixel":
        return start
    scale = scale_of(*whole_px)
    if method == "fourier":
        spectrum = (start[..., 0] + 1j * start[..., 1]) * scale
        return np.stack([np.fft.irfft2(one, s=whole_px, norm="ortho") for one in spectrum]) / 4
    scale[0, 0] = 0
    planes = np.stack([np.fft.irfft2(scale * np.exp(1j * one), s=whole_px) for one in start])
    return planes / np.sqrt(np.mean(planes**2))  # type: ignore[no-any-return]


def reference_picture(planes: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """(C, H, W) in 0..255."""
    length = math.sqrt(0.26**2 + 0.27**2 + 0.27**2)
    if len(planes) == 1:  # the first axis of the colour space, repeated in three channels
        colours = planes / math.sqrt(3)
    else:
        light, warm, green = planes
        red = 0.26 * light + 0.09 * warm + 0.02 * green
        middle = 0.27 * light - 0.05 * green
        blue = 0.27 * light - 0.09 * warm + 0.03 * green
        colours = np.stack([red, middle, blue]) / length
    return 255 / (1 + np.exp(-colours))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size_px", SIZES)
@pytest.mark.parametrize(("method", "louder"), [("fourier", 40.0), ("maco", 1.0), ("pixel", 200.0)])
def test_pictures_equal_the_reference(method: str, louder: float, size_px: tuple[int, int], channels: int) -> None:
    # Given
    parametrization = parametrization_of(method, size_px, channels, louder=louder)
    # When
    whole, tiles = parametrization.whole().detach().numpy(), parametrization.tiles().detach().numpy()
    # Then
    start = parametrization.coefficients.detach().numpy().astype(np.float64)
    wanted = np.stack([reference_picture(reference_planes(method, one, size_px)) for one in start])
    assert whole.shape == (2, channels, size_px[0] + 48, size_px[1] + 48)
    np.testing.assert_allclose(whole, wanted, rtol=0, atol=0.02)
    assert wanted.std() > 20
    # And the tile is the picture without its margins
    assert MARGIN_PX == MARGIN
    assert tiles.shape == (2, channels, *size_px)
    np.testing.assert_array_equal(tiles, whole[:, :, 24 : 24 + size_px[0], 24 : 24 + size_px[1]])


@pytest.mark.parametrize("size_px", [(4, 4), (5, 8), (8, 5), (7, 9), (40, 64)])
def test_the_spectrum_falls_off_with_frequency_in_pictures_of_any_shape(size_px: tuple[int, int]) -> None:
    # Given / When
    scale = spectrum_scale(size_px)
    # Then
    assert scale.shape == (size_px[0], size_px[1] // 2 + 1)
    np.testing.assert_allclose(scale, scale_of(*size_px), rtol=1e-5)


@pytest.mark.parametrize("size_px", [(16, 16), (12, 21)])
def test_the_magnitudes_do_not_depend_on_the_phases(size_px: tuple[int, int]) -> None:
    # Given the start phases, and others far from them
    parametrization = parametrization_of("maco", size_px)
    phases = parametrization.coefficients.detach()
    others = phases * 3.0 + 1.0
    spectra = []
    for one in (phases, others):
        # When
        planes = parametrization._planes(one).double().numpy()
        # Then the picture is standardised
        np.testing.assert_allclose(planes.mean(axis=(2, 3)), 0, atol=1e-5)
        np.testing.assert_allclose((planes**2).mean(axis=(1, 2, 3)), 1, rtol=1e-5)
        spectra.append(np.abs(np.fft.rfft2(planes)))
    # And magnitudes are proportional to 1 / frequency. Each coefficient of the first and the last column is the mean of
    # two phases, and may be less
    height, width = size_px[0] + 48, size_px[1] + 48
    wanted = scale_of(height, width)
    wanted[0, 0] = 0
    inner = slice(1, (width + 1) // 2)
    for spectrum in spectra:
        ratio = spectrum[..., inner] / wanted[:, inner]
        for picture in ratio:
            np.testing.assert_allclose(picture, picture.mean(), rtol=1e-3)
        mirrored = spectrum[..., 1:, 0] / wanted[1:, 0]
        assert (mirrored <= ratio.mean(axis=(1, 2, 3), keepdims=True)[..., 0] * (1 + 1e-3)).all()
    # And the pictures differ
    assert (parametrization._planes(phases) - parametrization._planes(others)).abs().max() > 1


@pytest.mark.parametrize("method", ["fourier", "maco", "pixel"])
def test_start_coefficients_are_normal_and_from_the_tiles_random_stream(method: str) -> None:
    # Given the random stream of purpose 1, which all start coefficients are drawn from
    shapes = {"fourier": (3, 56, 31, 2), "maco": (3, 56, 31), "pixel": (3, 56, 60)}
    crc_of_a = 0xE8B7BE43
    # When
    start = parametrization_of(method, (8, 12)).coefficients.detach().numpy()
    # Then
    assert start.shape == (2, *shapes[method])
    for number in range(2):
        bits = np.random.PCG64(np.random.SeedSequence([2, 0, number, crc_of_a, 1]))
        normal = np.random.Generator(bits).standard_normal(shapes[method], dtype=np.float32)
        wanted = normal * np.float32(1.0 if method == "maco" else 0.01)
        np.testing.assert_array_equal(start[number], wanted)


@pytest.mark.parametrize("method", ["notebook", "fourier", "maco", "pixel"])
def test_a_grey_tile_has_three_equal_channels_and_a_picture_in_them(method: str) -> None:
    # Given
    layers = network()
    # When
    (grey,) = tiles_of(layers, [3], recipe_of(method, grey=True, frames=2, height_px=18, width_px=25))
    (colour,) = tiles_of(layers, [3], recipe_of(method, height_px=18, width_px=25))
    # Then
    for pixels in (grey.pixels, *grey.frames):
        assert pixels.shape == (18, 25, 3)
        assert np.array_equal(pixels[..., 0], pixels[..., 1])
        assert np.array_equal(pixels[..., 0], pixels[..., 2])
        assert pixels.std() > 0
    assert grey.activation > grey.start_activation
    assert not np.array_equal(colour.pixels[..., 0], colour.pixels[..., 1])


def test_a_grey_notebook_starts_from_the_first_channel_of_its_noise() -> None:
    # Given
    noise = PictureRng(seed=3, restart=0, layer=LAYER, filter=3).generator().random((20, 20, 3), dtype=np.float32)
    # When a step changes no pixel by a grey level
    (tile,) = tiles_of(network(), [3], recipe_of(grey=True, steps=1, step_size=1e-9))
    # Then
    one = noise[..., 0].astype(np.float64) * 20 + 128
    wanted = np.trunc(((one - one.mean()) / one.std() * 0.1 + 0.5).clip(0, 1) * 255)
    assert np.abs(tile.pixels - wanted[..., None]).max() <= 1
