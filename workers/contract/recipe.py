"""The recipe: all parameters of rendering, validated when made or decoded."""

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from workers.contract.directions import Directions
from workers.contract.frozen import Frozen
from workers.contract.option import Option

#: Largest side of a picture in pixels. One start image of that size takes 200 MB.
MAX_SIZE_PX = 4096

#: Largest side of an animation in pixels, a limit of WebP.
MAX_FRAME_PX = 16_383

#: Smallest side of a picture in pixels.
MIN_SIZE_PX = 8


class Preprocess(Frozen):
    """The network's input for a picture x in 0..255: (x / 255 - mean) / std per colour channel, or x with ``raw``."""

    name: Literal["raw", "imagenet", "model", "caffe", "tf"]
    #: one number for each channel, or one for all
    mean: Annotated[tuple[float, ...], Field(min_length=1)] = (0.0, 0.0, 0.0)
    std: Annotated[tuple[float, ...], Field(min_length=1)] = (1 / 255, 1 / 255, 1 / 255)


#: Black pixels between the pictures of one tile, if it has several.
GAP_PX = 2

Size = Annotated[int, Field(ge=MIN_SIZE_PX, le=MAX_SIZE_PX)]
Index = Annotated[int, Field(ge=0)]
Strength = Annotated[float, Field(ge=0, le=1000)]


#: method -> defaults of fields that depend on it. 40 steps of 1 are those of Chollet's notebook, 0.05 is Lucid's
#: learning rate.
METHODS: dict[str, dict[str, Any]] = {
    "fourier": {"steps": 64, "step_size": 0.05},
    "notebook": {"steps": 40, "step_size": 1.0},
    "maco": {"steps": 128, "step_size": 0.2},
    "pixel": {"steps": 64, "step_size": 0.05},
}


def _of_method(field: str) -> Any:
    """A default that depends on the method, which is validated before. An unknown method is an error of its own."""
    return Field(default_factory=lambda values: METHODS.get(values.get("method"), METHODS["fourier"])[field])


_INPUT = Option(
    flag="--input",
    panel="Picture",
    metavar="CxHxW",
    default="3 channels or what the network reads, and --size",
    help="Channels, height and width of the network's pictures, as in 1x28x28.",
)
_SHOW = Option(
    panel="Picture",
    metavar="pca|C,C,C",
    default="pca",
    help="Pictures of other channels than RGB: their principal components, or three channels.",
)
_SIZE = Option(flag="--size", panel="Picture", metavar="PIXELS", help="Side in pixels, or height x width as in 96x160.")


