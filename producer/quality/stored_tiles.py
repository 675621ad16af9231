"""Responses of the network to a layer's stored tiles."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from producer.jobs.inventory import Reader
from producer.quality.class_reader import ClassReader
from workers.clients.storage import READERS
from workers.contract import keys
from workers.contract.errors import CorruptTile
from workers.contract.job import Job, Layer
from workers.contract.tile_png import decode_tile_of, max_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from workers.rendering.metrics import LayerProbe

#: Tiles in memory at a time.
_CHUNK = 64


@dataclass(kw_only=True)
class StoredResponses:
    """The readable tiles of one layer, in the filters' order, and the network's responses to them."""

    filters: list[int] = field(default_factory=list)
    statuses: list[str] = field(default_factory=list)
    #: activation at the start image, from the tile's record
    starts: list[float] = field(default_factory=list)
    #: spatial means of the layer's activation maps: one row per tile, one column per filter of the layer
    responses: "list[NDArray[np.float32]]" = field(default_factory=list)
    #: share of a tile's power in high frequencies, 0..1
    high_frequency: list[float] = field(default_factory=list)
    #: other network -> its ranks of the tiles' classes, see metrics.ranks
    ranks: dict[str, list[int]] = field(default_factory=dict)
    #: filter of an unreadable tile -> reason
    broken: dict[int, str] = field(default_factory=dict)


def measure_responses(
    job: Job, layer: Layer, probe: "LayerProbe", reader: Reader, others: Sequence[ClassReader] = ()
) -> StoredResponses:
    """Read a layer's stored tiles and run the network on them, 64 at a time. Missing tiles are left out.

    ``others`` are networks that read the classes of the tiles, for a layer of logits. Raises object store errors.
    """
    from workers.rendering import metrics

    result = StoredResponses(ranks={other.name: [] for other in others})
    with ThreadPoolExecutor(READERS) as pool:
        for chunk in _chunks(layer.selected):
            images = []
            stored = pool.map(lambda filter_: _read(job, layer, filter_, reader), chunk)
            for filter_, data in zip(chunk, stored, strict=True):
                if data is None:
                    continue
                try:
                    pixels, record = decode_tile_of(job, layer.name, filter_, data)
                except CorruptTile as error:
                    result.broken[filter_] = str(error)
                    continue
                result.filters.append(filter_)
                result.statuses.append(record.status)
                result.starts.append(record.start_activation)
                images.append(pixels)
            if images:
                batch = np.stack(images)
                result.responses.extend(probe.responses(batch))
                result.high_frequency.extend(metrics.high_frequency(batch).tolist())
                classes = np.array(result.filters[-len(images) :])
                for other in others:
                    result.ranks[other.name].extend(metrics.ranks(other.logits(batch), classes).tolist())
    return result


def _read(job: Job, layer: Layer, filter_: int, reader: Reader) -> bytes | None:
    return reader.get(keys.tile(job.id, layer.name, filter_), max_bytes=max_bytes(job.recipe.tile_px) + 1)


def _chunks(filters: Sequence[int]) -> Iterator[Sequence[int]]:
    for first in range(0, len(filters), _CHUNK):
        yield filters[first : first + _CHUNK]
