"""``python -m tests.integration.collector.large_sheet COUNT FOLDER``: assembles one layer under a limit of memory.

Its tiles have 1024 px. Prints how much the process grew, and the size of a tile on the sheet, as JSON.
"""

import json
import resource
import sys
from pathlib import Path
from typing import cast

import numpy as np

from producer.collector.assembly import assemble
from producer.collector.contact_sheet import layout
from producer.gallery.documents import LayerFacts
from tests.jobs import sample_job
from workers.clients.storage import Store
from workers.contract import keys
from workers.contract.job import Job
from workers.contract.records import TileRecord
from workers.contract.tile_png import encode_tile

_SIZE_PX = 1024

#: Bytes of address space beyond what the process has when it begins to assemble. Threads reserve some of it.
_MORE_BYTES = 900 << 20


class Tiles:
    """Stands for the bucket: makes tiles when they are read, and writes sheet and records into a folder."""

    def __init__(self, job: Job, folder: Path) -> None:
        self._job, self._folder = job, folder
        # Smooth, so that compressing two gigapixels takes seconds.
        self._pixels = np.broadcast_to(
            np.arange(_SIZE_PX, dtype=np.uint8)[:, None, None], (_SIZE_PX, _SIZE_PX, 3)
        ).copy()

    def get(self, key: str, *, max_bytes: int = 1 << 32) -> bytes:
        """One tile."""
        parsed = keys.parse_filter_key(key)
        assert parsed
        record = TileRecord(
            job=self._job.id, layer=parsed[0], filter=parsed[1], seed=0, status="live", start_activation=0.0,
            activation=1.0, stored_activation=1.0, restarts=0, steps=1, seconds=0.0, attempts=1, device="cpu",
            versions={},
        )  # fmt: skip
        return encode_tile(self._pixels, record)

    def put(self, key: str, body: bytes, content_type: str) -> None:
        """The records, and the gallery's objects."""
        name = "records.json" if key == keys.records(self._job.id, "features.0") else key.rpartition("/")[2]
        (self._folder / name).write_bytes(body)

    def put_file(self, key: str, path: Path, content_type: str) -> None:
        """The sheet."""
        path.rename(self._folder / "sheet.png")


def main() -> None:
    """Assemble the layer."""
    count, folder = int(sys.argv[1]), Path(sys.argv[2])
    job = sample_job(filters=f"0-{count - 1}", channels=count, size_px=_SIZE_PX)
    store = cast(Store, Tiles(job, folder))
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + _MORE_BYTES, in_use + _MORE_BYTES))
    made = assemble(job, job.layers[0], {}, store, lambda: None)
    assert isinstance(made, LayerFacts)
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) / 1024
    tile_px = layout(job.grid, count, job.recipe.tile_px).tile_px
    sys.stdout.write(json.dumps({"grown_mb": grown_mb, "tile_px": list(tile_px)}))


if __name__ == "__main__":
    main()
