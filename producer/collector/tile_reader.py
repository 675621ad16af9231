"""Reads the stored tile or failure of one filter."""

from typing import TYPE_CHECKING

from producer.gallery.documents import Record
from producer.jobs.inventory import MAX_FAILURE_BYTES
from workers.clients.storage import Store
from workers.contract import keys
from workers.contract.errors import CorruptJob, CorruptTile
from workers.contract.job import Job, Layer, decode
from workers.contract.records import FailureRecord
from workers.contract.tile_png import decode_tile_of, is_picture, max_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def read_tile(
    job: Job, layer: Layer, filter_: int, reasons: dict[int, str], store: Store, *, delete_garbage: bool = False
) -> "tuple[NDArray[np.uint8] | None, Record] | None":
    """A tile's pixels, (H, W, 3) uint8 RGB, and its record; no pixels if it failed, None if missing or unreadable.

    ``reasons``: numbers of failed tiles -> reason. ``delete_garbage``: delete a tile that is no PNG.
    """
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
        if delete_garbage and not is_picture(data):
            store.delete(key)
        return None


def _failure(job: Job, layer: Layer, filter_: int, reason: str, store: Store) -> FailureRecord:
    """The stored failure record, or one made from the ledger's ``reason`` if that is missing or unreadable."""
    data = store.get(keys.failed(job.id, layer.name, filter_), max_bytes=MAX_FAILURE_BYTES)
    try:
        return decode(FailureRecord, data or b"", "a failure")
    except CorruptJob:
        return FailureRecord(job=job.id, layer=layer.name, filter=filter_, reason=reason, attempts=0)
