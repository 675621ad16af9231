"""Gradient ascent: it increases the objective, and the pictures of a batch do not influence each other."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.unit.rendering.ascents import maps_of, optimise
from workers.rendering.objectives import LayerResponse, Objective
from workers.rendering.optimization import parametrized_ascent
from workers.rendering.rescue import AscentLoss


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Softplus(), nn.Conv2d(6, 4, 3))
    return layers.eval().requires_grad_(False)


def start(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 20 + 128


def test_the_activation_increases_with_every_step() -> None:
    # Given
    layers, pictures = network(), start(2)
    # When
    ends = [
        optimise(maps_of(lambda x: layers(x)[:, 1]), pictures, steps=steps, step_size=1.0).activation
        for steps in range(6)
    ]
    # Then
    for earlier, later in zip(ends, ends[1:], strict=False):
        assert (later > earlier).all()


def test_zero_steps_return_the_start_image() -> None:
    # Given
    layers, pictures = network(), start(2)
    # When
    result = optimise(maps_of(lambda x: layers(x)[:, 1]), pictures, steps=0, step_size=1.0)
    # Then
    assert torch.equal(result.pictures, pictures)
    assert torch.equal(result.start_activation, result.activation)
    assert not result.moved.any()


def test_a_step_changes_a_picture_by_the_step_size_in_rms() -> None:
    # Given
    layers, pictures = network(), start(3)
    # When
    result = optimise(maps_of(lambda x: layers(x)[:, 1] * 100), pictures, steps=1, step_size=2.5)
    # Then
    moved_by = (result.pictures - pictures).square().mean(dim=(1, 2, 3)).sqrt()
    torch.testing.assert_close(moved_by, torch.full((3,), 2.5), rtol=1e-3, atol=0)
    assert result.moved.all()


def test_a_linear_objective_gives_the_step_written_out_by_hand() -> None:
    # Given an objective whose gradient is 3, 4 and 0 in the three channels of a single pixel
    slope = torch.tensor([3.0, 4.0, 0.0]).view(1, 3, 1, 1)
    pictures = torch.full((1, 3, 1, 1), 128.0)
    # When
    result = optimise(maps_of(lambda x: (x * slope).sum(1)), pictures, steps=2, step_size=1.0)
    # Then each step is the gradient divided by its RMS, sqrt(25 / 3)
    rms = (25 / 3) ** 0.5
    assert result.pictures.flatten().tolist() == pytest.approx([128 + 2 * 3 / rms, 128 + 2 * 4 / rms, 128], rel=1e-6)
    assert result.start_activation.item() == pytest.approx(7 * 128)
    assert result.activation.item() == pytest.approx(7 * 128 + 2 * 25 / rms, rel=1e-6)


def test_the_start_image_is_not_changed_in_place() -> None:
    # Given
    layers, pictures = network(), start(2)
    before = pictures.clone()
    # When
    optimise(maps_of(lambda x: layers(x)[:, 1]), pictures, steps=3, step_size=1.0)
    # Then
    assert torch.equal(pictures, before)


def test_a_batch_of_eight_equals_eight_batches_of_one() -> None:
    # Given
    layers, pictures = network().double(), start(8).double()
    # When
    together = optimise(maps_of(lambda x: layers(x)[:, 2]), pictures, steps=10, step_size=1.0)
    alone = [optimise(maps_of(lambda x: layers(x)[:, 2]), p[None], steps=10, step_size=1.0) for p in pictures]
    # Then
    torch.testing.assert_close(together.pictures, torch.cat([a.pictures for a in alone]), rtol=0, atol=1e-8)
    torch.testing.assert_close(together.activation, torch.cat([a.activation for a in alone]))
    torch.testing.assert_close(together.start_activation, torch.cat([a.start_activation for a in alone]))


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_scaling_one_pictures_loss_changes_nothing_for_the_others(scale: float) -> None:
    # Given
    layers, pictures = network(), start(3)
    factors = torch.tensor([1.0, scale, 1.0]).view(3, 1, 1)
    # When
    plain = optimise(maps_of(lambda x: layers(x)[:, 1]), pictures, steps=5, step_size=1.0)
    scaled = optimise(maps_of(lambda x: layers(x)[:, 1] * factors), pictures, steps=5, step_size=1.0)
    # Then
    for others in (0, 2):
        assert torch.equal(plain.pictures[others], scaled.pictures[others])


def test_scaling_one_pictures_loss_hardly_changes_its_own_path() -> None:
    # Given
    layers, pictures = network().double(), start(2).double()
    factors = torch.tensor([1.0, 1e4], dtype=torch.float64).view(2, 1, 1)
    # When
    plain = optimise(maps_of(lambda x: layers(x)[:, 1] * 1e6), pictures, steps=5, step_size=1.0)
    scaled = optimise(maps_of(lambda x: layers(x)[:, 1] * factors * 1e6), pictures, steps=5, step_size=1.0)
    # Then the only difference is the 1e-5 that is added to the RMS of the gradient
    torch.testing.assert_close(plain.pictures, scaled.pictures, rtol=0, atol=1e-4)


def test_a_picture_of_zero_gradient_is_unchanged_and_affects_no_other() -> None:
    # Given
    layers, pictures = network(), start(2)
    factors = torch.tensor([0.0, 1.0]).view(2, 1, 1)
    # When
    result = optimise(maps_of(lambda x: layers(x)[:, 1] * factors), pictures, steps=4, step_size=1.0)
    # Then
    assert result.moved.tolist() == [False, True]
    assert torch.equal(result.pictures[0], pictures[0])
    assert not torch.equal(result.pictures[1], pictures[1])


def test_channels_last_pictures_stay_channels_last() -> None:
    # Given
    layers = network()
    pictures = start(2).contiguous(memory_format=torch.channels_last)
    # When
    result = optimise(maps_of(lambda x: layers(x)[:, 1]), pictures, steps=1, step_size=1.0)
    # Then
    assert result.pictures.is_contiguous(memory_format=torch.channels_last)


class Plain:
    """A parametrization whose coefficients are the picture."""

    def __init__(self, coefficients: torch.Tensor) -> None:
        self.coefficients = coefficients.requires_grad_(True)

    def whole(self) -> torch.Tensor:
        return self.coefficients * 1.0

    def tiles(self) -> torch.Tensor:
        return self.whole()


class Framed(Plain):
    """A parametrization with margins of one pixel."""

    def tiles(self) -> torch.Tensor:
        return self.whole()[:, :, 1:-1, 1:-1]


class Identity:
    """Transforms that return the whole parametrization in each step."""

    def apply(self, whole: torch.Tensor, step: int) -> torch.Tensor:
        return whole


class RecordingLoss(AscentLoss):
    """Records the weight of the early terms and the width of the picture in each step."""

    def __init__(self, objective: Objective, start: torch.Tensor) -> None:
        super().__init__(objective, start, rescue=True, restarted=False, map_only=False)
        self.early: list[float] = []
        self.widths_px: list[int] = []

    def loss(self, pictures: torch.Tensor, *, early: float = 0.0) -> torch.Tensor:
        self.early.append(early)
        self.widths_px.append(pictures.shape[3])
        return super().loss(pictures, early=early)


def test_a_parametrization_is_optimised_by_adam_with_a_lower_rate_and_no_early_terms_in_the_last_quarter() -> None:
    # Given a quadratic objective whose gradient changes its sign, with a curvature 100 times as large in one direction
    top, steepness = np.array([0.2, -0.1, 3.0]), np.array([1.0, 100.0, 1.0])
    row = torch.tensor(steepness, dtype=torch.float32)[None, :, None, None]
    summit = torch.tensor(top, dtype=torch.float32)[None, :, None, None]
    parametrization = Plain(torch.zeros(1, 3, 1, 1))
    objective = maps_of(lambda x: -(row * (x - summit).square()).sum(1))
    ascent_loss = RecordingLoss(objective, parametrization.tiles().detach())
    # When
    end = parametrized_ascent(ascent_loss, parametrization, Identity(), steps=8, learning_rate=0.1)  # type: ignore[arg-type]  # has the one method that is used
    # Then the result is Adam's (D. Kingma and J. Ba, 2015, algorithm 1), with decay rates of 0.5 and 0.95
    place, mean, square = np.zeros(3), np.zeros(3), np.zeros(3)
    for step, rate in enumerate([0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.05], start=1):
        gradient = -2 * steepness * (place - top)
        mean, square = 0.5 * mean + 0.5 * gradient, 0.95 * square + 0.05 * gradient**2
        place = place + rate * (mean / (1 - 0.5**step)) / (np.sqrt(square / (1 - 0.95**step)) + 1e-8)
    assert end.flatten().tolist() == pytest.approx(place.tolist(), rel=1e-5)
    # And the early terms end after six of eight steps
    assert ascent_loss.early == pytest.approx([math.sqrt(1 - step / 6) for step in range(6)] + [0.0, 0.0])


def test_every_second_one_of_the_last_steps_uses_the_tile_itself() -> None:
    # Given
    parametrization = Framed(torch.zeros(1, 3, 5, 5))
    ascent_loss = RecordingLoss(maps_of(lambda x: x.sum(1)), parametrization.tiles().detach())
    # When
    parametrized_ascent(ascent_loss, parametrization, Identity(), steps=16, learning_rate=0.1)  # type: ignore[arg-type]  # has the one method that is used
    # Then
    assert ascent_loss.widths_px == [5] * 12 + [5, 3, 5, 3]
    # And the last one has no gradient in the margins
    assert parametrization.coefficients.grad is not None
    assert torch.equal(parametrization.coefficients.grad[0, 0] != 0, F.pad(torch.ones(3, 3), (1, 1, 1, 1)) > 0)


def test_inactive_and_saturated_units_count_in_early_steps_alone() -> None:
    # Given a picture half of whose units are inactive, and one half of whose units are saturated
    before = torch.tensor([[[-4.0, 1.0]], [[2.0, 10.0]]])
    seen = LayerResponse(activation=before.clamp(0, 6), pre_activation=before)
    ascent_loss = AscentLoss(lambda *_: seen, torch.zeros(2, 3, 4, 4), rescue=True, restarted=False, map_only=False)
    # When
    early, middle, late = (ascent_loss.loss(torch.zeros(2, 3, 4, 4), early=weight) for weight in (1.0, 0.5, 0.0))
    # Then
    assert early.tolist() == [-1.5, 6.0]
    assert middle.tolist() == [-0.5, 5.0]
    assert late.tolist() == [0.5, 4.0]


def test_after_a_restart_contrast_is_an_early_term_and_finite_without_contrast() -> None:
    # Given a map with contrast, and one without
    before = torch.tensor([[[1.0, 3.0]], [[2.0, 2.0]]], requires_grad=True)
    ascent_loss = AscentLoss(
        lambda *_: LayerResponse(activation=before, pre_activation=before),
        torch.zeros(2, 3, 4, 4),
        rescue=True,
        restarted=True,
        map_only=False,
    )
    # When
    loss = ascent_loss.loss(torch.zeros(2, 3, 4, 4), early=1.0)
    (gradient,) = torch.autograd.grad(loss.sum(), before)
    # Then it has three times the weight of the mean, and the gradient is finite
    torch.testing.assert_close(loss, torch.tensor([5.0, 2.0]), rtol=1e-4, atol=1e-4)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("before", "strict", "saturated"),
    [
        ([[0.5, 0.5, 0.5, 0.7]], False, True),
        ([[0.5, 0.5, 0.6, 0.7]], False, False),
        ([[0.5]], False, False),
        ([[0.5, 0.5, 0.5, 0.7]], True, False),
    ],
)
def test_a_picture_is_saturated_if_most_of_its_map_has_one_value(
    before: list[list[float]], *, strict: bool, saturated: bool
) -> None:
    # Given / When
    seen = LayerResponse(activation=torch.tensor([before]), pre_activation=torch.tensor([before]))
    ascent_loss = AscentLoss(lambda *_: seen, torch.zeros(1, 3, 4, 4), rescue=True, restarted=False, map_only=strict)
    # Then not by a single unit, and not without rescue
    assert ascent_loss.result(torch.zeros(1, 3, 4, 4)).saturated.tolist() == [saturated]
