"""The result of rendering one tile. Does not import torch: the process that reads tiles does not load it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.contract.records import Kernels, Precision, Status

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One rendered tile, or the reason why there is none."""

    filter: int
    #: (H, W, 3) uint8 RGB; where a tile has several pictures, side by side
    pixels: "NDArray[np.uint8]"
    status: Status
    #: means of the objective's map: on the start image, on the final one, and on ``pixels`` as they are
    start_activation: float
    activation: float
    stored_activation: float
    #: the gradient was not zero in at least one step
    moved: bool = True
    #: the ascent ended with dead or saturated inputs, or one of the tile's pictures did
    saturated: bool = False
    restarts: int = 0
    #: seconds of the batch, divided by its tiles; those of restarts are added
    seconds: float = 0.0
    #: device name, such as "cpu" or "NVIDIA L4"
    device: str = ""
    #: the network's precision during the ascent
    precision: Precision = "fp32"
    #: which convolutions rendered it
    kernels: Kernels = "torch"
    #: pixels at intermediate steps and the end, if the recipe has frames
    frames: "tuple[NDArray[np.uint8], ...]" = ()
    #: reason for failure; empty if the tile is valid
    error: str = ""
