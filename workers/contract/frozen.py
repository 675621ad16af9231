"""The base of all records that are stored or sent."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Immutable, strict JSON record: no unknown fields, no silent conversions, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
