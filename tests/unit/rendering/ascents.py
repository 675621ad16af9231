"""Optimisations made of their parts, for tests of these parts."""

from collections.abc import Callable

import torch

from workers.networks.gradient_override import GradientOverride
from workers.networks.layer_extractor import FilterExtractor
from workers.rendering.objectives import LayerResponse, Objective
from workers.rendering.optimization import notebook_ascent, parametrized_ascent
from workers.rendering.parametrization import Parametrization
from workers.rendering.rescue import AscentLoss, AscentResult
from workers.rendering.transforms import Transforms


def maps_of(maps: Callable[[torch.Tensor], torch.Tensor]) -> Objective:
    """An objective without an activation function: activation and pre-activation are the same maps."""

    def objective(pictures: torch.Tensor, override: GradientOverride | None) -> LayerResponse:
        result = maps(pictures)
        return LayerResponse(activation=result, pre_activation=result)

    return objective


def filter_objective(tap: FilterExtractor) -> Objective:
    """Objective of each picture's own filter, without preprocessing."""

    def objective(pictures: torch.Tensor, override: GradientOverride | None) -> LayerResponse:
        after, before = tap.both(pictures, override)
        return LayerResponse(activation=after, pre_activation=before)

    return objective


def optimise(
    objective: Objective, start: torch.Tensor, *, steps: int, step_size: float = 1.0, rescue: bool = False
) -> AscentResult:
    """The notebook's ascent from ``start``."""
    ascent_loss = AscentLoss(objective, start, rescue=rescue, restarted=False)
    return ascent_loss.result(notebook_ascent(ascent_loss, start, steps=steps, step_size=step_size))


def optimise_parametrization(
    objective: Objective,
    parametrization: Parametrization,
    transforms: Transforms,
    *,
    steps: int,
    learning_rate: float,
    rescue: bool = False,
) -> AscentResult:
    """Lucid's ascent over a parametrization."""
    with torch.no_grad():
        ascent_loss = AscentLoss(objective, parametrization.tiles(), rescue=rescue, restarted=False)
    tiles = parametrized_ascent(ascent_loss, parametrization, transforms, steps=steps, learning_rate=learning_rate)
    with torch.no_grad():
        return ascent_loss.result(tiles)
