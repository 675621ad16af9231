"""Descriptors of pictures, whose cosine tells how alike two tiles of a layer are. No network is needed.

A tile is a texture: the same pattern at another place is as good. So the descriptor holds amplitudes of the Fourier
transform, which a shift does not change, and colours: for each of three opponent colour channels the amplitude in
5 rings of an octave each (from 2 to 64 px a period in a thumbnail of 64 px) and 4 orientations, as logarithm; the mean
of each channel; and the logarithm of the deviation of all three. Over the layer, each of these 64 numbers is
standardised (a mean of 0, a deviation of 1), so that what is common to all tiles does not count.

There is no window before the transform: of 100 oriented textures, another part of the same one was the most similar
for 99 with and without one, and a cyclic shift changes nothing only without.
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_RINGS, _ORIENTATIONS = 5, 4

#: Numbers in one descriptor.
SIZE = 3 * _RINGS * _ORIENTATIONS + 4

#: Opponent colours of RGB: brightness, red against green, blue against yellow. Orthonormal.
_OPPONENT = np.array(
    [[3**-0.5, 3**-0.5, 3**-0.5], [2**-0.5, -(2**-0.5), 0.0], [-(6**-0.5), -(6**-0.5), 2 * 6**-0.5]], np.float32
)

#: Added before a logarithm: about one grey value in 255.
_FLOOR = 0.004


def features(thumbnail: "NDArray[np.uint8]") -> "NDArray[np.float32]":
    """The SIZE numbers of one thumbnail, (H, W, 3) uint8 RGB, before they are standardised."""
    height, width = thumbnail.shape[:2]
    planes = np.moveaxis(thumbnail.astype(np.float32) / 255 @ _OPPONENT.T, -1, 0)  # (3, H, W)
    means = planes.mean(axis=(1, 2))
    planes = planes - means[:, None, None]
    power = np.abs(np.fft.rfft2(planes)).reshape(3, -1) ** 2 / (height * width)
    pooled = np.sqrt(power @ _pools(height, width))  # (3, rings * orientations)
    deviation = planes.std()
    return np.concatenate([np.log(pooled + _FLOOR).ravel(), means, [np.log(deviation + _FLOOR)]]).astype(np.float32)


def descriptors(rows: "Sequence[NDArray[np.float32] | None]") -> "NDArray[np.int8]":
    """One descriptor per entry, (count, SIZE) int8, from the ``features`` of a layer's tiles; zeros for None.

    Each has a length of about 127: the dot product of two, divided by 127 squared, is their cosine.
    """
    found = np.zeros((len(rows), SIZE), np.int8)
    present = [place for place, row in enumerate(rows) if row is not None]
    if present:
        values = np.stack([row for row in rows if row is not None])
        # A deviation below the floor is that of the compression and of rounding.
        values = (values - values.mean(axis=0)) / np.maximum(values.std(axis=0), _FLOOR)
        lengths = np.linalg.norm(values, axis=1, keepdims=True)
        found[present] = np.rint(127 * values / np.maximum(lengths, 1e-6)).astype(np.int8)
    return found


@functools.lru_cache(maxsize=8)
def _pools(height: int, width: int) -> "NDArray[np.float32]":
    """Which coefficients of rfft2 each pool averages: (coefficients, rings * orientations), columns of sum 1 or 0."""
    down, right = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    frequency = np.maximum(np.hypot(down, right), 1e-9)
    # Rings of an octave below the Nyquist frequency of 1/2; the corners belong to the outermost.
    ring = np.clip(np.floor(np.log2(0.5 / frequency)), 0, _RINGS - 1).astype(int)
    # Orientations are the same turned by half, and the first is centred on 0.
    angle = np.arctan2(down, right) / np.pi * _ORIENTATIONS
    orientation = np.rint(angle).astype(int) % _ORIENTATIONS
    pool = np.where(frequency > 1e-6, ring * _ORIENTATIONS + orientation, -1)
    member = pool.reshape(-1, 1) == np.arange(_RINGS * _ORIENTATIONS)
    weights: NDArray[np.float32] = (member / np.maximum(member.sum(axis=0), 1)).astype(np.float32)
    return weights
