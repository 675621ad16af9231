"""Descriptors: the same texture at another place is alike, and another one is not."""

import numpy as np
from numpy.typing import NDArray

from producer.gallery.descriptors import SIZE, descriptors, features

Pixels = NDArray[np.uint8]


def texture(seed: int, side_px: int = 128) -> Pixels:
    """Noise of one orientation, one period and two colours, which the seed determines."""
    rng = np.random.default_rng(seed)
    down, right = np.fft.fftfreq(side_px)[:, None], np.fft.fftfreq(side_px)[None]
    angle, frequency = rng.uniform(0, np.pi), 2 ** rng.uniform(-5, -1.5)
    centre = frequency * np.sin(angle), frequency * np.cos(angle)
    band = sum(
        np.exp(-((down - sign * centre[0]) ** 2 + (right - sign * centre[1]) ** 2) / (2 * (frequency / 3) ** 2))
        for sign in (1, -1)
    )
    pixels = 128 + rng.uniform(-40, 40, 3)
    for strength in (30, 15):
        plane = np.real(np.fft.ifft2(np.fft.fft2(rng.normal(size=(side_px, side_px))) * band))
        pixels = pixels + strength * (plane / plane.std())[..., None] * rng.normal(size=3)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def cosines(first: list[Pixels], second: list[Pixels]) -> NDArray[np.float64]:
    """(first, second): each with each, of one layer."""
    vectors = descriptors([features(pixels) for pixels in first + second]).astype(float)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found: NDArray[np.float64] = vectors[: len(first)] @ vectors[len(first) :].T
    return found


def test_a_shifted_texture_is_alike_and_others_are_not() -> None:
    # Given a hundred textures, and each of them shifted
    pictures = [texture(seed)[:64, :64] for seed in range(100)]
    found = cosines(pictures, [np.roll(pixels, (20, 31), (0, 1)) for pixels in pictures])
    # When they are compared
    same, others = np.diag(found), found[~np.eye(100, dtype=bool)]
    # Then each is most like itself
    assert same.min() > 0.95
    assert (found.argmax(axis=1) == np.arange(100)).all()
    assert np.median(others) < 0.1
    assert np.percentile(others, 95) < 0.7


def test_another_part_of_a_texture_is_found() -> None:
    # Given a hundred textures, and two parts of each that overlap by a fifth
    found = cosines(
        [texture(seed)[:64, :64] for seed in range(100)], [texture(seed)[37:101, 21:85] for seed in range(100)]
    )
    # When they are compared, then nearly all find their other part first
    assert (found.argmax(axis=1) == np.arange(100)).mean() >= 0.95
    assert np.median(np.diag(found)) > 0.9


def test_colour_alone_tells_pictures_apart() -> None:
    # Given the same pattern in two colours, twice each
    grey = texture(3)[:64, :64]
    green, red = (np.clip(grey.astype(int) + shift, 0, 255).astype(np.uint8) for shift in ((0, 30, 0), (30, 0, 0)))
    # When
    found = cosines([green, red], [np.roll(green, 9, 0), np.roll(red, 9, 1)])
    # Then
    assert found[0, 0] > found[0, 1]
    assert found[1, 1] > found[1, 0]


def test_failed_and_equal_tiles_have_descriptors_without_errors() -> None:
    # Given nothing, a single tile, a failed one, and tiles of one colour, also of other shapes
    plain = np.full((64, 64, 3), 7, np.uint8)
    # When / Then
    assert descriptors([]).shape == (0, SIZE)
    assert not descriptors([None, features(plain)])[0].any()
    assert descriptors([features(plain)] * 3).dtype == np.int8
    assert features(np.zeros((21, 259, 3), np.uint8)).shape == (SIZE,)
    assert np.isfinite(features(np.zeros((5, 1, 3), np.uint8))).all()
