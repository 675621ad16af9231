"""What the renderer's process hands back. Needs no torch, so that the process that reads it does not load it."""

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
    #: means of what is climbed: on the start image, on the final one, and on ``pixels`` as they are
    start_activation: float
    activation: float
    stored_activation: float
    #: the ascent moved the picture at all
    moved: bool = True
    #: the ascent ended where nothing that the filter sees changes any more; or so did one of the tile's pictures
    stuck: bool = False
    restarts: int = 0
    #: seconds of the batch, divided by its tiles; those of restarts are added
    seconds: float = 0.0
    #: what it was rendered on, such as "cpu" or "NVIDIA L4"
    device: str = ""
    #: what the network computed in while the picture climbed
    precision: Precision = "fp32"
    #: which convolutions rendered it
    kernels: Kernels = "torch"
    #: the same pixels on the way there, where the recipe asks for frames
    frames: "tuple[NDArray[np.uint8], ...]" = ()
    #: why the tile cannot be shown; empty for a good one
    error: str = ""
