"""The transforms of pictures that are not square, and of neurons, pixel by pixel against their definition."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from workers.rendering.parametrization import MARGIN_PX
from workers.rendering.rng import PictureRng
from workers.rendering.transforms import Transforms

CPU = torch.device("cpu")

#: Height and width of tiles.
SIZES = [(24, 48), (40, 17), (24, 24)]


def streams(count: int) -> list[PictureRng]:
    return [PictureRng(seed=1, restart=0, layer="a", filter=number) for number in range(count)]


def transforms_of(size_px: tuple[int, int], *, stride: float, steps: int = 12, pinned: bool = False) -> Transforms:
    return Transforms(streams(1), steps=steps, size_px=size_px, stride=stride, device=CPU, pinned=pinned)


def sources_at(transforms: Transforms, size_px: tuple[int, int], step: int) -> NDArray[np.float64]:
    """(H', W', 2) row and column of the source of each output pixel, from pictures of coordinates."""
    height, width = size_px[0] + 2 * MARGIN_PX, size_px[1] + 2 * MARGIN_PX
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    both = torch.stack([rows, columns]).double()[None]
    transforms._theta = transforms._theta.double()
    return transforms.apply(both, step)[0].permute(1, 2, 0).numpy()


def draws_of(steps: int) -> NDArray[np.float64]:
    """(steps, 4) in -1..1: shift to the right, shift down, scale, rotation; CRC-32 of "a" written out."""
    bits = np.random.PCG64(np.random.SeedSequence([1, 0, 0, 0xE8B7BE43, 2]))
    return np.random.Generator(bits).uniform(-1, 1, (steps, 4))


def wanted_at(
    size_px: tuple[int, int], output_px: tuple[int, int], shift: NDArray[np.float64], zoom: float, degrees: float
) -> NDArray[np.float64]:
    """(H', W', 2) row and column that each output pixel is sampled from, rotated and scaled about the centre."""
    result = np.empty((*output_px, 2))
    middle = (size_px[0] + 2 * MARGIN_PX - 1) / 2, (size_px[1] + 2 * MARGIN_PX - 1) / 2
    turn = math.radians(degrees)
    for row in range(output_px[0]):
        for column in range(output_px[1]):
            down, right = row - (output_px[0] - 1) / 2, column - (output_px[1] - 1) / 2
            result[row, column] = (
                middle[0] + (math.sin(turn) * right + math.cos(turn) * down) / zoom + shift[1],
                middle[1] + (math.cos(turn) * right - math.sin(turn) * down) / zoom + shift[0],
            )
    return result


@pytest.mark.parametrize("size_px", SIZES)
@pytest.mark.parametrize("stride", [7.6, 8.0, 32.0])
def test_rotation_scale_and_shift_are_in_pixels_for_every_shape(size_px: tuple[int, int], stride: float) -> None:
    # Given
    transforms = transforms_of(size_px, stride=stride)
    for step, (right, down, zoom, turn) in enumerate(draws_of(12)):
        # When
        seen = sources_at(transforms, size_px, step)
        # Then
        shift = np.array([8 * right, 8 * down])
        wanted = wanted_at(size_px, size_px, shift, 1 + 0.1 * zoom, 10 * turn)
        assert seen.shape == wanted.shape
        # Pixels sampled from beyond the picture are mirrored, and left out here
        last = np.array([size_px[0], size_px[1]]) + 2 * MARGIN_PX - 1
        inside = ((wanted >= 0) & (wanted <= last)).all(axis=-1)
        assert inside.mean() > 0.9
        np.testing.assert_allclose(seen[inside], wanted[inside], rtol=0, atol=1e-4)


@pytest.mark.parametrize("size_px", SIZES)
@pytest.mark.parametrize(("stride", "grid_px"), [(1.0, 1), (2.0, 2), (2.007, 2), (3.9, 4), (4.2, 4)])
def test_inputs_of_shallow_layers_are_larger_and_shifted_by_multiples_of_the_stride(
    size_px: tuple[int, int], stride: float, grid_px: int
) -> None:
    # Given
    transforms = transforms_of(size_px, stride=stride, steps=30)
    shifts = set()
    for step, (right, down, *_) in enumerate(draws_of(30)):
        # When
        seen = sources_at(transforms, size_px, step)
        # Then the input has sixteen pixels more on each side, a multiple of each such stride
        shift = grid_px * np.round(np.array([8 * right, 8 * down]) / grid_px)
        shifts.add(tuple(shift))
        wanted = wanted_at(size_px, (size_px[0] + 32, size_px[1] + 32), shift, 1.0, 0.0)
        np.testing.assert_allclose(seen, wanted, rtol=0, atol=1e-4)
        np.testing.assert_allclose(wanted, np.round(wanted))
    assert len(shifts) > 10


@pytest.mark.parametrize("size_px", [(24, 24), (24, 48)])
@pytest.mark.parametrize(("stride", "reach_px"), [(1.0, 0.0), (2.0, 0.0), (4.0, 1.0), (8.0, 2.0), (32.0, 8.0)])
def test_a_neurons_input_is_shifted_by_a_quarter_of_the_stride_at_most(
    size_px: tuple[int, int], stride: float, reach_px: float
) -> None:
    # Given
    transforms = transforms_of(size_px, stride=stride, pinned=True)
    assert transforms.output_px == size_px
    rows, columns = np.meshgrid(np.arange(size_px[0]), np.arange(size_px[1]), indexing="ij")
    tile = np.stack([rows, columns], axis=-1) + MARGIN_PX
    furthest = 0.0
    for step in range(12):
        # When
        moved = sources_at(transforms, size_px, step) - tile
        # Then it is the tile shifted by whole pixels, neither rotated nor scaled
        np.testing.assert_allclose(moved, np.broadcast_to(np.round(moved[0, 0]), moved.shape), rtol=0, atol=1e-4)
        furthest = max(furthest, float(np.abs(moved).max()))
    assert furthest == pytest.approx(reach_px, abs=1e-3)
