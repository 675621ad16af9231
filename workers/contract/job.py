"""The frozen job and the task message, which are all that passes from producer to workers.

Both are immutable, validated when made or decoded, and plain JSON in the queue and the bucket. ``decode`` alone makes
them from foreign JSON, and raises CorruptJob for anything invalid. Readers ignore fields that they do not know, because
a later version may have written them. A job is rendered only if all of it is understood: ``decode_whole_job``.
"""

import functools
import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from workers.contract.errors import BadFilters, CorruptJob, JobNotUnderstood
from workers.contract.filter_ranges import Filters, parse_filters
from workers.contract.frozen import Frozen
from workers.contract.keys import Name, is_name
from workers.contract.network import Network
from workers.contract.recipe import Recipe
from workers.contract.tiles import Tiles

#: Whose layout a checkpoint has.
Layout = Literal["torch", "keras"]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in 64 hex digits, as in :class:`Weights`. Raises OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Weights(Frozen):
    """The parameters of the network."""

    source: Literal["torchvision", "timm", "package", "file", "factory", "none"]
    #: name of torchvision's or timm's weights, of the package or of the file, "as built" for those of a factory, or
    #: "none" for seeded random parameters
    name: Annotated[str, Field(max_length=255, pattern=r"^[^/\x00-\x1f]+$")]
    #: SHA-256 of the file in hex digits: all 64, or the first ones if torchvision publishes no more
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")] | None = None
    #: keras: the file is Keras's, and the network pools as Keras's of that name
    layout: Annotated[Layout, Field(exclude_if=lambda layout: layout == "torch")] = "torch"


#: conv: a convolution. linear: a linear layer. logits: the network's output. block: the sum or concatenation of
#: branches. other: any other tensor with channels
Kind = Literal["conv", "block", "linear", "logits", "other"]


#: Largest number of characters of the name of a unit.
MAX_NAME_LETTERS = 200

UnitName = Annotated[str, Field(min_length=1, max_length=MAX_NAME_LETTERS, pattern=r"^[^\x00-\x1f]+$")]


def is_unit_name(text: str) -> bool:
    """True if a person's or a hub's text can be the name of a unit."""
    return 1 <= len(text) <= MAX_NAME_LETTERS and text.isprintable()


class Layer(Frozen):
    """One layer, and those of its units that the job renders."""

    #: dotted name of the convolution, or name of the tensor as torchvision's feature extraction names it
    name: Name
    #: other names, such as Keras's ``block5_conv1``
    aliases: tuple[Name, ...] = ()
    kind: Annotated[Kind, Field(exclude_if=lambda kind: kind == "conv")] = "conv"
    #: names of its units, such as those of classes; () if they have none
    names: Annotated[tuple[UnitName, ...], Field(exclude_if=lambda names: not names)] = ()
    #: number of its units
    channels: Annotated[int, Field(ge=1, le=1_000_000)]
    #: the rendered filters in the shortest form, such as "0-63,70"
    filters: str

    @model_validator(mode="after")
    def _filters_are_canonical(self) -> "Layer":
        try:
            canonical = parse_filters(self.filters, self.channels, self.name).text
        except BadFilters as error:
            raise ValueError(str(error)) from error
        if canonical != self.filters:
            raise ValueError(f"filters {self.filters[:80]!r} should be written {canonical[:80]!r}")
        if self.names and len(self.names) != self.channels:
            raise ValueError(f"{len(self.names)} names of {self.channels} units")
        return self

    @functools.cached_property
    def selected(self) -> Filters:
        """The rendered filters, ascending."""
        return parse_filters(self.filters, self.channels, self.name)


class Grid(Frozen):
    """Arrangement of a layer's tiles on its contact sheet."""

    #: numbers of rows and columns; None: as square as possible
    rows: Annotated[int, Field(ge=1, le=10_000)] | None = None
    columns: Annotated[int, Field(ge=1, le=10_000)] | None = None
    #: black pixels between tiles; 5 in Chollet's notebook
    margin_px: Annotated[int, Field(ge=0, le=256)] = 5
    #: numbers of the filters below the tiles. Written only if set, so that jobs without keep what 0.1.0 hashed
    labels: Annotated[bool, Field(exclude_if=lambda labels: not labels)] = False

    @model_validator(mode="after")
    def _rows_and_columns_come_together(self) -> "Grid":
        if (self.rows is None) != (self.columns is None):
            raise ValueError("a grid needs both rows and columns, or neither")
        return self

    def holds(self, tiles: int) -> bool:
        """True if the sheet has room for that number of tiles."""
        return self.rows is None or self.columns is None or tiles <= self.rows * self.columns


def _content_id(values: dict[str, Any]) -> str:
    """The id of a new job: ``<model>-<method>-<hash of what differs from the defaults>``, of 12 hex digits.

    Defaults are left out, so that an option of a later version does not change the ids of jobs without it.
    """
    if not {"model", "weights", "layers", "recipe", "grid"} <= values.keys():
        return "invalid"  # an error of another field
    content = {
        name: [entry.model_dump(mode="json", exclude_defaults=True) for entry in value]
        if isinstance(value, tuple)
        else value.model_dump(mode="json", exclude_defaults=True)
        for name, value in values.items()
        if name in {"weights", "layers", "recipe", "grid"}
    }
    if values.get("network") is not None:
        content["network"] = values["network"].model_dump(mode="json", exclude_defaults=True)
    text = json.dumps({"model": values["model"], **content}, sort_keys=True)
    return f"{values['model']}-{values['recipe'].method}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


