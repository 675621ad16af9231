"""An ascent from its parts, for tests of the parts."""

from collections.abc import Callable

import torch

from workers.networks.gradient_override import GradientOverride
from workers.networks.layer_extractor import FilterExtractor
from workers.rendering.objectives import Objective, Seen
from workers.rendering.optimization import Climbed, Watch, canvas_ascent, notebook_ascent
from workers.rendering.parametrization import Parametrization
from workers.rendering.transforms import Transforms


def maps_of(maps: Callable[[torch.Tensor], torch.Tensor]) -> Objective:
    """An objective without an activation function: its maps are what they were before it, leaky or not."""

    def objective(pictures: torch.Tensor, leak: GradientOverride | None) -> Seen:
        result = maps(pictures)
        return Seen(after=result, before=result)

    return objective


def seen_by(tap: FilterExtractor) -> Objective:
    """Each picture's own filter, of pictures that go into the network as they are."""

    def objective(pictures: torch.Tensor, leak: GradientOverride | None) -> Seen:
        after, before = tap.both(pictures, leak)
        return Seen(after=after, before=before)

    return objective


def climb(
    objective: Objective, start: torch.Tensor, *, steps: int, step_size: float = 1.0, rescue: bool = False
) -> Climbed:
    """The notebook's ascent from ``start``."""
    watch = Watch(objective, start, rescue=rescue, anew=False)
    return watch.climbed(notebook_ascent(watch, start, steps=steps, step_size=step_size))


def climb_canvas(
    objective: Objective,
    canvas: Parametrization,
    views: Transforms,
    *,
    steps: int,
    learning_rate: float,
    rescue: bool = False,
) -> Climbed:
    """Lucid's ascent over a canvas."""
    with torch.no_grad():
        watch = Watch(objective, canvas.tiles(), rescue=rescue, anew=False)
    tiles = canvas_ascent(watch, canvas, views, steps=steps, learning_rate=learning_rate)
    with torch.no_grad():
        return watch.climbed(tiles)
