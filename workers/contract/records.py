"""Records of tiles and failures. A tile's record is stored as text in its PNG and in the records of its layer.

A reader keeps fields and words that it does not know: a later version may have written them.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from workers.contract.frozen import Frozen
from workers.contract.keys import Name

#: live: the filter is active on the start image, or became active without help. rescued: it was inactive, and the
#: rescue made it active on the final image. dead: it is inactive on every image that was tried.
Status = Literal["live", "rescued", "dead"]

Precision = Literal["fp32", "bf16"]

#: Implementation of the 3 x 3 convolutions: torch's own, or compiled ones where they suit.
Kernels = Literal["torch", "winograd"]


#: A word of a later version is no error.
Word = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,40}$")]


class TileRecord(Frozen):
    """Provenance and measurements of one rendered tile."""

    model_config = ConfigDict(extra="allow")

    job: Name
    layer: Name
    filter: Annotated[int, Field(ge=0)]
    #: name of the unit, such as that of a class; "" if it has none
    name: Annotated[str, Field(exclude_if=lambda name: not name)] = ""
    seed: int
    #: one of Status
    status: Word
    #: objective, by default the mean of the filter's map, on the start image and on the final image; unit of the tap
    start_activation: float
    activation: float
    #: the same on the stored picture of 8 bits per channel
    stored_activation: float
    #: number of gradient steps, of all octaves
    steps: int
    #: number of further start images that were tried
    restarts: Annotated[int, Field(ge=0)]
    #: sum over the batches with this tile, restarts included, of seconds on the device divided by the batch size
    seconds: Annotated[float, Field(ge=0)]
    #: number of attempts at this tile, this one included
    attempts: Annotated[int, Field(ge=1)]
    device: str
    #: one of Precision: that of the network during optimisation; recorded activations are always measured in fp32
    precision: Word = "fp32"
    #: one of Kernels, during optimisation
    kernels: Word = "torch"
    versions: dict[str, str]


class FailureRecord(Frozen):
    """Reason for which a filter has no tile, after the last attempt."""

    job: Name
    layer: Name
    filter: Annotated[int, Field(ge=0)]
    status: Literal["failed"] = "failed"
    reason: str
    attempts: Annotated[int, Field(ge=0)]
