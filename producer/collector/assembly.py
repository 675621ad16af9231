"""From stored tiles to contact sheets, records and the gallery page."""

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
from workers.contract.tile_png import decode_tile_of, is_picture, max_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def assemble(job: Job, layer: Layer, reasons: dict[int, str], store: Store, renew_lock: Callable[[], None]) -> set[int]:
    """Write the layer's contact sheet and records; returns the filters whose tile is missing or unreadable.

    If that set is not empty, nothing is written, and tiles that are no PNG are deleted. ``reasons`` maps the numbers of
    failed tiles to the reason. ``renew_lock`` is called once per tile; what it raises ends the assembly.
    """
    entries: list[tuple[NDArray[np.uint8] | None, TileRecord | FailureRecord]] = []
    broken: set[int] = set()
    with ThreadPoolExecutor(READERS) as pool:
        for filter_, entry in zip(
            layer.selected,
            pool.map(lambda number: _read(job, layer, number, reasons, store), layer.selected),
            strict=True,
        ):
            renew_lock()
            if entry is None:
                broken.add(filter_)
            else:
                entries.append(entry)
    if broken:
        return broken
    image = sheet([(pixels, record.status) for pixels, record in entries], job.grid, job.recipe.tile_px)
    store.put(keys.grid(job.id, layer.name), encode_sheet(image), "image/png")
    records = {
        "job": job.id,
        "layer": layer.name,
        "aliases": list(layer.aliases),
        "filters": [record.model_dump(mode="json") for _, record in entries],
    }
    # Written last: a layer counts as assembled once its records exist.
    store.put(keys.records(job.id, layer.name), json.dumps(records, indent=1).encode(), "application/json")
    return broken


def write_gallery(job: Job, store: Store) -> set[str]:
    """Write index.html from the layers' records; returns the layers whose records are unreadable.

    If that set is not empty, index.html is not written and the unreadable records are deleted.
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
    """A tile's pixels and record, no pixels if it failed, or None if it has to be rendered again."""
    reason = reasons.get(job.tiles.number(layer.name, filter_))
    if reason is not None:
        return None, _failure(job, layer, filter_, reason, store)
    key = keys.tile(job.id, layer.name, filter_)
    data = store.get(key, max_bytes=max_bytes(job.recipe.tile_px) + 1)
    if data is None:
        return None
    try:
        return decode_tile_of(job, layer.name, filter_, data)
    except CorruptTile:
        # A picture is kept until another replaces it: a later version may have written it.
        if not is_picture(data):
            store.delete(key)
        return None


def _failure(job: Job, layer: Layer, filter_: int, reason: str, store: Store) -> FailureRecord:
    """The stored failure record, or one made from the ledger's ``reason`` if that is missing or unreadable."""
    data = store.get(keys.failed(job.id, layer.name, filter_), max_bytes=MAX_FAILURE_BYTES)
    try:
        return decode(FailureRecord, data or b"", "a failure")
    except CorruptJob:
        return FailureRecord(job=job.id, layer=layer.name, filter=filter_, reason=reason, attempts=0)
