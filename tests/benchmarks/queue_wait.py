"""How long a fast device waits for the queue: ``python -m tests.benchmarks.queue_wait``.

A real farm, whose render process sleeps as long as a batch takes on a GPU, instead of computing. The time of a tile is
that of its gradient steps in the table of ``counts.py``. Printed is the share of time in which the device has no batch,
from the end of the first batch to the begin of the last, and the processor time of each part of the farm. Queue,
worker, store and collector share this machine.
"""

import argparse
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.benchmarks.counts import STEPS
from tests.benchmarks.farm import cpu_s
from tests.e2e.fleet import descendants, fleet, wait_for
from tests.e2e.whole import has_ended
from tests.injection import into_renderer
from workers.clients.presence import Presence

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


#: Text in the command line of a process -> the part of the farm that it is; the first that is found.
_PARTS = {
    "spawn_main": "render process",
    "workers.runtime": "worker",
    "collector": "collector",
    "valkey": "queue",
    "rclone": "store",
}


def waiting_share(
    seconds_per_tile: float, batch: int, layers: str, processes: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Share of time without a batch, tiles a second, and their number; part of the farm -> processor ms per tile."""
    with TemporaryDirectory() as folder, fleet(Path(folder), "rclone") as farm:
        path = Path(folder) / "batches"
        stub = into_renderer(Path(folder) / "stub", _SLEEP.format(seconds=seconds_per_tile, path=str(path)))
        farm.start("collector")
        farm.start("worker", "--batch", str(batch), FILTERFARM_PROCESSES=str(processes), **stub)
        wait_for("workers", lambda: farm.has_id and len(Presence(farm.redis, farm.names).workers()) == processes, 120)
        before_s = _parts_s()
        job = farm.submit("vgg16", "--weights", "none", "--layers", layers)["job"]
        wait_for("the job to end", lambda: has_ended(farm, job), 900)
        spent_s = {part: seconds - before_s[part] for part, seconds in _parts_s().items()}
        batches = sorted(tuple(map(float, line.split())) for line in path.read_text().splitlines())
    first, last = batches[0][1], batches[-1][0]
    busy = sum(max(0.0, min(end, last) - max(begin, first)) for begin, end, _ in batches)
    tiles = sum(count for *_, count in batches[1:])
    found = {"waiting": 1 - busy / (last - first) / processes, "tiles_per_s": tiles / (last - first), "tiles": tiles}
    every = sum(count for *_, count in batches)
    return found, {part: 1e3 * seconds / every for part, seconds in spent_s.items()}


def _parts_s() -> dict[str, float]:
    """Part of the farm -> processor time of its processes so far."""
    found = dict.fromkeys(_PARTS.values(), 0.0)
    for pid in descendants(os.getpid()):
        try:
            command, seconds = Path(f"/proc/{pid}/cmdline").read_text(), cpu_s(pid)
        except OSError:  # it has just ended
            continue
        part = next((part for text, part in _PARTS.items() if text in command), None)
        if part is not None:
            found[part] += seconds
    return found


def main(arguments: list[str]) -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.queue_wait", description=__doc__)
    parser.add_argument("--ms-per-tile-and-step", type=float, required=True, help="from the table of counts.py")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--layers", default="all", help="layers of VGG16")
    options = parser.parse_args(arguments)
    seconds = 1e-3 * STEPS * options.ms_per_tile_and_step
    found, parts = waiting_share(seconds, options.batch, options.layers, options.processes)
    print(
        f"{options.ms_per_tile_and_step:g} ms per tile and step, batches of {options.batch}, {options.processes} "
        f"processes: the device waits {found['waiting']:.0%} of the time; {found['tiles_per_s']:.0f} tiles/s, "
        f"{found['tiles']:.0f} tiles\n"
        f"processor ms per tile: {', '.join(f'{part} {milliseconds:.2f}' for part, milliseconds in parts.items())}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