class Recipe(Frozen):
    """The parameters of rendering, equal for all tiles of a job.

    The fields are the only definition of the recipe's options: the command line, its help and its error messages are
    generated from them.
    """

    #: notebook: Chollet's "visualizing convnet filters", to the letter. fourier: Lucid's, in decorrelated colour.
    #: maco: only the phases of the Fourier coefficients are optimised. pixel: as fourier, with one parameter per pixel
    method: Annotated[
        Literal["fourier", "notebook", "maco", "pixel"],
        Option(
            panel="Method",
            help="Parametrization and optimiser: fourier is Lucid's, notebook Chollet's to the letter, maco optimises "
            "phases alone, pixel each pixel.",
        ),
    ] = "fourier"
    #: filter: mean of the filter's map. neuron: one place of that map. direction: mean of a weighted sum of the
    #: layer's maps. deepdream: mean square of all maps of the layer
    objective: Annotated[
        Literal["filter", "neuron", "direction", "deepdream"],
        Option(
            panel="Objective",
            help="Maximised quantity: the mean of a filter's map, one place of it, the mean of a weighted sum of maps, "
            "or the mean square of the whole layer.",
        ),
    ] = "filter"
    #: minimises the pre-activation, because a ReLU's output has no gradient below zero
    negative: Annotated[bool, Option(panel="Objective", help="Minimise the objective.")] = False
    #: row and column of the neuron in the map; None: the middle
    neuron: Annotated[
        tuple[Index, Index] | None,
        Option(
            panel="Objective", metavar="ROW,COLUMN", default="middle", help="Place in the map, for --objective neuron."
        ),
    ] = None
    directions: Annotated[
        Directions | None,
        Option(
            panel="Objective",
            metavar="FILE",
            help="A .npy file of shape (directions, channels), one tile each, for --objective direction.",
        ),
    ] = None
    diversity: Annotated[
        int,
        Field(ge=1, le=16),
        Option(panel="Objective", help="Pictures per filter, side by side in the tile; their similarity is penalised."),
    ] = 1
    tap: Annotated[
        Literal["activation", "conv"],
        Option(
            panel="Objective",
            help="Output that is maximised: after batch-norm and activation, or the convolution's own.",
        ),
    ] = "activation"
    preprocess: Annotated[
        Preprocess,
        Option(
            panel="Model and layers",
            metavar="NAME|MEAN,STD",
            default="auto",
            help="Network input: raw 0..255 RGB, ImageNet mean and std, caffe (0..255 minus the mean), tf (-1..1), or "
            "(auto) as the weights were trained.",
        ),
    ]
    #: of the network's pictures. This and ``show`` are written only if they are set
    channels: Annotated[int, Field(ge=1, le=1024, exclude_if=lambda channels: channels == 3), _INPUT] = 3
    #: the channels shown as red, green and blue, of pictures neither grey nor RGB; None: three principal components
    show: Annotated[tuple[Index, Index, Index] | None, Field(exclude_if=lambda show: show is None), _SHOW] = None
    height_px: Annotated[Size, _SIZE] = 150
    width_px: Annotated[Size, _SIZE] = 150
    #: the picture has one channel, which is repeated for the network
    grey: Annotated[bool, Option(panel="Picture", help="Pictures of one channel instead of three.")] = False
    steps: Annotated[int, Field(ge=1, le=100_000), Option(panel="Method", help="Gradient steps of each octave.")] = (
        _of_method("steps")
    )
    step_size: Annotated[
        float,
        Field(gt=0, le=1000),
        Option(
            panel="Method",
            help="notebook: pixel values (of 0..255) per step of unit RMS. Others: Adam's learning rate.",
        ),
    ] = _of_method("step_size")
    octaves: Annotated[
        int,
        Field(ge=1, le=32),
        Option(panel="Method", help="Number of sizes that are optimised in turn; notebook only."),
    ] = 1
    octave_scale: Annotated[
        float, Field(gt=1, le=4), Option(panel="Method", help="Ratio of each of these sizes to the one before.")
    ] = 1.2
    total_variation: Annotated[
        Strength, Option(flag="--tv", panel="Objective", help="Weight of the penalty on total variation.")
    ] = 0.0
    l2: Annotated[Strength, Option(panel="Objective", help="Weight of the penalty on distance from grey.")] = 0.0
    blur: Annotated[Strength, Option(panel="Objective", help="Weight of the penalty on what a blur would remove.")] = (
        0.0
    )
    frames: Annotated[
        int,
        Field(ge=0, le=200),
        Option(panel="Picture", help="Intermediate pictures per tile, stored as an animation beside it."),
    ] = 0
    #: of filters that are zero on the start image: optimises the pre-activation, then retries with other seeds
    rescue: Annotated[
        bool,
        Option(panel="Method", help="Rescue filters that are zero on the start image; without, the bare recipe."),
    ] = True
    #: the picture, the optimiser and every recorded activation are fp32 always
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        Option(
            panel="Method",
            help="Precision of the network; auto takes bf16 where the device is faster in it.",
        ),
    ] = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**63), Option(panel="Picture", help="Seed of the start image.")] = 0

    @model_validator(mode="after")
    def _parts_go_together(self) -> "Recipe":
        if self.neuron is not None and self.objective != "neuron":
            raise ValueError("a neuron's place needs the objective neuron")
        if (self.directions is not None) != (self.objective == "direction"):
            raise ValueError("the objective direction needs directions, and no other objective takes them")
        lengths = {len(self.preprocess.mean), len(self.preprocess.std)}
        if not lengths <= ({3} if self.preprocess.name == "raw" else {1, self.channels}):
            raise ValueError(f"preprocessing of {len(self.preprocess.mean)} channels, and pictures of {self.channels}")
        if self.grey and self.channels != 3:
            raise ValueError("grey pictures need a network of RGB pictures")
        if self.show is not None and (self.channels in (1, 3) or max(self.show) >= self.channels):
            raise ValueError(f"show names three channels of {self.channels}; those of grey and RGB pictures are shown")
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
        """Gradient steps of a tile, of all octaves."""
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
        """Cost of one tile in gradient steps of one picture of full size."""
        areas = (height * width / (self.height_px * self.width_px) for height, width in self.octave_px)
        return self.diversity * self.steps * sum(areas)

    @property
    def described(self) -> str:
        """Summary for people, such as "fourier, 64 steps at 150 px, activation, seed 0"."""
        size = f"{self.height_px}" if self.height_px == self.width_px else f"{self.height_px}x{self.width_px}"
        steps = f"{self.octaves} x {self.steps}" if self.octaves > 1 else f"{self.steps}"
        what = "" if self.objective == "filter" else f"{self.objective}, "
        sign = "negative, " if self.negative else ""
        return f"{self.method}, {what}{sign}{steps} steps at {size} px, {self.tap}, seed {self.seed}"

    @property
    def tile_px(self) -> tuple[int, int]:
        """Height and width of a tile. With ``diversity`` above 1, it has several pictures side by side."""
        return self.height_px, self.diversity * (self.width_px + GAP_PX) - GAP_PX


def options() -> dict[str, Option]:
    """Field of the recipe -> its option, in the order of the fields; height and width share ``--size``."""
    found = {}
    for name, field in Recipe.model_fields.items():
        (option,) = (entry for entry in field.metadata if isinstance(entry, Option))
        found[name] = replace(option, flag=option.flag or "--" + name.replace("_", "-"))
    return found
