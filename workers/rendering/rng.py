"""Random numbers of a tile: drawn on the CPU, from a stream of its own, so that a tile depends on nothing but its job.

CUDA's generators differ between GPU models; NumPy's PCG64 is the same everywhere.
"""

import zlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Where the random numbers of one picture come from."""

    seed: int
    #: which start image: the first, or another after that did not wake the filter
    restart: int
    layer: str
    filter: int
    #: which of a tile's pictures
    variant: int = 0

    def generator(self, *purpose: int) -> np.random.Generator:
        """A generator of its own for each picture and purpose; no purpose is the notebook's start noise."""
        entropy = [self.seed, self.restart, self.filter, zlib.crc32(self.layer.encode()), *purpose]
        if self.variant:
            entropy.append(1_000 + self.variant)  # beyond all purposes
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))
