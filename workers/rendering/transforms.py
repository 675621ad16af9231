"""Random transforms: a small shift, zoom and rotation of the picture in each step.

Source: Lucid (github.com/tensorflow/lucid: ``optvis/transform.py``).
"""

import math

import numpy as np
import torch
from torch.nn import functional as F

from workers.contract.geometry import is_shallow, seen_px
from workers.rendering.parametrization import MARGIN_PX
from workers.rendering.rng import PictureRng

#: Lucid's transforms at full strength: pixels of jitter to each side, relative scale, degrees of rotation.
_JITTER_PX, _ZOOM, _ROTATION = 8.0, 0.1, 10.0

#: The generator's purpose, see PictureRng.
_TRANSFORMS = 2


class Transforms:
    """For each picture and step a small random shift, zoom and rotation, from the picture's own generator.

    ``stride`` is the picture's size over that of the layer's map. ``pinned``: the objective reads one position of the
    map. ``larger_input``: the network accepts inputs larger than the tile.
    """

    def __init__(
        self, rngs: list[PictureRng], *, steps: int, size_px: tuple[int, int], stride: float, device: torch.device,
        pinned: bool = False, larger_input: bool = True,
    ) -> None:  # fmt: skip
        shallow, stride = is_shallow(stride), max(1, round(stride))
        #: height and width of the transformed pictures
        self.output_px = seen_px(size_px, stride, pinned=pinned) if larger_input else size_px
        draws = np.stack([rng.generator(_TRANSFORMS).uniform(-1.0, 1.0, (steps, 4)) for rng in rngs])  # (B, steps, 4)
        # An objective at one position is jittered by a fraction of the layer's stride, and not rotated.
        shift_px = draws[..., :2] * (min(_JITTER_PX, stride / 4) if pinned else _JITTER_PX)
        if shallow or pinned:
            # Jitters by multiples of the layer's stride: the sampling grid is unchanged and nothing is interpolated.
            grid_px = 1 if pinned else stride
            shift_px = grid_px * np.round(shift_px / grid_px)
        turned = 0.0 if shallow or pinned else 1.0
        scale = 1.0 + _ZOOM * turned * draws[..., 2]
        angle = math.radians(_ROTATION) * turned * draws[..., 3]
        cosine, sine = np.cos(angle) / scale, np.sin(angle) / scale
        height, width = (side + 2 * MARGIN_PX for side in size_px)
        output_height, output_width = self.output_px
        # affine_grid's coordinates are -1..1 in both pictures, whatever their size.
        theta = np.zeros((*draws.shape[:2], 2, 3), np.float32)
        theta[..., 0, 0], theta[..., 0, 1] = cosine * output_width / width, -sine * output_height / width
        theta[..., 1, 0], theta[..., 1, 1] = sine * output_width / height, cosine * output_height / height
        theta[..., 0, 2], theta[..., 1, 2] = shift_px[..., 0] * 2.0 / width, shift_px[..., 1] * 2.0 / height
        self._theta = torch.from_numpy(theta).to(device)

    def apply(self, whole: torch.Tensor, step: int) -> torch.Tensor:
        """Transform pictures with margins (B, C, H, W) for one step: (B, C, *output_px), mirrored beyond the edges."""
        grid = F.affine_grid(self._theta[:, step], [*whole.shape[:2], *self.output_px], align_corners=False)
        return F.grid_sample(whole, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
