"""Pictures as Fourier coefficients in decorrelated colour, and the random views they are seen from.

Source: Lucid (github.com/tensorflow/lucid: ``optvis/param/spatial.py``, ``color.py``, ``optvis/transform.py``).
"""

import math
import zlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Lucid's ``color_correlation_svd_sqrt``: a root of the covariance of ImageNet's colours; columns are its axes.
_COLOUR = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]], np.float32)

#: Standard deviation of the start coefficients, and what Lucid divides the picture by before the sigmoid.
_START_SD, _SCALE = 0.01, 4.0

#: Layers whose map is this many times smaller than the picture get the views in full strength. Shallower ones look at
#: few pixels, which rotation and scaling only blur.
_FULL_AT_STRIDE = 8.0

#: Canvas beyond the tile on each side: Lucid's jitter, and what a rotation turns in from outside.
MARGIN_PX = 16

#: Lucid's views in full strength: pixels of jitter to each side, relative scale, degrees of rotation.
_JITTER_PX, _ZOOM, _ROTATION = 8.0, 0.1, 10.0


def _generator(*, seed: int, restart: int, layer: str, filter_: int, purpose: int) -> np.random.Generator:
    """A stream of its own for each tile and purpose, drawn on the CPU, so that a tile depends only on its job."""
    entropy = np.random.SeedSequence([seed, restart, filter_, zlib.crc32(layer.encode()), purpose])
    return np.random.Generator(np.random.PCG64(entropy))


def start_coefficients(*, seed: int, restart: int, layer: str, filter_: int, size_px: int) -> "NDArray[np.float32]":
    """Real and imaginary parts, (3, size_px, size_px // 2 + 1, 2) float32, normal with standard deviation 0.01."""
    generator = _generator(seed=seed, restart=restart, layer=layer, filter_=filter_, purpose=1)
    return generator.standard_normal((3, size_px, size_px // 2 + 1, 2), dtype=np.float32) * np.float32(_START_SD)


def longest_wave_px(stride: float) -> float:
    """The longest wave that a layer's pictures are made of; infinite for layers that see enough of a picture.

    A filter of the stem sees a dozen pixels. Longer waves than a few of those tell nothing of it, and would flood the
    tile with one flat colour, because to the mean of its map they count as much as the pattern it looks for.
    """
    return 16.0 * stride if stride < _FULL_AT_STRIDE else math.inf


def pace(stride: float) -> float:
    """What the learning rate is multiplied by: a shallow filter's gradient is the same everywhere and at every step,
    and in full strength would drive every pixel to black or white.
    """
    return math.sqrt(min(1.0, stride / _FULL_AT_STRIDE))


def spectrum_scale(size_px: int, longest_px: float = math.inf) -> "NDArray[np.float32]":
    """What each coefficient is multiplied by, (size_px, size_px // 2 + 1) float32: 1 / frequency, as in photographs.

    Frequencies are in cycles per pixel; the constant term counts as the lowest frequency there is. Waves longer than
    ``longest_px`` fall off instead, with the square of their frequency.
    """
    rows = np.fft.fftfreq(size_px)[:, None]
    columns = np.fft.rfftfreq(size_px)[None, :]
    frequency = np.maximum(np.hypot(rows, columns), 1.0 / size_px)
    scale = 1.0 / frequency * np.where(frequency > 1.0 / size_px, np.minimum(1.0, frequency * longest_px) ** 3, 0.25)
    result: NDArray[np.float32] = scale.astype(np.float32)
    return result


class Canvas:
    """Pictures (B, 3, S, S) in 0..255, made from coefficients that an optimiser moves.

    They are larger than the tiles by ``MARGIN_PX`` on each side, which only the views see: a network's padding
    excites its filters along the edges of what it is fed, and that is cut off.
    """

    def __init__(self, start: "NDArray[np.float32]", *, device: torch.device, longest_px: float) -> None:
        self._size_px = start.shape[2]
        self._scale = torch.from_numpy(spectrum_scale(self._size_px, longest_px)).to(device)
        # Lucid's own normalisation: the longest column of the root has length one.
        colour = _COLOUR / np.linalg.norm(_COLOUR, axis=0).max()
        self._colour = torch.from_numpy(colour).to(device)
        #: (B, 3, S, S // 2 + 1, 2) float32
        self.coefficients = torch.from_numpy(start).to(device).requires_grad_(True)

    def whole(self) -> torch.Tensor:
        """The pictures of the coefficients as they are now, margins and all."""
        spectrum = torch.view_as_complex(self.coefficients) * self._scale
        planes = torch.fft.irfft2(spectrum, s=(self._size_px, self._size_px), norm="ortho") / _SCALE
        colours = torch.einsum("bchw,dc->bdhw", planes, self._colour)
        return torch.sigmoid(colours).contiguous(memory_format=torch.channels_last) * 255.0

    def tiles(self) -> torch.Tensor:
        """The pictures without their margins."""
        return self.whole()[:, :, MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]


class Views:
    """For each picture and step a small random shift, zoom and rotation, from the picture's own generator."""

    def __init__(
        self, *, seed: int, restart: int, layer: str, filters: list[int], steps: int, size_px: int, stride: float,
        device: torch.device,
    ) -> None:  # fmt: skip
        strength = view_strength(stride)
        #: height and width of what is seen: shallow layers, which cost little, are shown some of the margin too, so
        #: that the edge, whose padding excites their filters, is nowhere in the tile
        self.view_px = size_px + 2 * int(_JITTER_PX) if strength < 1.0 else size_px
        draws = np.stack(
            [
                _generator(seed=seed, restart=restart, layer=layer, filter_=filter_, purpose=2).uniform(
                    -1.0, 1.0, (steps, 4)
                )
                for filter_ in filters
            ]
        )  # (B, steps, 4)
        shift_px = _JITTER_PX * draws[..., :2]
        if strength == 0.0:  # whole pixels, which blur nothing
            shift_px = np.round(shift_px)
        canvas_px = size_px + 2 * MARGIN_PX
        zoom = self.view_px / canvas_px / (1.0 + _ZOOM * strength * draws[..., 2])
        angle = math.radians(_ROTATION) * strength * draws[..., 3]
        theta = np.zeros((*draws.shape[:2], 2, 3), np.float32)
        theta[..., 0, 0], theta[..., 0, 1] = np.cos(angle) * zoom, -np.sin(angle) * zoom
        theta[..., 1, 0], theta[..., 1, 1] = np.sin(angle) * zoom, np.cos(angle) * zoom
        theta[..., :, 2] = shift_px * 2.0 / canvas_px  # affine_grid counts a picture as 2 wide
        self._theta = torch.from_numpy(theta).to(device)

    def of(self, whole: torch.Tensor, step: int) -> torch.Tensor:
        """What is seen in one step of canvases (B, 3, S, S): (B, 3, view_px, view_px), mirrored beyond the edges."""
        shape = [len(whole), 3, self.view_px, self.view_px]
        grid = F.affine_grid(self._theta[:, step], shape, align_corners=False)
        return F.grid_sample(whole, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def view_strength(stride: float) -> float:
    """How much of zoom and rotation a layer gets whose map is ``stride`` times smaller than the picture: 0 to 1."""
    return min(1.0, max(0.0, math.log2(stride / 2) / math.log2(_FULL_AT_STRIDE / 2))) if stride > 0 else 1.0
