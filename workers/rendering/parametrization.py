"""Parametrizations of pictures: Fourier coefficients, their phases alone, or pixels.

All have decorrelated colour, and a margin around the tile that only the transforms use: padding excites filters along
the edges of the input, and the margin is cut off.

Sources: Lucid (github.com/tensorflow/lucid: ``optvis/param/spatial.py``, ``color.py``); for the phases T. Fel et al.,
"Unlocking Feature Visualization for Deeper Networks with MAgnitude Constrained Optimization" (MACO), 2023.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from workers.rendering.rng import PictureRng

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Lucid's ``color_correlation_svd_sqrt``: a root of the covariance of ImageNet's colours; columns are its axes.
_COLOUR = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]], np.float32)

#: Standard deviation of the start coefficients, and what Lucid divides the picture by before the sigmoid.
_START_SD, _SCALE = 0.01, 4.0

#: Amplitude of the start images of restarts, relative to the first.
_RESTART_FACTOR = 20.0

#: Margin beyond the tile on each side: room for Lucid's jitter, the larger inputs of shallow layers, and rotation.
MARGIN_PX = 24

#: The generator's purpose, see PictureRng.
_START = 1


#: Coefficients (B, C, ...) to planes (B, C, H, W) in decorrelated colour, before the sigmoid.
Planes = Callable[[torch.Tensor], torch.Tensor]


class Parametrization:
    """Pictures (B, C, H, W) in 0..255, made from ``coefficients``; larger than the tiles by MARGIN_PX on each side."""

    def __init__(self, start: "NDArray[np.float32]", planes: Planes, *, device: torch.device) -> None:
        self._planes = planes
        # Lucid's own normalisation: the longest column of the root has length one. Grey is the first axis alone.
        colour = _COLOUR / np.linalg.norm(_COLOUR, axis=0).max()
        grey = np.array([[np.linalg.norm(colour[:, 0]) / math.sqrt(3)]], np.float32)
        # Channels that are no colours are independent, each as the grey one.
        own = grey if start.shape[1] == 1 else np.eye(start.shape[1], dtype=np.float32) * grey
        self._colour = torch.from_numpy(colour if start.shape[1] == 3 else own).to(device)
        #: (B, C, ...) float32, the optimised variable
        self.coefficients = torch.from_numpy(start).to(device).requires_grad_(True)

    def whole(self) -> torch.Tensor:
        """The current pictures with their margins, (B, C, H + 2 MARGIN_PX, W + 2 MARGIN_PX) in 0..255."""
        colours = torch.einsum("bchw,dc->bdhw", self._planes(self.coefficients), self._colour)
        return torch.sigmoid(colours).contiguous(memory_format=torch.channels_last) * 255.0

    def tiles(self) -> torch.Tensor:
        """The current pictures without their margins, (B, C, H, W) in 0..255."""
        return self.whole()[:, :, MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]


def fourier_parametrization(
    rngs: list[PictureRng], *, size_px: tuple[int, int], channels: int, longest_px: float, device: torch.device
) -> Parametrization:
    """Real and imaginary parts of Fourier coefficients, (B, C, H, W // 2 + 1, 2), scaled as photographs' are."""
    whole_px = _with_margin(size_px)
    scale = torch.from_numpy(spectrum_scale(whole_px, longest_px)).to(device)

    def planes(coefficients: torch.Tensor) -> torch.Tensor:
        spectrum = torch.view_as_complex(coefficients) * scale
        raw: torch.Tensor = torch.fft.irfft2(spectrum, s=whole_px, norm="ortho")
        return raw / _SCALE

    shape = (channels, whole_px[0], whole_px[1] // 2 + 1, 2)
    return Parametrization(_normal(rngs, shape) * _start_sd(rngs), planes, device=device)


def phase_parametrization(
    rngs: list[PictureRng], *, size_px: tuple[int, int], channels: int, longest_px: float, device: torch.device
) -> Parametrization:
    """Phases, (B, C, H, W // 2 + 1) in radians, of Fourier coefficients whose magnitudes are fixed.

    The magnitudes are 1 / frequency, the law that the mean spectrum of photographs follows; the paper takes the
    measured mean of ImageNet, which is a download. Each picture is standardised, as there.
    """
    whole_px = _with_margin(size_px)
    scale = spectrum_scale(whole_px, longest_px)
    scale[0, 0] = 0.0  # the mean, which is standardised away
    magnitude = torch.from_numpy(scale).to(device)

    def planes(phases: torch.Tensor) -> torch.Tensor:
        raw: torch.Tensor = torch.fft.irfft2(torch.polar(magnitude.expand_as(phases), phases), s=whole_px, norm="ortho")
        return raw / raw.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()

    return Parametrization(_normal(rngs, (channels, whole_px[0], whole_px[1] // 2 + 1)), planes, device=device)


def pixel_parametrization(
    rngs: list[PictureRng], *, size_px: tuple[int, int], channels: int, longest_px: float, device: torch.device
) -> Parametrization:
    """The pixels themselves, (B, C, H, W): Lucid's parametrisation without ``fft``. No frequency is scaled."""
    start = _normal(rngs, (channels, *_with_margin(size_px))) * _start_sd(rngs)
    return Parametrization(start, lambda pixels: pixels, device=device)


#: method -> its parametrization
PARAMETRIZATIONS = {"fourier": fourier_parametrization, "maco": phase_parametrization, "pixel": pixel_parametrization}


def longest_wave_px(stride: float) -> float:
    """Longest wavelength in pictures of the stem, in pixels; infinite from a stride of 4.

    A stem filter has a field of view of a dozen pixels. Longer waves would fill the tile with one flat colour, because
    they raise the mean of the map as much as the filter's pattern does. Later layers of the same stride need them:
    without, their tiles excite them less and look alike. (Not where magnitudes are fixed.)
    """
    return max(8.0, 3.0 * stride**2) if stride < 4.0 else math.inf


def learning_rate_factor(stride: float) -> float:
    """Factor of the learning rate, 1.5..6: short waves are scaled down the most and would converge slowest."""
    return min(6.0, max(1.5, 12.0 / stride))


def spectrum_scale(size_px: tuple[int, int], longest_px: float = math.inf) -> "NDArray[np.float32]":
    """Scale of each Fourier coefficient of a picture (H, W), as (H, W // 2 + 1) float32: 1 / frequency.

    The coefficients of photographs fall off likewise. Frequencies are in cycles per pixel; the constant term counts as
    the lowest frequency, and both get a quarter of their scale, which suppresses flat tints. Waves longer than
    ``longest_px`` are left out.
    """
    rows = np.fft.fftfreq(size_px[0])[:, None]
    columns = np.fft.rfftfreq(size_px[1])[None, :]
    lowest = 1.0 / max(size_px)
    frequency = np.maximum(np.hypot(rows, columns), lowest)
    scale = np.where(frequency > lowest, 1.0, 0.25) / frequency * (frequency * longest_px >= 1.0)
    result: NDArray[np.float32] = scale.astype(np.float32)
    return result


def _with_margin(size_px: tuple[int, int]) -> tuple[int, int]:
    return size_px[0] + 2 * MARGIN_PX, size_px[1] + 2 * MARGIN_PX


def _start_sd(rngs: list[PictureRng]) -> "np.float32":
    """Lucid's, larger in restarts: the filter may be dead only for pictures near grey."""
    return np.float32(_START_SD * (_RESTART_FACTOR if rngs[0].restart else 1.0))


def _normal(rngs: list[PictureRng], shape: tuple[int, ...]) -> "NDArray[np.float32]":
    """(B, *shape), each from its own generator, normal with standard deviation one."""
    return np.stack([rng.generator(_START).standard_normal(shape, dtype=np.float32) for rng in rngs])
