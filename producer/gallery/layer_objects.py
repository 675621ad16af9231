"""The objects of one layer in the gallery, made from those of its tiles that have been read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from producer.gallery.descriptors import descriptors, features
from producer.gallery.documents import (
    LayerFacts,
    Record,
    javascript,
    layer_columns,
    layer_document,
    layer_facts,
    stamp_of,
)
from producer.gallery.thumbnails import Cells, atlas, cells, strip, strip_filters, thumbnail
from producer.jobs.gallery_objects import CONTENT_TYPES
from workers.contract import keys
from workers.contract.job import Job, Layer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is kept of a tile or a failure: about 12 KB."""

    record: Record
    #: (H, W, 3) uint8 RGB of a cell, and the features of it; None if the tile failed
    thumbnail: "NDArray[np.uint8] | None" = None
    features: "NDArray[np.float32] | None" = None


@dataclass(frozen=True, kw_only=True)
class Object:
    """One object to be stored."""

    key: str
    body: bytes

    @property
    def content_type(self) -> str:
        """By the key's extension."""
        return CONTENT_TYPES[self.key.rpartition(".")[2]]


def entry(record: Record, pixels: "NDArray[np.uint8] | None", plan: Cells) -> Entry:
    """The entry of one tile, (H, W, 3) uint8 RGB, or of a failure, without pixels."""
    if pixels is None:
        return Entry(record=record)
    small = thumbnail(pixels, plan.cell_px)
    return Entry(record=record, thumbnail=small, features=features(small))


def layer_cells(job: Job, layer: Layer) -> Cells:
    """The cells of the layer's atlas."""
    return cells(job.recipe, len(layer.selected))


def layer_objects(
    job: Job, layer: Layer, entries: Mapping[int, Entry], *, sheet_tile_px: tuple[int, int] | None
) -> tuple[list[Object], LayerFacts]:
    """Atlas, strip, records and script, in the order in which they are to be stored, and what the job says of them.

    ``entries``: by filter, at least one. ``sheet_tile_px``: size of a tile on the layer's sheet, or None as long as
    some of its tiles have not ended.
    """
    plan = layer_cells(job, layer)
    found = {filter_: entries[filter_] for filter_ in sorted(entries)}
    records = {filter_: kept.record for filter_, kept in found.items()}
    statuses = {filter_: record.status for filter_, record in records.items()}
    vectors = descriptors([kept.features for kept in found.values()])
    complete = sheet_tile_px is not None
    columns = layer_columns(job, layer, records, vectors, plan, complete=complete)

    places = {filter_: place for place, filter_ in enumerate(layer.selected)}
    small = {filter_: kept.thumbnail for filter_, kept in found.items() if kept.thumbnail is not None}
    picture = atlas(plan, {places[filter_]: pixels for filter_, pixels in small.items()})
    objects = [Object(key=keys.atlas(job.id, layer.name), body=picture)]
    shown = strip_filters(statuses)
    if shown:
        body = strip([small[filter_] for filter_ in shown])
        objects.append(Object(key=keys.strip(job.id, layer.name), body=body))
    stamp = stamp_of([picture, javascript("layer", layer.name, columns)])
    objects += [
        Object(
            key=keys.records(job.id, layer.name),
            body=layer_document(job, layer, records, vectors, plan, sheet_tile_px=sheet_tile_px, stamp=stamp),
        ),
        Object(
            key=keys.layer_script(job.id, layer.name),
            body=javascript("layer", layer.name, {**columns, "stamp": stamp}),
        ),
    ]
    return objects, layer_facts(statuses, stamp, complete=complete)
