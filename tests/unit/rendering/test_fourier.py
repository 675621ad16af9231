"""The Fourier method: its parametrization against a second implementation in NumPy, its transforms, and whole tiles."""

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from tests.recipes import recipe_of
from tests.unit.rendering.ascents import maps_of, optimise_parametrization
from workers.contract.recipe import Recipe
from workers.networks import tracing
from workers.rendering.parametrization import (
    MARGIN_PX,
    Parametrization,
    fourier_parametrization,
    learning_rate_factor,
    longest_wave_px,
    spectrum_scale,
)
from workers.rendering.render import render
from workers.rendering.rng import PictureRng
from workers.rendering.tile import Tile
from workers.rendering.transforms import Transforms

if TYPE_CHECKING:
    from numpy.typing import NDArray

CPU = torch.device("cpu")
RECIPE = recipe_of("fourier", size_px=32, step_size=0.05, seed=1)


def stream(*, seed: int = 0, restart: int = 0, layer: str = "a", filter_: int = 0) -> PictureRng:
    return PictureRng(seed=seed, restart=restart, layer=layer, filter=filter_)


def coefficients(*, seed: int = 0, restart: int = 0, layer: str = "a", filter_: int = 0, size_px: int = 56) -> (
    "NDArray[np.float32]"
):  # fmt: skip
    """Start coefficients of a picture of ``size_px`` x ``size_px``, its margins included."""
    mine = stream(seed=seed, restart=restart, layer=layer, filter_=filter_)
    tile_px = size_px - 2 * MARGIN_PX
    parametrization = fourier_parametrization(
        [mine], size_px=(tile_px, tile_px), channels=3, longest_px=math.inf, device=CPU
    )
    return parametrization.coefficients.detach().numpy()[0]  # type: ignore[no-any-return]


def parametrization_of(start: "NDArray[np.float32]", longest_px: float = math.inf) -> Parametrization:
    tile_px = start.shape[2] - 2 * MARGIN_PX
    parametrization = fourier_parametrization(
        [stream()] * len(start), size_px=(tile_px, tile_px), channels=3, longest_px=longest_px, device=CPU
    )
    parametrization.coefficients.data.copy_(torch.from_numpy(start))
    return parametrization


def transforms_of(
    filters: list[int], *, stride: float, steps: int = 4, size_px: int = 24, **identity: int
) -> Transforms:
    seed, restart = identity.get("seed", 0), identity.get("restart", 0)
    streams = [stream(filter_=filter_, seed=seed, restart=restart) for filter_ in filters]
    return Transforms(streams, steps=steps, size_px=(size_px, size_px), stride=stride, device=CPU)


