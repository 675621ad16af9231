"""The recipe: everything that decides how a picture is made, checked when made or decoded."""

from base64 import b64decode
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

#: Larger pictures than this are a slip of the keyboard: one start image would be 200 MB.
MAX_SIZE_PX = 4096

#: What the format of animations can hold.
MAX_FRAME_PX = 16_383

#: Smaller ones show nothing.
MIN_SIZE_PX = 8


class Frozen(BaseModel):
    """Immutable, strict JSON record: no unknown fields, no silent conversions, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Preprocess(Frozen):
    """What the network is fed: (x / 255 - mean) / std per colour channel of a picture x in 0..255; ``raw`` feeds x."""

    name: Literal["raw", "imagenet", "model"]
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1 / 255, 1 / 255, 1 / 255)


#: Most numbers in a job's directions: they are part of job.json, which is read as a whole.
MAX_NUMBERS = 1_000_000

#: Black pixels between the pictures of one tile, where it has several.
GAP_PX = 2

Size = Annotated[int, Field(ge=MIN_SIZE_PX, le=MAX_SIZE_PX)]
Strength = Annotated[float, Field(ge=0, le=1000)]


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
            raise ValueError(f"that is not {self.count} directions of {self.channels} channels")
        return self


class Recipe(Frozen):
    """How a picture is made; every tile of a job is made the same way."""

    #: notebook: Chollet's "visualizing convnet filters", to the letter. fourier: Lucid's, in decorrelated colour.
    #: maco: only the phases of the Fourier coefficients move. pixel: as fourier, but each pixel for itself
    method: Literal["notebook", "fourier", "maco", "pixel"] = "notebook"
    #: what is maximised. filter: the mean of its map. neuron: one place of that map. direction: the mean of a weighted
    #: sum of the layer's maps. deepdream: the mean square of all of the layer's maps
    objective: Literal["filter", "neuron", "direction", "deepdream"] = "filter"
    #: minimise it instead, before the activation function, behind which there is nothing to minimise
    negative: bool = False
    #: row and column of the neuron in the map; None: the middle
    neuron: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] | None = None
    directions: Directions | None = None
    #: pictures per tile, which are kept unlike each other
    diversity: Annotated[int, Field(ge=1, le=16)] = 1
    #: maximise the layer after its batch-norm and activation, or the convolution's own output
    tap: Literal["activation", "conv"] = "activation"
    preprocess: Preprocess
    #: of one picture; 150 is the notebook's
    height_px: Size = 150
    width_px: Size = 150
    #: the picture has one channel, which the network sees as three equal ones
    grey: bool = False
    #: gradient steps, of each octave; the notebook takes 40
    steps: Annotated[int, Field(ge=1, le=100_000)] = 40
    #: notebook: pixels (of 0..255) per step of unit RMS; it takes 1. Others: Adam's learning rate; Lucid takes 0.05
    step_size: Annotated[float, Field(gt=0, le=1000)] = 1.0
    #: notebook: sizes that the picture grows through, each so many times larger than the last
    octaves: Annotated[int, Field(ge=1, le=32)] = 1
    octave_scale: Annotated[float, Field(gt=1, le=4)] = 1.2
    #: how much total variation, distance from grey, and what a blur would remove count against the objective
    total_variation: Strength = 0.0
    l2: Strength = 0.0
    blur: Strength = 0.0
    #: pictures of the way there that are kept for each tile
    frames: Annotated[int, Field(ge=0, le=200)] = 0
    #: wake filters that do not answer to the start image: through what they are before their activation function,
    #: then with other start images
    rescue: bool = True
    #: what the network computes in. auto: bf16 where the device is faster in it, else fp32. The picture, the
    #: optimiser, and every activation that is recorded are fp32 always
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="after")
    def _parts_go_together(self) -> "Recipe":
        if self.neuron is not None and self.objective != "neuron":
            raise ValueError("a neuron's place needs the objective neuron")
        if (self.directions is not None) != (self.objective == "direction"):
            raise ValueError("directions and the objective direction come together")
        if self.octaves > 1 and self.method != "notebook":
            raise ValueError("octaves need the method notebook; the others have every scale in one")
        if self.octaves > 1 and min(self.octave_px[0]) < MIN_SIZE_PX:
            raise ValueError(f"with {self.octaves} octaves the first picture would be smaller than {MIN_SIZE_PX} px")
        if self.octaves > 1 and self.neuron is not None:
            raise ValueError("a neuron's place needs a single octave; without a place it is the middle of every octave")
        if self.frames > self.total_steps:
            raise ValueError(f"{self.frames} frames of {self.total_steps} steps; there is one a step at most")
        if self.frames and max(self.tile_px) > MAX_FRAME_PX:
            raise ValueError(f"frames of {max(self.tile_px)} px; WebP holds {MAX_FRAME_PX} at most")
        return self

    @property
    def total_steps(self) -> int:
        """Gradient steps of a tile from its start image on."""
        return self.octaves * self.steps

    @property
    def octave_px(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the picture in each octave; with more than one, it grows once more after the last."""
        if self.octaves == 1:
            return ((self.height_px, self.width_px),)
        factors = (self.octave_scale**power for power in range(self.octaves, 0, -1))
        return tuple((int(self.height_px / factor), int(self.width_px / factor)) for factor in factors)

    @property
    def work(self) -> float:
        """Gradient steps of one tile, counted in pictures of full size."""
        areas = (height * width / (self.height_px * self.width_px) for height, width in self.octave_px)
        return self.diversity * self.steps * sum(areas)

    @property
    def described(self) -> str:
        """In words: "fourier, 64 steps at 150 px, seed 0"."""
        size = f"{self.height_px}" if self.height_px == self.width_px else f"{self.height_px}x{self.width_px}"
        steps = f"{self.octaves} x {self.steps}" if self.octaves > 1 else f"{self.steps}"
        what = "" if self.objective == "filter" else f"{self.objective}, "
        sign = "negative, " if self.negative else ""
        return f"{self.method}, {what}{sign}{steps} steps at {size} px, {self.tap}, seed {self.seed}"

    @property
    def tile_px(self) -> tuple[int, int]:
        """Height and width of a tile, in which several pictures stand side by side."""
        return self.height_px, self.diversity * (self.width_px + GAP_PX) - GAP_PX
