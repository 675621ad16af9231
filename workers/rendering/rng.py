"""Random numbers of a picture, drawn on the CPU from its own generator, so that a tile depends only on its job.

CUDA's generators differ between GPU models; NumPy's PCG64 is the same everywhere.
"""

import zlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class PictureRng:
    """Seeds the random generators of one picture."""

    seed: int
    #: index of the start image: 0 is the first, more are restarts
    restart: int
    layer: str
    filter: int
    #: index of the picture in its tile
    variant: int = 0

    def generator(self, *purpose: int) -> np.random.Generator:
        """An independent generator for each picture and purpose; without a purpose, for the notebook's start noise."""
        entropy = [self.seed, self.restart, self.filter, zlib.crc32(self.layer.encode()), *purpose]
        if self.variant:
            entropy.append(1_000 + self.variant)  # beyond all purposes
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))