class Job(Frozen):
    """Model, weights, layers, filters, recipe and grid: everything that determines the pictures."""

    format: Literal[1] = 1
    #: name of the network, which the id begins with
    model: Name
    #: where the network comes from, if not from filterfarm itself
    network: Annotated[Network | None, Field(exclude_if=lambda network: network is None)] = None
    weights: Weights
    layers: Annotated[tuple[Layer, ...], Field(min_length=1)]
    recipe: Recipe
    grid: Grid = Grid()
    #: versions at submission; not part of the content, so that an upgrade resumes and does not restart
    versions: dict[str, str] = {}
    #: the folder in the bucket. Set once: the same content under another version of filterfarm keeps it
    id: Name = Field(default_factory=_content_id)

    @model_validator(mode="after")
    def _layers_are_distinct_and_fit_their_sheets(self) -> "Job":
        if len({layer.name for layer in self.layers}) != len(self.layers):
            raise ValueError("a layer is listed twice")
        crowded = next((layer for layer in self.layers if not self.grid.holds(len(layer.selected))), None)
        if crowded:
            raise ValueError(f"the grid has no room for the {len(crowded.selected)} tiles of {crowded.name}")
        return self

    @property
    def address(self) -> str:
        """The network, as it is named on the command line and in the registry."""
        return self.model if self.network is None else self.network.address

    @property
    def first_id(self) -> str:
        """The id that filterfarm 0.1.0 gave to this content. Fields added since are left out at their default."""
        content = self.model_dump(mode="json", exclude={"versions", "id"})
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return f"{self.model}-{self.recipe.method}-{digest[:8]}"

    def has_content_of(self, other: "Job") -> bool:
        """True if both jobs make the same pictures and sheets."""
        mine, theirs = (job.model_dump(mode="json", exclude={"versions", "id"}) for job in (self, other))
        return mine == theirs

    @functools.cached_property
    def tiles(self) -> Tiles:
        """Every (layer, filter) of the job, in order. The index of a tile is its number in the ledger."""
        return Tiles(self.layers)

    def layer(self, name: str) -> Layer | None:
        """The layer of that name, if the job renders it."""
        return next((layer for layer in self.layers if layer.name == name), None)

    def to_json(self) -> bytes:
        """The content of ``job.json``, indented for people."""
        return self.model_dump_json(indent=1).encode()


class Task(Frozen):
    """The body of one queue message, which refers to a tile of a job. The worker reads ``job.json`` from the bucket."""

    version: Literal[1] = 1
    job: Name
    layer: Name
    filter: Annotated[int, Field(ge=0, le=1_000_000)]


def decode_job(data: bytes, job_id: str) -> Job:
    """The job in ``job.json`` of that id. Raises CorruptJob, also if the content is that of another job."""
    job = decode(Job, data, f"job {job_id}")
    if "id" not in job.model_fields_set and job.first_id == job_id:
        return job.model_copy(update={"id": job_id})  # filterfarm 0.1.0 wrote no id
    if job.id != job_id:
        raise CorruptJob(f"job {job_id} holds the content of {job.id}")
    return job


def decode_whole_job(data: bytes, job_id: str) -> Job:
    """Like ``decode_job``. Raises JobNotUnderstood if a later version has written what this one cannot render."""
    try:
        Job.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        if first["type"] in {"extra_forbidden", "literal_error"}:
            place = ".".join(map(str, first["loc"]))
            raise JobNotUnderstood(
                f"job {job_id} has {place}={str(first['input'])[:80]!r}, which filterfarm {version('filterfarm')} does "
                "not know; upgrade it",
                job_id,
            ) from error
    return decode_job(data, job_id)


def decode_task(body: object) -> Task:
    """The task in the body of a message. Raises CorruptJob, and JobNotUnderstood if a later version has sent it."""
    if isinstance(body, dict) and isinstance(body.get("version"), int) and body["version"] > 1:
        job_id = str(body.get("job"))
        if is_name(job_id):
            raise JobNotUnderstood(
                f"messages of job {job_id} have version {body['version']}, which filterfarm {version('filterfarm')} "
                "does not know; upgrade it",
                job_id,
            )
    return decode(Task, json.dumps(body), "a task message")


Record = TypeVar("Record", bound=Frozen)


def decode(kind: type[Record], data: bytes | str, what: str) -> Record:
    """Decode foreign JSON as a ``kind``, without fields unknown to it. Raises CorruptJob, which names it ``what``."""
    try:
        return kind.model_validate_json(data, extra="ignore")
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the text"
        raise CorruptJob(f"{what} is not valid: {place}: {first['msg']} (got {str(first['input'])[:80]!r})") from error
