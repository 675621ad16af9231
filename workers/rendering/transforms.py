"""The random views a picture is seen from: a small shift, zoom and rotation for each step.

Source: Lucid (github.com/tensorflow/lucid: ``optvis/transform.py``).
"""

import math

import numpy as np
import torch
from torch.nn import functional as F

from workers.contract.geometry import is_shallow, seen_px
from workers.rendering.parametrization import MARGIN_PX
from workers.rendering.rng import Stream

#: Lucid's views in full strength: pixels of jitter to each side, relative scale, degrees of rotation.
_JITTER_PX, _ZOOM, _ROTATION = 8.0, 0.1, 10.0

#: What a stream's numbers are for.
_VIEWS = 2


class Transforms:
    """For each picture and step a small random shift, zoom and rotation, from the picture's own generator.

    ``stride`` is how many times smaller than the picture the layer's map is; ``pinned``: one place of it is looked at;
    ``roomy``: the network takes more than the tile.
    """

    def __init__(
        self, streams: list[Stream], *, steps: int, size_px: tuple[int, int], stride: float, device: torch.device,
        pinned: bool = False, roomy: bool = True,
    ) -> None:  # fmt: skip
        shallow, stride = is_shallow(stride), max(1, round(stride))
        #: height and width of what is seen
        self.view_px = seen_px(size_px, stride, pinned=pinned) if roomy else size_px
        draws = np.stack(
            [stream.generator(_VIEWS).uniform(-1.0, 1.0, (steps, 4)) for stream in streams]
        )  # (B, steps, 4)
        # What has a place in the picture may move by a fraction of its layer's step, and not turn.
        shift_px = draws[..., :2] * (min(_JITTER_PX, stride / 4) if pinned else _JITTER_PX)
        if shallow or pinned:
            # By whole steps: its filters see a pattern as before, and are not taught to bear what their grid tells
            # apart. Nor is anything blurred.
            grid_px = 1 if pinned else stride
            shift_px = grid_px * np.round(shift_px / grid_px)
        turned = 0.0 if shallow or pinned else 1.0
        scale = 1.0 + _ZOOM * turned * draws[..., 2]
        angle = math.radians(_ROTATION) * turned * draws[..., 3]
        cosine, sine = np.cos(angle) / scale, np.sin(angle) / scale
        height, width = (side + 2 * MARGIN_PX for side in size_px)
        view_height, view_width = self.view_px
        # affine_grid counts both pictures, whatever their size, as 2 wide and 2 high.
        theta = np.zeros((*draws.shape[:2], 2, 3), np.float32)
        theta[..., 0, 0], theta[..., 0, 1] = cosine * view_width / width, -sine * view_height / width
        theta[..., 1, 0], theta[..., 1, 1] = sine * view_width / height, cosine * view_height / height
        theta[..., 0, 2], theta[..., 1, 2] = shift_px[..., 0] * 2.0 / width, shift_px[..., 1] * 2.0 / height
        self._theta = torch.from_numpy(theta).to(device)

    def of(self, whole: torch.Tensor, step: int) -> torch.Tensor:
        """What is seen in one step of canvases (B, C, H, W): (B, C, *view_px), mirrored beyond the edges."""
        grid = F.affine_grid(self._theta[:, step], [*whole.shape[:2], *self.view_px], align_corners=False)
        return F.grid_sample(whole, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
