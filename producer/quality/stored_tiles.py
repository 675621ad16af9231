"""A layer's stored tiles, read back and shown to the network."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from producer.jobs.inventory import Reader
from workers.clients.storage import READERS
from workers.contract import keys
from workers.contract.errors import CorruptJob, CorruptTile
from workers.contract.job import Job, Layer
from workers.contract.records import Status
from workers.contract.tile_png import decode_tile_of, max_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from workers.rendering.metrics import LayerProbe

#: Tiles that are in memory at once.
_CHUNK = 64


@dataclass(kw_only=True)
class Seen:
    """The tiles of one layer that could be read, in the filters' order, and what they do to it."""

    filters: list[int] = field(default_factory=list)
    statuses: list[Status] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    #: means of each filter's map: a row for each tile, a column for each filter of the layer
    responses: "list[NDArray[np.float32]]" = field(default_factory=list)
    high_frequency: list[float] = field(default_factory=list)
    broken: dict[int, str] = field(default_factory=dict)


def show(job: Job, layer: Layer, probe: "LayerProbe", reader: Reader) -> Seen:
    """Read a layer's tiles, chunk by chunk, and show them to the network."""
    from workers.rendering import metrics as numbers

    seen = Seen()
    with ThreadPoolExecutor(READERS) as pool:
        for chunk in _chunks(layer.selected):
            pictures = []
            stored = pool.map(lambda filter_: _stored(job, layer, filter_, reader), chunk)
            for filter_, data in zip(chunk, stored, strict=True):
                if data is None:
                    continue
                try:
                    pixels, record = decode_tile_of(job, layer.name, filter_, data)
                except (CorruptTile, CorruptJob) as error:
                    seen.broken[filter_] = str(error)
                    continue
                seen.filters.append(filter_)
                seen.statuses.append(record.status)
                seen.starts.append(record.start_activation)
                pictures.append(pixels)
            if pictures:
                batch = np.stack(pictures)
                seen.responses.extend(probe.responses(batch))
                seen.high_frequency.extend(numbers.high_frequency(batch).tolist())
    return seen


def _stored(job: Job, layer: Layer, filter_: int, reader: Reader) -> bytes | None:
    return reader.get(keys.tile(job.id, layer.name, filter_), max_bytes=max_bytes(job.recipe.tile_px) + 1)


def _chunks(filters: Sequence[int]) -> Iterator[Sequence[int]]:
    for first in range(0, len(filters), _CHUNK):
        yield filters[first : first + _CHUNK]
