"""From stored tiles to contact sheets, records and the gallery page."""

import json
import tempfile
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from producer.collector.contact_sheet import bands, fit, layout
from producer.collector.gallery import page
from producer.collector.png_writer import PngWriter
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
    failed tiles to the reason. ``renew_lock`` is called once per row of the sheet; what it raises ends the assembly.
    Holds the tiles of one row in memory.
    """
    numbers = [str(filter_) for filter_ in layer.selected]
    plan = layout(job.grid, len(numbers), job.recipe.tile_px, numbers)
    records: dict[int, TileRecord | FailureRecord] = {}
    broken: set[int] = set()

    def rows(pool: ThreadPoolExecutor) -> "Iterator[list[tuple[NDArray[np.uint8] | None, str] | None]]":
        for number in range(plan.rows):
            renew_lock()
            filters = [None if place is None else layer.selected[place] for place in plan.row(number)]
            entries = pool.map(lambda filter_: _read(job, layer, filter_, reasons, plan.tile_px, store), filters)
            row: list[tuple[NDArray[np.uint8] | None, str] | None] = []
            for filter_, entry in zip(filters, entries, strict=True):
                if filter_ is None:
                    row.append(None)
                elif entry is None:
                    broken.add(filter_)
                    row.append(None)
                else:
                    records[filter_] = entry[1]
                    row.append((entry[0], entry[1].status))
            yield row

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(READERS) as pool:
        path = Path(folder) / "sheet.png"
        with path.open("wb") as file:
            height, width = plan.size_px
            writer = PngWriter(file, width, height, plan.text)
            for band in bands(plan, rows(pool)):
                writer.write(band)
            writer.close()
        if broken:
            return broken
        store.put_file(keys.grid(job.id, layer.name), path, "image/png")
    content = {
        "job": job.id,
        "layer": layer.name,
        "aliases": list(layer.aliases),
        "sheet_tile_px": list(plan.tile_px),
        "filters": [records[filter_].model_dump(mode="json") for filter_ in layer.selected],
    }
    # Written last: a layer counts as assembled once its records exist.
    store.put(keys.records(job.id, layer.name), json.dumps(content, indent=1).encode(), "application/json")
    return broken


def write_gallery(job: Job, store: Store, given_up: Collection[str] = ()) -> set[str]:
    """Write index.html from the layers' records; returns the layers whose records are unreadable.

    If that set is not empty, index.html is not written and the unreadable records are deleted. Layers that were
    ``given_up`` have no records.
    """
    statuses: dict[tuple[str, int], str] = {}
    reasons: dict[tuple[str, int], str] = {}
    unreadable: set[str] = set()
    for layer in (layer for layer in job.layers if layer.name not in given_up):
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
    job: Job, layer: Layer, filter_: int | None, reasons: dict[int, str], tile_px: tuple[int, int], store: Store
) -> "tuple[NDArray[np.uint8] | None, TileRecord | FailureRecord] | None":
    """A tile's pixels at ``tile_px`` and its record, no pixels if it failed, or None if it has to be rendered again."""
    if filter_ is None:
        return None
    reason = reasons.get(job.tiles.number(layer.name, filter_))
    if reason is not None:
        return None, _failure(job, layer, filter_, reason, store)
    key = keys.tile(job.id, layer.name, filter_)
    data = store.get(key, max_bytes=max_bytes(job.recipe.tile_px) + 1)
    if data is None:
        return None
    try:
        pixels, record = decode_tile_of(job, layer.name, filter_, data)
    except CorruptTile:
        # A picture is kept until another replaces it: a later version may have written it.
        if not is_picture(data):
            store.delete(key)
        return None
    return fit(pixels, tile_px), record


def _failure(job: Job, layer: Layer, filter_: int, reason: str, store: Store) -> FailureRecord:
    """The stored failure record, or one made from the ledger's ``reason`` if that is missing or unreadable."""
    data = store.get(keys.failed(job.id, layer.name, filter_), max_bytes=MAX_FAILURE_BYTES)
    try:
        return decode(FailureRecord, data or b"", "a failure")
    except CorruptJob:
        return FailureRecord(job=job.id, layer=layer.name, filter=filter_, reason=reason, attempts=0)
