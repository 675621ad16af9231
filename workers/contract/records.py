"""What is known of one tile beside its pixels: its provenance, kept as PNG text and in the layer's records."""

from typing import Annotated, Literal

from pydantic import Field

from workers.contract.keys import Name
from workers.contract.recipe import Frozen

#: live: the filter answered to the start image, or by itself to a later one. rescued: it had to be helped, and answers
#: to the final image. dead: it answers to nothing that was tried.
Status = Literal["live", "rescued", "dead"]

Precision = Literal["fp32", "bf16"]

#: Implementation of the 3 x 3 convolutions: torch's own, or compiled ones where they suit.
Kernels = Literal["torch", "winograd"]


class TileRecord(Frozen):
    """Provenance of one rendered tile."""

    job: Name
    layer: Name
    filter: Annotated[int, Field(ge=0)]
    seed: int
    status: Status
    #: mean of the filter's map on the start image and on the final image, in the units of the tap
    start_activation: float
    activation: float
    #: the same on the stored picture itself, 8 bits and all, read back
    stored_activation: float
    #: gradient steps from its start image on, of all octaves
    steps: int
    #: how many other start images were tried
    restarts: Annotated[int, Field(ge=0)]
    #: device seconds of the batches the tile was rendered in, divided by the tiles in each; restarts count
    seconds: Annotated[float, Field(ge=0)]
    #: how often rendering was begun for this tile, this time included
    attempts: Annotated[int, Field(ge=1)]
    device: str
    #: what the network computed in while the picture climbed; activations are evaluated in fp32 either way
    precision: Precision = "fp32"
    #: which convolutions rendered the tile
    kernels: Kernels = "torch"
    versions: dict[str, str]


class FailureRecord(Frozen):
    """Why a filter has no tile, after its last attempt."""

    job: Name
    layer: Name
    filter: Annotated[int, Field(ge=0)]
    status: Literal["failed"] = "failed"
    reason: str
    attempts: Annotated[int, Field(ge=0)]
