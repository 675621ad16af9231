"""Directions in the space of a layer's channels, as a job stores them."""

from base64 import b64decode
from typing import Annotated

from pydantic import Field, model_validator

from workers.contract.frozen import Frozen

#: Largest number of values in a job's directions, which are part of job.json.
MAX_NUMBERS = 1_000_000


class Directions(Frozen):
    """Directions in the space of a layer's channels, one tile each: little-endian float32 (count, channels)."""

    count: Annotated[int, Field(ge=1, le=MAX_NUMBERS)]
    channels: Annotated[int, Field(ge=1, le=MAX_NUMBERS)]
    base64: str

    @model_validator(mode="after")
    def _are_all_there(self) -> "Directions":
        if self.count * self.channels > MAX_NUMBERS:
            raise ValueError(f"{self.count} directions of {self.channels} channels are more than {MAX_NUMBERS} numbers")
        if len(b64decode(self.base64, validate=True)) != 4 * self.count * self.channels:
            raise ValueError(f"the data is not as long as {self.count} directions of {self.channels} channels")
        return self
