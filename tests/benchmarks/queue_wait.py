"""How long a fast device waits for the queue: ``python -m tests.benchmarks.queue_wait``.

A real farm, whose render process sleeps as long as a batch takes on a GPU, instead of computing. The time of a tile is
that of its gradient steps in the table of ``counts.py``. Printed is the share of time in which the device has no batch,
from the end of the first batch to the begin of the last. Queue, worker, store and collector share this machine.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.benchmarks.counts import STEPS
from tests.e2e.fleet import fleet, wait_for
from tests.e2e.whole import has_ended
from tests.injection import into_renderer

#: Runs in place of the engine; writes begin, end and number of tiles of each batch.
_SLEEP = """
import numpy
from workers.rendering.tile import Tile
began = time.monotonic()
pixels = numpy.random.default_rng(0).integers(0, 255, (recipe.height_px, recipe.width_px, 3), numpy.uint8)
time.sleep({seconds!r} * len(filters))
tiles = [Tile(filter=filter_, pixels=pixels, status="live", start_activation=0.0, activation=1.0, stored_activation=1.0)
         for filter_ in filters]
print(began, time.monotonic(), len(filters), file=open({path!r}, "a"), flush=True)
return tiles
"""


def waiting_share(seconds_per_tile: float, batch: int, layers: str, processes: int) -> dict[str, float]:
    """Share of time without a batch, tiles a second, and their number."""
    with TemporaryDirectory() as folder, fleet(Path(folder), "rclone") as farm:
        path = Path(folder) / "batches"
        stub = into_renderer(Path(folder) / "stub", _SLEEP.format(seconds=seconds_per_tile, path=str(path)))
        farm.start("collector")
        farm.start("worker", "--batch", str(batch), FILTERFARM_PROCESSES=str(processes), **stub)
        job = farm.submit("vgg16", "--weights", "none", "--layers", layers)["job"]
        wait_for("the job to end", lambda: has_ended(farm, job), 900)
        batches = sorted(tuple(map(float, line.split())) for line in path.read_text().splitlines())
    first, last = batches[0][1], batches[-1][0]
    busy = sum(max(0.0, min(end, last) - max(begin, first)) for begin, end, _ in batches)
    tiles = sum(count for *_, count in batches[1:])
    return {"waiting": 1 - busy / (last - first) / processes, "tiles_per_s": tiles / (last - first), "tiles": tiles}


def main(arguments: list[str]) -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.queue_wait", description=__doc__)
    parser.add_argument("--ms-per-tile-and-step", type=float, required=True, help="from the table of counts.py")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--layers", default="all", help="layers of VGG16")
    options = parser.parse_args(arguments)
    seconds = 1e-3 * STEPS * options.ms_per_tile_and_step
    found = waiting_share(seconds, options.batch, options.layers, options.processes)
    print(
        f"{options.ms_per_tile_and_step:g} ms per tile and step, batches of {options.batch}, {options.processes} "
        f"processes: the device waits {found['waiting']:.0%} of the time; {found['tiles_per_s']:.0f} tiles/s, "
        f"{found['tiles']:.0f} tiles"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
