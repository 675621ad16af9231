"""Start noise, network input and pixels, against constants."""

import numpy as np
import pytest
import torch

from workers.contract.recipe import Preprocess
from workers.networks import registry
from workers.rendering import images
from workers.rendering.rng import PictureRng


def noise(seed: int = 1, restart: int = 0, layer: str = "features.0", filter_: int = 2) -> bytes:
    return images.start_noise(PictureRng(seed=seed, restart=restart, layer=layer, filter=filter_), (8, 8)).tobytes()


def test_start_noise_is_the_documented_random_stream() -> None:
    # Given the CRC-32 of "features.24", written out
    sequence = np.random.SeedSequence([42, 3, 511, 2849982217])
    wanted = np.random.Generator(np.random.PCG64(sequence)).random((10, 10, 3), dtype=np.float32)
    # When
    got = images.start_noise(PictureRng(seed=42, restart=3, layer="features.24", filter=511), (10, 10))
    # Then
    assert got.dtype == np.float32
    assert np.array_equal(got, wanted)


def test_start_noise_never_changes_between_versions() -> None:
    # Given the first pixel of one tile, as every release must draw it
    wanted = [0.2727952003479004, 0.5244707465171814, 0.9248991012573242]
    # When
    got = images.start_noise(PictureRng(seed=0, restart=0, layer="features.24", filter=7), (150, 150))
    # Then
    assert got[0, 0].tolist() == pytest.approx(wanted, abs=1e-7)


def test_start_noise_lies_in_zero_to_one() -> None:
    # Given / When
    got = images.start_noise(PictureRng(seed=0, restart=0, layer="conv", filter=0), (64, 64))
    # Then
    assert got.min() >= 0
    assert got.max() < 1
    assert got.mean() == pytest.approx(0.5, abs=0.02)


def test_start_noise_differs_by_seed_restart_filter_and_layer() -> None:
    # Given / When
    streams = [noise(), noise(seed=2), noise(restart=1), noise(filter_=3), noise(layer="features.2")]
    # Then
    assert len(set(streams)) == 5
    assert noise() == noise()


def test_the_greatest_seed_is_taken() -> None:
    # Given / When / Then
    assert noise(seed=2**63 - 1) != noise(seed=2**63 - 2)


def test_the_notebooks_start_image_is_grey_with_some_noise() -> None:
    # Given
    unit = np.array([[[0.0, 0.5, 0.25]]], np.float32)
    # When
    start = images.notebook_start(unit)
    # Then
    assert start.dtype == np.float32
    assert start.tolist() == [[[128.0, 138.0, 133.0]]]


def test_raw_pixels_reach_the_network_unchanged() -> None:
    # Given
    pictures = torch.rand(2, 3, 4, 4) * 255
    # When / Then
    assert torch.equal(images.to_network(pictures, registry.RAW), pictures)


def test_imagenet_preprocessing_is_torchvisions() -> None:
    # Given one pixel per channel, black, mid grey and white
    pictures = torch.tensor([0.0, 127.5, 255.0]).view(1, 3, 1, 1)
    # When
    fed = images.to_network(pictures, registry.IMAGENET)
    # Then
    wanted = [(0 - 0.485) / 0.229, (0.5 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert fed.flatten().tolist() == pytest.approx(wanted, rel=1e-5)


def test_halves_reach_from_minus_one_to_one() -> None:
    # Given
    pictures = torch.tensor([0.0, 127.5, 255.0]).view(1, 3, 1, 1)
    # When / Then
    assert images.to_network(pictures, registry.HALVES).flatten().tolist() == pytest.approx([-1, 0, 1], abs=1e-6)


def test_preprocessing_keeps_the_pictures_type_and_passes_gradients() -> None:
    # Given
    pictures = torch.full((1, 3, 2, 2), 100.0, dtype=torch.float64, requires_grad=True)
    # When
    fed = images.to_network(pictures, registry.HALVES)
    (gradient,) = torch.autograd.grad(fed.sum(), pictures)
    # Then
    assert fed.dtype == torch.float64
    torch.testing.assert_close(gradient, torch.full_like(gradient, 2 / 255))


def test_preprocess_defaults_are_the_identity() -> None:
    # Given a preprocessing with default mean and standard deviation, which is computed and not skipped as raw is
    pictures = torch.tensor([0.0, 100.0, 255.0]).view(1, 3, 1, 1)
    # When
    fed = images.to_network(pictures, Preprocess(name="model"))
    # Then
    assert fed.flatten().tolist() == pytest.approx([0, 100, 255], rel=1e-5)


def test_deprocess_gives_the_pixels_computed_by_hand() -> None:
    # Given a mean of 4 and a standard deviation of sqrt(28 / 12) = 1.5275
    picture = np.array([1, 3, 3, 3, 3, 3, 5, 5, 5, 5, 5, 7], np.float32).reshape(2, 2, 3)
    # When
    pixels = images.deprocess(picture)
    # Then 255 x (0.5 + 0.1 x (value - 4) / 1.5275) is 77.42, 110.81, 144.19 and 177.58, truncated
    assert pixels.dtype == np.uint8
    assert pixels.flatten().tolist() == [77, 110, 110, 110, 110, 110, 144, 144, 144, 144, 144, 177]


def test_deprocess_clips_outliers() -> None:
    # Given 299 zeros and one peak of more than 17 standard deviations
    picture = np.zeros((10, 10, 3), np.float32)
    picture[0, 0, 0] = 1000
    # When
    pixels = images.deprocess(picture)
    # Then
    assert pixels[0, 0, 0] == 255
    assert (pixels.flatten()[1:] == 126).all()  # 255 x (0.5 - 0.1 x 0.0578) = 126.03


def test_deprocess_of_one_flat_grey_is_mid_grey() -> None:
    # Given / When
    pixels = images.deprocess(np.full((4, 4, 3), 200, np.float32))
    # Then 255 x 0.5 = 127.5 is truncated
    assert (pixels == 127).all()


def test_deprocess_does_not_change_its_argument() -> None:
    # Given
    picture = np.arange(48, dtype=np.float32).reshape(4, 4, 3)
    before = picture.copy()
    # When
    images.deprocess(picture)
    # Then
    assert np.array_equal(picture, before)
