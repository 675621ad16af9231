"""Gallery objects of layers that are still being rendered, from the tiles that are there.

A look at a layer reads the tiles that are new since the last one. Looks take a fifth of the collector's time at most.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import redis

from producer.collector.tile_reader import read_tile
from producer.gallery.documents import LayerFacts
from producer.gallery.layer_objects import Entry, entry, layer_cells, layer_objects
from producer.gallery.thumbnails import MAX_ATLAS_PIXELS
from workers.clients.storage import READERS, Store
from workers.contract.errors import FilterfarmError, one_line
from workers.contract.job import Job, Layer
from workers.contract.records import FailureRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

#: Pause between two looks at a layer.
EVERY_S = 5.0

#: Pause after looks, as a multiple of what they took.
_PAUSE = 4.0

#: After this long, further layers wait for the next looks.
_LOOKS_S = 1.0

#: Tiles that one look reads, at most: it takes about a second.
_TILES = 256


@dataclass(kw_only=True)
class _Kept:
    """What is kept of one layer."""

    job: Job
    layer: Layer
    #: pixels of its thumbnails, once all are there
    pixels: int
    entries: dict[int, Entry] = field(default_factory=dict)
    #: monotonic time of the last look
    looked_at: float = -EVERY_S
    #: filter -> reason, None if it is stored: what has ended at the last pass
    ended: dict[int, str | None] = field(default_factory=dict)


class Previews:
    """Thumbnails of incomplete layers, MAX_ATLAS_PIXELS in all. Further layers are shown once they are complete."""

    def __init__(self, store: Store, renew_lock: Callable[[], None]) -> None:
        self._store, self._renew_lock = store, renew_lock
        self._kept: dict[tuple[str, str], _Kept] = {}
        self._next = 0.0
        #: layers of which no preview can be made
        self._broken: set[tuple[str, str]] = set()

    def forget(self, job_id: str) -> None:
        """Free the memory of a job that has ended or was submitted again."""
        self._kept = {key: kept for key, kept in self._kept.items() if key[0] != job_id}
        self._broken = {key for key in self._broken if key[0] != job_id}

    def note(self, job: Job, ended: "NDArray[np.bool_]", failed: dict[int, str]) -> None:
        """Note which tiles of an open job have ended. Arguments as for ``JobLayers.assemble_complete``."""
        if time.monotonic() < self._next:
            return
        for layer in job.layers:
            key, numbers = (job.id, layer.name), job.tiles.of_layer(layer)
            mine = ended[numbers.start : numbers.stop]
            if mine.all():
                self._kept.pop(key, None)
                continue
            if not mine.any() or key in self._broken or not self._has_room(job, layer):
                continue
            kept = self._kept[key]
            places = np.flatnonzero(mine).tolist()
            kept.ended = {layer.selected[place]: failed.get(numbers.start + place) for place in places}

    def look(self) -> dict[tuple[str, str], LayerFacts]:
        """Write the objects of layers with new tiles; returns (job, layer) -> what the gallery says of them.

        Raises object store errors, and what ``renew_lock`` raises. Any other error is logged, and ends the layer's
        preview.
        """
        found: dict[tuple[str, str], LayerFacts] = {}
        began = time.monotonic()
        if began < self._next:
            return found
        due = [key for key, kept in self._kept.items() if began - kept.looked_at >= EVERY_S and _has_changed(kept)]
        try:
            for key in sorted(due, key=lambda key: self._kept[key].looked_at):
                if time.monotonic() - began >= _LOOKS_S:
                    break
                kept = self._kept[key]
                kept.looked_at = time.monotonic()
                try:
                    facts = self._look_at(kept)
                except (FilterfarmError, redis.RedisError):
                    raise
                except Exception as error:  # such as too little memory
                    log.error("no preview job=%s layer=%s reason=%s: %s", *key, type(error).__name__, one_line(error))
                    self._broken.add(key)
                    del self._kept[key]
                    continue
                if facts is not None:
                    found[key] = facts
        finally:
            ended = time.monotonic()
            self._next = ended + _PAUSE * (ended - began)
        return found

    def _has_room(self, job: Job, layer: Layer) -> bool:
        """True if the layer's thumbnails are kept, from now on or already."""
        key = (job.id, layer.name)
        if key not in self._kept:
            height, width = layer_cells(job, layer).cell_px
            pixels = len(layer.selected) * height * width
            if sum(kept.pixels for kept in self._kept.values()) + pixels > MAX_ATLAS_PIXELS:
                return False
            self._kept[key] = _Kept(job=job, layer=layer, pixels=pixels)
        return True

    def _look_at(self, kept: _Kept) -> LayerFacts | None:
        """Read new tiles and write the layer's objects; None if there are no new ones."""
        job, layer = kept.job, kept.layer
        cells = layer_cells(job, layer)
        before = len(kept.entries)
        kept.entries = {filter_: old for filter_, old in kept.entries.items() if _is_current(kept, filter_)}
        has_changed = len(kept.entries) != before
        new = [filter_ for filter_ in kept.ended if filter_ not in kept.entries][:_TILES]
        reasons = {
            job.tiles.number(layer.name, filter_): reason
            for filter_ in new
            if (reason := kept.ended[filter_]) is not None
        }

        def read(filter_: int) -> Entry | None:
            tile = read_tile(job, layer, filter_, reasons, self._store)
            return None if tile is None else entry(tile[1], tile[0], cells)

        self._renew_lock()
        with ThreadPoolExecutor(READERS) as pool:
            for filter_, made in zip(new, pool.map(read, new), strict=True):
                if made is not None:
                    kept.entries[filter_] = made
                    has_changed = True
        if not has_changed or not kept.entries:
            return None
        objects, facts = layer_objects(job, layer, kept.entries, sheet_tile_px=None)
        for made_object in objects:
            self._renew_lock()
            self._store.put(made_object.key, made_object.body, made_object.content_type)
        return facts


def _has_changed(kept: _Kept) -> bool:
    return kept.ended.keys() != kept.entries.keys() or not all(_is_current(kept, filter_) for filter_ in kept.entries)


def _is_current(kept: _Kept, filter_: int) -> bool:
    """False if a tile was reopened, or has succeeded after a failure, since it was read."""
    if filter_ not in kept.ended:
        return False
    return isinstance(kept.entries[filter_].record, FailureRecord) == (kept.ended[filter_] is not None)
