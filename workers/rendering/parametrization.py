"""What an optimiser moves, and the pictures that it makes: Fourier coefficients, their phases alone, or pixels.

All have decorrelated colour, and a margin around the tile that only the views see: a network's padding excites its
filters along the edges of what it is fed, and that is cut off.

Sources: Lucid (github.com/tensorflow/lucid: ``optvis/param/spatial.py``, ``color.py``); for the phases T. Fel et al.,
"Unlocking Feature Visualization for Deeper Networks with MAgnitude Constrained Optimization" (MACO), 2023.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from workers.rendering.rng import Stream

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Lucid's ``color_correlation_svd_sqrt``: a root of the covariance of ImageNet's colours; columns are its axes.
_COLOUR = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]], np.float32)

#: Standard deviation of the start coefficients, and what Lucid divides the picture by before the sigmoid.
_START_SD, _SCALE = 0.01, 4.0

#: How much louder other start images are than the first.
_LOUDER = 20.0

#: Canvas beyond the tile on each side: Lucid's jitter, and what is shown of it to shallow layers or turned in from it.
MARGIN_PX = 24

#: What a stream's numbers are for.
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
        self._colour = torch.from_numpy(colour if start.shape[1] == 3 else grey).to(device)
        #: (B, C, ...) float32, what an optimiser moves
        self.coefficients = torch.from_numpy(start).to(device).requires_grad_(True)

    def whole(self) -> torch.Tensor:
        """The pictures of the coefficients as they are now, margins and all."""
        colours = torch.einsum("bchw,dc->bdhw", self._planes(self.coefficients), self._colour)
        return torch.sigmoid(colours).contiguous(memory_format=torch.channels_last) * 255.0

    def tiles(self) -> torch.Tensor:
        """The pictures without their margins."""
        return self.whole()[:, :, MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]


def fourier_parametrization(
    streams: list[Stream], *, size_px: tuple[int, int], channels: int, longest_px: float, device: torch.device
) -> Parametrization:
    """Real and imaginary parts of Fourier coefficients, (B, C, H, W // 2 + 1, 2), scaled as photographs' are."""
    whole_px = _with_margin(size_px)
    scale = torch.from_numpy(spectrum_scale(whole_px, longest_px)).to(device)

    def planes(coefficients: torch.Tensor) -> torch.Tensor:
        spectrum = torch.view_as_complex(coefficients) * scale
        raw: torch.Tensor = torch.fft.irfft2(spectrum, s=whole_px, norm="ortho")
        return raw / _SCALE

    shape = (channels, whole_px[0], whole_px[1] // 2 + 1, 2)
    return Parametrization(_normal(streams, shape) * _start_sd(streams), planes, device=device)


def phase_parametrization(
    streams: list[Stream], *, size_px: tuple[int, int], channels: int, longest_px: float, device: torch.device
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

    return Parametrization(_normal(streams, (channels, whole_px[0], whole_px[1] // 2 + 1)), planes, device=device)


def pixel_parametrization(
    streams: list[Stream], *, size_px: tuple[int, int], channels: int, longest_px: float, device: torch.device
) -> Parametrization:
    """The pixels themselves, (B, C, H, W): Lucid's parametrisation without ``fft``. No wave is held back."""
    start = _normal(streams, (channels, *_with_margin(size_px))) * _start_sd(streams)
    return Parametrization(start, lambda pixels: pixels, device=device)


#: method -> the canvas it moves
PARAMETRIZATIONS = {"fourier": fourier_parametrization, "maco": phase_parametrization, "pixel": pixel_parametrization}


def longest_wave_px(stride: float) -> float:
    """The longest wave that the stem's pictures are made of; infinite for a stem that sees enough of a picture.

    One of its filters sees a dozen pixels. Longer waves tell nothing of it, and would flood the tile with one flat
    colour, because to the mean of its map they count as much as the pattern it looks for. Layers behind it, of the same
    stride, need them: without, their tiles excite them less, and look alike. (Not where magnitudes are fixed.)
    """
    return max(8.0, 3.0 * stride**2) if stride < 4.0 else math.inf


def pace(stride: float) -> float:
    """What the learning rate is multiplied by: short waves are scaled down the most, and would take the longest."""
    return min(6.0, max(1.5, 12.0 / stride))


def spectrum_scale(size_px: tuple[int, int], longest_px: float = math.inf) -> "NDArray[np.float32]":
    """What each coefficient of a picture (H, W) is multiplied by, (H, W // 2 + 1) float32: 1 / frequency.

    That is how photographs' coefficients fall off. Frequencies are in cycles per pixel; the constant term counts as
    the lowest frequency there is, and both get a quarter of that, which holds back flat tints. Waves longer than
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


def _start_sd(streams: list[Stream]) -> "np.float32":
    """Lucid's, and louder where that has not woken a filter: a picture near grey may be all that it cannot see."""
    return np.float32(_START_SD * (_LOUDER if streams[0].restart else 1.0))


def _normal(streams: list[Stream], shape: tuple[int, ...]) -> "NDArray[np.float32]":
    """(B, *shape), each from its own stream, normal with standard deviation one."""
    return np.stack([stream.generator(_START).standard_normal(shape, dtype=np.float32) for stream in streams])
