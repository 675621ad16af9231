"""From the stored tiles of a complete layer to its contact sheet, records and gallery objects."""

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from producer.collector.contact_sheet import bands, fit, layout
from producer.collector.png_writer import PngWriter
from producer.collector.tile_reader import read_tile
from producer.gallery.documents import LayerFacts
from producer.gallery.layer_objects import Entry, entry, layer_cells, layer_objects
from workers.clients.storage import READERS, Store
from workers.contract import keys
from workers.contract.job import Job, Layer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def assemble(
    job: Job, layer: Layer, reasons: dict[int, str], store: Store, renew_lock: Callable[[], None]
) -> LayerFacts | set[int]:
    """Write the layer's gallery objects and its contact sheet.

    Returns what the gallery says of the layer, or the filters whose tile is missing or unreadable. If there are any,
    nothing is written, and tiles that are no PNG are deleted. ``reasons`` maps the numbers of failed tiles to the
    reason. ``renew_lock`` is called once per row of the sheet and per object; what it raises ends the assembly. Holds
    the tiles of one row in memory, and the thumbnails of all.
    """
    numbers = [str(filter_) for filter_ in layer.selected]
    plan = layout(job.grid, len(numbers), job.recipe.tile_px, numbers)
    cells = layer_cells(job, layer)
    entries: dict[int, Entry] = {}
    broken: set[int] = set()

    def read(filter_: int | None) -> "tuple[NDArray[np.uint8] | None, Entry] | None":
        if filter_ is None:
            return None
        tile = read_tile(job, layer, filter_, reasons, store, delete_garbage=True)
        if tile is None:
            return None
        pixels, record = tile
        return None if pixels is None else fit(pixels, plan.tile_px), entry(record, pixels, cells)

    def rows(pool: ThreadPoolExecutor) -> "Iterator[list[tuple[NDArray[np.uint8] | None, str] | None]]":
        for number in range(plan.rows):
            renew_lock()
            filters = [None if place is None else layer.selected[place] for place in plan.row(number)]
            row: list[tuple[NDArray[np.uint8] | None, str] | None] = []
            for filter_, found in zip(filters, pool.map(read, filters), strict=True):
                if filter_ is None:
                    row.append(None)
                elif found is None:
                    broken.add(filter_)
                    row.append(None)
                else:
                    entries[filter_] = found[1]
                    row.append((found[0], found[1].record.status))
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
        objects, facts = layer_objects(job, layer, entries, sheet_tile_px=plan.tile_px)
        for made in objects:
            renew_lock()
            store.put(made.key, made.body, made.content_type)
        # Written last: a layer counts as assembled once its sheet exists beside complete records.
        renew_lock()
        store.put_file(keys.grid(job.id, layer.name), path, "image/png")
    return facts
