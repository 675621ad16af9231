"""What is known of one tile beside its pixels: its provenance, kept as PNG text and in the layer's records."""

from typing import Annotated, Literal

from pydantic import Field

from workers.contract.job import Frozen
from workers.contract.keys import Name

#: live: the filter answered and was climbed. dead: its gradient was zero from the first step to the last, so the
#: picture is still the start noise.
Status = Literal["live", "dead"]


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
    steps: int
    #: device seconds of the batch the tile was rendered in, divided by the tiles in it
    seconds: Annotated[float, Field(ge=0)]
    #: how often rendering was begun for this tile, this time included
    attempts: Annotated[int, Field(ge=1)]
    device: str
    versions: dict[str, str]


class FailureRecord(Frozen):
    """Why a filter has no tile, after its last attempt."""

    job: Name
    layer: Name
    filter: Annotated[int, Field(ge=0)]
    status: Literal["failed"] = "failed"
    reason: str
    attempts: Annotated[int, Field(ge=0)]
