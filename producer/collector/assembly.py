"""Tiles to sheets, records and gallery: what the collector makes once nothing is missing."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from producer.collector.contact_sheet import encode_sheet, sheet
from producer.collector.gallery import page
from producer.jobs.inventory import MAX_FAILURE_BYTES
from workers.clients.storage import READERS, Store
from workers.contract import keys
from workers.contract.errors import CorruptJob, CorruptTile
from workers.contract.job import Job, Layer, decode
from workers.contract.records import FailureRecord, TileRecord
from workers.contract.tile_png import decode_tile_of, max_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def assemble(job: Job, layer: Layer, reasons: dict[int, str], store: Store, still_mine: Callable[[], None]) -> set[int]:
    """Make the layer's sheet and records from its stored tiles; returns the filters whose tile is missing or broken.

    Nothing is written unless that set is empty. ``reasons`` says for filters without a tile why they have none.
    ``still_mine`` is called now and then, and raises when this collector has lost its turn.
    """
    entries: list[tuple[NDArray[np.uint8] | None, TileRecord | FailureRecord]] = []
    broken: set[int] = set()
    with ThreadPoolExecutor(READERS) as pool:
        for filter_, entry in zip(
            layer.selected,
            pool.map(lambda number: _read(job, layer, number, reasons, store), layer.selected),
            strict=True,
        ):
            still_mine()
            if entry is None:
                broken.add(filter_)
            else:
                entries.append(entry)
    if broken:
        return broken
    canvas = sheet([(pixels, record.status) for pixels, record in entries], job.grid, job.recipe.tile_px)
    store.put(keys.grid(job.id, layer.name), encode_sheet(canvas), "image/png")
    records = {
        "job": job.id,
        "layer": layer.name,
        "aliases": list(layer.aliases),
        "filters": [record.model_dump(mode="json") for _, record in entries],
    }
    # Last, because a layer counts as assembled once its records are there.
    store.put(keys.records(job.id, layer.name), json.dumps(records, indent=1).encode(), "application/json")
    return broken


def write_gallery(job: Job, store: Store) -> set[str]:
    """Make index.html from the layers' records; returns the layers whose records do not read, and removes those.

    Nothing is written unless that set is empty.
    """
    statuses: dict[tuple[str, int], str] = {}
    reasons: dict[tuple[str, int], str] = {}
    unreadable: set[str] = set()
    for layer in job.layers:
        key = keys.records(job.id, layer.name)
        try:
            records = json.loads(store.get(key) or b"")["filters"]
            for record in records:
                place = layer.name, int(record["filter"])
                statuses[place], reasons[place] = str(record["status"]), str(record.get("reason", ""))
            if len(records) != len(layer.selected):
                raise ValueError("records are missing")
        except (ValueError, KeyError, TypeError, RecursionError):
            store.delete(key)
            unreadable.add(layer.name)
    if not unreadable:
        store.put(keys.index(job.id), page(job, statuses, reasons), "text/html; charset=utf-8")
    return unreadable


def _read(
    job: Job, layer: Layer, filter_: int, reasons: dict[int, str], store: Store
) -> "tuple[NDArray[np.uint8] | None, TileRecord | FailureRecord] | None":
    """One tile as stored, or None where it has to be rendered again."""
    reason = reasons.get(job.numbers[layer.name, filter_])
    if reason is not None:
        return None, _failure(job, layer, filter_, reason, store)
    key = keys.tile(job.id, layer.name, filter_)
    data = store.get(key, max_bytes=max_bytes(job.recipe.tile_px) + 1)
    if data is None:
        return None
    try:
        pixels, record = decode_tile_of(job, layer.name, filter_, data)
    except (CorruptTile, CorruptJob):
        # Out of the way, or a worker that finds it stored would not render it again.
        store.delete(key)
        return None
    return pixels, record


def _failure(job: Job, layer: Layer, filter_: int, reason: str, store: Store) -> FailureRecord:
    """The failure as its worker stored it, or what the ledger knows of it."""
    data = store.get(keys.failed(job.id, layer.name, filter_), max_bytes=MAX_FAILURE_BYTES)
    try:
        return decode(FailureRecord, data or b"", "a failure")
    except CorruptJob:
        return FailureRecord(job=job.id, layer=layer.name, filter=filter_, reason=reason, attempts=0)
