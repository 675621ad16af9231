"""The job options as a person gives them, before they are checked."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Options:
    """The job options of the command line, unchecked."""

    model: str
    weights: str | None = None
    layers: str = "all"
    filters: str = "all"
    preset: str | None = None
    #: None: what the preset or else the method takes
    method: str | None = None
    objective: str = "filter"
    negative: bool = False
    #: row,column
    neuron: str | None = None
    directions: Path | None = None
    diversity: int = 1
    preprocess: str = "auto"
    #: pixels: "150", or height x width as in "96x160"
    size: str | None = None
    grey: bool = False
    steps: int | None = None
    step_size: float | None = None
    octaves: int | None = None
    octave_scale: float | None = None
    total_variation: float = 0.0
    l2: float = 0.0
    blur: float = 0.0
    frames: int = 0
    seed: int = 0
    rescue: bool = True
    tap: str = "activation"
    precision: str = "auto"
    grid: str = "auto"
    margin_px: int = 5