def reference_picture(start: "NDArray[np.float32]", scale: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """One picture (S, S, 3) in 0..255 of coefficients (3, S, S // 2 + 1, 2), in double precision."""
    size_px = start.shape[1]
    spectrum = (start[..., 0].astype(np.float64) + 1j * start[..., 1].astype(np.float64)) * scale
    planes = np.fft.irfft2(spectrum, s=(size_px, size_px), norm="ortho") / 4.0
    # Lucid's square root of the colour covariance, divided by the norm of its first column, which is the largest.
    length = math.sqrt(0.26**2 + 0.27**2 + 0.27**2)
    light, warm, green = planes
    red = (0.26 * light + 0.09 * warm + 0.02 * green) / length
    middle = (0.27 * light + 0.00 * warm - 0.05 * green) / length
    blue = (0.27 * light - 0.09 * warm + 0.03 * green) / length
    picture: NDArray[np.float64] = 255.0 / (1.0 + np.exp(-np.stack([red, middle, blue], axis=-1)))
    return picture


def network() -> nn.Sequential:
    """Maps a quarter as wide as the picture: with such a stride transforms scale and rotate."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2), nn.Softplus(), nn.Conv2d(6, 8, 3, stride=2), nn.Softplus(), nn.Conv2d(8, 4, 1)
        )
    return layers.eval().requires_grad_(False)


def tiles_of(model: nn.Module, filters: list[int], recipe: Recipe = RECIPE, layer: str = "2") -> list[Tile]:
    return render(model, tracing.trace(model), layer, filters, recipe, CPU)


def test_the_picture_equals_the_reference() -> None:
    # Given even sizes that are no power of two, and coefficients at which the sigmoid is not linear
    size_px = 58
    start = np.stack([coefficients(filter_=f, size_px=size_px) for f in range(2)]) * np.float32(60)
    # When
    whole = parametrization_of(start).whole().detach().permute(0, 2, 3, 1).numpy()
    # Then
    scale = np.empty((size_px, size_px // 2 + 1))
    for row in range(size_px):
        for column in range(size_px // 2 + 1):
            down = row if row < size_px / 2 else row - size_px
            cycles = math.sqrt(down**2 + column**2)  # in the whole picture
            scale[row, column] = size_px / max(cycles, 1) * (1.0 if cycles > 1 else 0.25)
    wanted = np.stack([reference_picture(one, scale) for one in start])
    assert wanted.std() > 20
    np.testing.assert_allclose(whole, wanted, rtol=0, atol=0.01)


@pytest.mark.parametrize("longest_px", [math.inf, 16.0])
def test_the_picture_equals_the_reference_with_and_without_its_longest_waves(longest_px: float) -> None:
    # Given
    start = coefficients(size_px=56)[None] * np.float32(30)
    # When
    whole = parametrization_of(start, longest_px).whole().detach()[0].permute(1, 2, 0).numpy()
    # Then
    wanted = reference_picture(start[0], spectrum_scale((56, 56), longest_px).astype(np.float64))
    np.testing.assert_allclose(whole, wanted, rtol=0, atol=0.01)


def test_tiles_are_the_picture_without_its_margins() -> None:
    # Given
    parametrization = parametrization_of(coefficients(size_px=56)[None])
    # When
    whole, tiles = parametrization.whole(), parametrization.tiles()
    # Then
    assert MARGIN_PX == 24
    assert tiles.shape == (1, 3, 8, 8)
    assert torch.equal(tiles, whole[:, :, 24:32, 24:32])


def test_a_picture_of_zero_coefficients_is_grey() -> None:
    # Given / When
    whole = parametrization_of(np.zeros((1, 3, 56, 29, 2), np.float32)).whole()
    # Then
    assert (whole == 127.5).all()


def test_the_spectrum_of_four_pixels_is_the_one_written_out() -> None:
    # Given frequencies of 0, 1/4, 1/2 and -1/4 cycles per pixel. The constant term and the lowest frequency, 1/4, are
    # scaled to a quarter
    diagonal, flat, corner = 4 / math.sqrt(2), 1.0, 2 / math.sqrt(2)
    knight = 4 / math.sqrt(5)
    # When
    scale = spectrum_scale((4, 4))
    # Then
    wanted = [[flat, flat, 2], [flat, diagonal, knight], [2, knight, corner], [flat, diagonal, knight]]
    assert scale.dtype == np.float32
    np.testing.assert_allclose(scale, wanted, rtol=1e-6)


def test_waves_longer_than_the_longest_are_left_out() -> None:
    # Given a longest wave of 2.5 px, so that frequencies from 0.4 on are unchanged
    # When
    plain, passed = spectrum_scale((4, 4)), spectrum_scale((4, 4), 2.5)
    # Then the constant term and the lower frequencies are zero
    np.testing.assert_array_equal(passed, plain * np.array([[0, 0, 1], [0, 0, 1], [1, 1, 1], [0, 0, 1]]))
    # And the longest wave itself is not
    assert (spectrum_scale((64, 64), 8.0)[0] > 0).tolist() == [False] * 8 + [True] * 25


def test_the_longest_wave_grows_with_the_stride_and_is_then_unlimited() -> None:
    # Given / When / Then
    assert [longest_wave_px(stride) for stride in (1.0, 2.0, 3.0)] == [8.0, 12.0, 27.0]
    assert longest_wave_px(4.0) == longest_wave_px(32.0) == math.inf


def test_the_learning_rate_of_shallow_layers_is_higher() -> None:
    # Given / When
    factors = [learning_rate_factor(stride) for stride in (1.0, 2.0, 4.0, 8.0, 32.0)]
    # Then
    assert factors == pytest.approx([6.0, 6.0, 3.0, 1.5, 1.5])


def test_start_coefficients_are_normal_with_a_standard_deviation_of_a_hundredth() -> None:
    # Given / When
    start = coefficients(size_px=64)
    # Then
    assert start.shape == (3, 64, 33, 2)
    assert start.dtype == np.float32
    assert start.std() == pytest.approx(0.01, rel=0.02)
    assert abs(float(start.mean())) < 4 * 0.01 / math.sqrt(start.size)
    assert (np.abs(start) < 0.01).mean() == pytest.approx(0.6827, abs=0.02)


@pytest.mark.parametrize("change", [{"seed": 1}, {"restart": 1}, {"filter_": 1}])
def test_start_coefficients_differ_by_seed_restart_and_filter(change: dict[str, int]) -> None:
    # Given
    plain = coefficients()
    # When
    changed = coefficients(**change)  # type: ignore[arg-type]  # none of these is the layer
    # Then
    assert np.array_equal(plain, coefficients())
    assert abs(np.corrcoef(plain.ravel(), changed.ravel())[0, 1]) < 0.1


def test_start_coefficients_differ_by_layer() -> None:
    # Given / When
    plain, changed = coefficients(layer="a"), coefficients(layer="b")
    # Then
    assert abs(np.corrcoef(plain.ravel(), changed.ravel())[0, 1]) < 0.1


def test_transforms_of_a_shallow_layer_shift_the_picture_by_whole_pixels() -> None:
    # Given
    size_px, steps = 24, 6
    whole = parametrization_of(coefficients(size_px=size_px + 2 * MARGIN_PX)[None] * np.float32(30)).whole().detach()
    transforms = transforms_of([0], stride=1.0, steps=steps, size_px=size_px)
    parametrization, side = whole[0].numpy(), transforms.output_px[0]
    edge = (parametrization.shape[1] - side) // 2
    shifts = set()
    for step in range(steps):
        # When
        seen = transforms.apply(whole, step)[0].numpy()
        assert seen.shape == (3, side, side)
        # Then the output equals the picture shifted by exactly one vector of up to 8 px
        fits = [
            (down, right)
            for down in range(-8, 9)
            for right in range(-8, 9)
            if np.allclose(
                seen,
                parametrization[:, edge + down : edge + down + side, edge + right : edge + right + side],
                rtol=0,
                atol=0.05,
            )
        ]
        assert len(fits) == 1
        shifts.update(fits)
    assert len(shifts) > 1


@pytest.mark.parametrize(("stride", "output_px"), [(1.0, 56), (2.0, 56), (4.0, 56), (8.0, 24), (32.0, 24)])
def test_the_input_of_shallow_layers_includes_part_of_the_margin(stride: float, output_px: int) -> None:
    # Given / When
    transforms = transforms_of([0], stride=stride, size_px=24)
    # Then
    assert transforms.output_px == (output_px, output_px)
    assert transforms.apply(torch.zeros(1, 3, 72, 72), 0).shape == (1, 3, output_px, output_px)


@pytest.mark.parametrize("stride", [1.0, 4.0, 8.0])
def test_a_pictures_transforms_do_not_depend_on_its_batch(stride: float) -> None:
    # Given
    start = np.stack([coefficients(filter_=f, size_px=72) for f in (5, 2, 9)])
    whole = parametrization_of(start).whole().detach()
    together, alone = transforms_of([5, 2, 9], stride=stride), transforms_of([2], stride=stride)
    for step in range(4):
        # When
        seen = together.apply(whole, step)
        # Then
        torch.testing.assert_close(seen[1:2], alone.apply(whole[1:2], step), rtol=0, atol=1e-4)


def test_transforms_differ_by_step_filter_seed_and_restart() -> None:
    # Given
    whole = parametrization_of(coefficients(size_px=72)[None]).whole().detach()
    transforms = [
        transforms_of([0], stride=8.0),
        transforms_of([1], stride=8.0),
        transforms_of([0], stride=8.0, seed=1),
        transforms_of([0], stride=8.0, restart=1),
    ]
    # When
    seen = [one.apply(whole, step) for one in transforms for step in range(4)]
    # Then
    assert not any(torch.equal(one, other) for place, one in enumerate(seen) for other in seen[:place])


@pytest.mark.parametrize(("stride", "strength"), [(2.0, 0.0), (4.2, 0.0), (8.0, 1.0), (32.0, 1.0)])
def test_rotation_zoom_and_shift_stay_within_their_bounds(stride: float, strength: float) -> None:
    # Given
    size_px, picture_px = 24, 24 + 2 * MARGIN_PX
    # When
    transforms = transforms_of([0, 1, 2, 3], stride=stride, steps=100, size_px=size_px)
    theta = transforms._theta.double()
    # Then
    linear = theta[..., :2]
    turned = torch.rad2deg(torch.atan2(linear[..., 1, 0], linear[..., 0, 0])).abs()
    zoom = linear.det().sqrt() * picture_px / transforms.output_px[0]
    shift_px = theta[..., 2].abs() * picture_px / 2
    assert turned.max() <= 10.0 * strength
    assert zoom.min() >= 1 / (1 + 0.1 * strength) - 1e-6
    assert zoom.max() <= 1 / (1 - 0.1 * strength) + 1e-6
    assert shift_px.max() <= 8 + 1e-5
    # And they cover most of these ranges, and the rotation is orthogonal
    assert turned.max() >= 9.0 * strength
    assert shift_px.max() > 7.5
    square = linear @ linear.mT
    torch.testing.assert_close(square[..., 0, 1], torch.zeros_like(square[..., 0, 1]), rtol=0, atol=1e-6)
    torch.testing.assert_close(square[..., 0, 0], square[..., 1, 1], rtol=1e-5, atol=0)


def test_transforms_that_rotate_rarely_sample_beyond_the_picture() -> None:
    # Given a picture that is black along its edge
    whole = torch.full((1, 3, 96, 96), 255.0)
    whole[..., :1, :] = whole[..., -1:, :] = whole[..., :1] = whole[..., -1:] = 0.0
    transforms = transforms_of([0], stride=8.0, steps=50, size_px=64)
    # When
    seen = torch.cat([transforms.apply(whole, step) for step in range(50)])
    # Then
    assert (seen > 254.9).float().mean() > 0.999


def test_a_tile_in_a_batch_of_four_is_the_tile_alone() -> None:
    # Given
    model = network()
    filters = [3, 6, 0, 5]
    # When
    together = tiles_of(model, filters)
    alone = [tiles_of(model, [filter_])[0] for filter_ in filters]
    # Then
    for one, other in zip(together, alone, strict=True):
        assert (one.filter, one.status, one.restarts, one.error) == (other.filter, other.status, other.restarts, "")
        assert one.activation == pytest.approx(other.activation, rel=1e-4)
        assert one.start_activation == pytest.approx(other.start_activation, rel=1e-4)
        # Adam scales float noise to whole steps where the gradient is nearly zero.
        assert np.abs(one.pixels.astype(int) - other.pixels.astype(int)).mean() < 0.1


def test_a_tile_is_bit_identical_whatever_the_other_filters_of_its_batch() -> None:
    # Given
    model = network()
    # When batches of the same size have the same filter in the middle
    one, other = (tiles_of(model, filters)[1] for filters in ([0, 3, 6], [2, 3, 5]))
    # Then
    assert np.array_equal(one.pixels, other.pixels)
    assert one.activation == other.activation


@pytest.mark.parametrize("layer", ["0", "2", "4"])
def test_the_activation_increases_with_the_steps(layer: str) -> None:
    # Given
    model = network()
    # When
    ends = [
        tiles_of(model, [1, 2], RECIPE.model_copy(update={"steps": steps}), layer)[0].activation for steps in (1, 4, 12)
    ]
    (first, *_) = tiles_of(model, [1, 2], RECIPE, layer)
    # Then
    assert first.status == "live"
    assert first.activation > first.start_activation
    assert ends[0] < ends[1] < ends[2]


def test_pictures_stay_within_0_and_255_for_any_step_size() -> None:
    # Given
    start = np.stack([coefficients(filter_=f, size_px=72) for f in range(2)])
    parametrization = parametrization_of(start)
    layers = network()

    objective = maps_of(lambda pictures: layers[:3](pictures / 127.5 - 1)[:, 1])
    # When
    result = optimise_parametrization(
        objective, parametrization, transforms_of([0, 1], stride=4.0, steps=8), steps=8, learning_rate=5.0
    )
    # Then
    assert result.pictures.shape == (2, 3, 24, 24)
    assert result.pictures.min() >= 0
    assert result.pictures.max() <= 255
    assert result.pictures.std() > 50
    assert result.moved.all()


def shallow() -> nn.Sequential:
    """A stem, and a layer whose map is as large as the stem's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.Softplus(), nn.Conv2d(6, 8, 1))
    return layers.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("model", "layer", "longest_px"),
    [
        (network(), "2", math.inf),
        # The stem has a stride of two pixels, and so has the layer after it, whose waves may have any length.
        (shallow(), "0", longest_wave_px(2.0)),
        (shallow(), "2", math.inf),
    ],
)
def test_the_stored_pixels_are_the_picture_rounded(model: nn.Module, layer: str, longest_px: float) -> None:
    # Given a step that changes no pixel by a grey level
    recipe = RECIPE.model_copy(update={"steps": 1, "step_size": 1e-9})
    # When
    (tile,) = tiles_of(model, [5], recipe, layer)
    # Then
    start = coefficients(seed=1, layer=layer, filter_=5, size_px=32 + 2 * MARGIN_PX)
    wanted = reference_picture(start, spectrum_scale((80, 80), longest_px).astype(np.float64))
    inner = wanted[MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]
    assert tile.pixels.dtype == np.uint8
    assert np.abs(tile.pixels - inner).max() <= 0.51


def test_the_stored_activation_is_that_of_the_stored_pixels() -> None:
    # Given
    model = network()
    # When
    tiles = tiles_of(model, [5, 2])
    # Then
    for tile in tiles:
        fed = torch.from_numpy(tile.pixels.astype(np.float32)).permute(2, 0, 1)[None]
        wanted = float(model[:4](fed / 127.5 - 1)[0, tile.filter].mean())
        assert tile.stored_activation == pytest.approx(wanted, rel=1e-4)
        assert tile.stored_activation == pytest.approx(tile.activation, rel=0.05)


def test_the_same_seed_gives_the_same_pixels_and_another_gives_others() -> None:
    # Given
    model = network()
    # When
    first, again = tiles_of(model, [5, 2]), tiles_of(model, [5, 2])
    (other,) = tiles_of(model, [5], RECIPE.model_copy(update={"seed": 2}))
    # Then
    assert all(np.array_equal(one.pixels, same.pixels) for one, same in zip(first, again, strict=True))
    assert not np.array_equal(first[0].pixels, other.pixels)


def test_the_global_random_generators_are_unchanged() -> None:
    # Given
    model = network()
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    # When
    tiles_of(model, [1])
    # Then
    assert torch.equal(torch.rand(3), wanted)
