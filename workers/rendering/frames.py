"""The frames of an animation: the pictures at some steps of an ascent."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from workers.contract.recipe import Recipe
from workers.rendering import images
from workers.rendering.optimization import StepCallback

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class FrameRecorder:
    """Records the frames a recipe asks for, spread evenly over the steps, the last step included."""

    def __init__(
        self, recipe: Recipe, *, steps: int, to_pixels: "Callable[[torch.Tensor], list[NDArray[np.uint8]]]"
    ) -> None:
        self._size_px = recipe.height_px, recipe.width_px
        self._wanted = {round(steps * (frame + 1) / recipe.frames) for frame in range(recipe.frames)}
        self._to_pixels = to_pixels
        self._recorded: list[list[NDArray[np.uint8]]] = []

    def callback(self, steps_before: int) -> StepCallback | None:
        """The step callback of an ascent that follows ``steps_before`` steps; None if the recipe has no frames."""
        if not self._wanted:
            return None

        def record(step: int, pictures: Callable[[], torch.Tensor]) -> None:
            if steps_before + step in self._wanted:
                pixels = self._to_pixels(pictures())
                self._recorded.append([images.resize(one, self._size_px) for one in pixels])

        return record

    def frames(self, final: "list[NDArray[np.uint8]]") -> "list[list[NDArray[np.uint8]]]":
        """The frames of each picture, (H, W, 3) uint8. The last is ``final``: octaves are enlarged otherwise."""
        if self._recorded:
            self._recorded[-1] = final
        return [[frame[place] for frame in self._recorded] for place in range(len(final))]
