"""What a job of many tiles costs producer, collector and Redis: ``make bench-scale``.

No tile is rendered. Real servers: Valkey and rclone. Each size has servers and a process of its own. Between two rounds
of the collector, as many tiles end as fast workers render in a second. Prints a table; asserts nothing.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import cast

import numpy as np
import redis

from producer.collector.collector import Collector
from producer.jobs.status import job_status
from producer.jobs.submit import submit
from tests.jobs import sample_job
from tests.servers import rclone, valkey
from workers.clients.broker import connect, make_app
from workers.clients.ledger import Ledger
from workers.clients.storage import Store
from workers.contract.job import Job
from workers.contract.keys import RedisKeys
from workers.contract.settings import Settings

#: tiles -> layers and filters of each. The first is as large as Inception v3.
SIZES = {17_216: (64, 269), 100_000: (100, 1_000), 1_000_000: (100, 10_000)}

_NAMES = RedisKeys("scale")

#: Rounds of the collector, and tiles that end between two of them.
_ROUNDS, _TILES_A_ROUND = 60, 400


def main() -> None:
    """Measure each size in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=int, choices=sorted(SIZES), help="measure one size and print JSON")
    arguments = parser.parse_args()
    if arguments.tiles:
        print(json.dumps(_measure(*SIZES[arguments.tiles])))
        return
    header = ("tiles", "submit s", "round ms", "longest ms", "sync s", "status s", "Redis MB", "process MB")
    print("".join(f"{name:>12}" for name in header))
    for tiles in SIZES:
        command = [sys.executable, "-m", "tests.benchmarks.scale", "--tiles", str(tiles)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        row = json.loads(done.stdout)
        print(f"{row.pop('tiles'):12,d}" + "".join(f"{value:12.2f}" for value in row.values()), flush=True)


def _measure(layers: int, filters: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        one, two = Path(folder) / "queue", Path(folder) / "store"
        one.mkdir()
        two.mkdir()
        with valkey(one) as url, rclone(two) as (endpoint, key, secret):
            os.environ.update(AWS_ACCESS_KEY_ID=key, AWS_SECRET_ACCESS_KEY=secret)
            settings = Settings(broker_url=url, bucket_url="s3://pictures", endpoint_url=endpoint)
            return _use(settings, layers, filters)


def _use(settings: Settings, layers: int, filters: int) -> dict[str, float]:
    store, client = Store(settings, retry_s=10), connect(settings, retries=1)
    store.make_bucket()
    ledger, app = Ledger(client, _NAMES), make_app(settings, _NAMES)
    job = sample_job(*(f"layer{number:03d}" for number in range(layers)), filters=f"0-{filters - 1}", channels=filters)
    began = time.perf_counter()
    submit(job, None, store=store, ledger=ledger, app=app)
    submit_s = time.perf_counter() - began
    collector = Collector(settings, store=store, ledger=ledger, app=app)
    collector._lock.acquire()
    rounds_ms, ended = [], 0
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        collector.run_pass()
        rounds_ms.append(1e3 * (time.perf_counter() - began))
        ended += _end_tiles(client, job, ended)
    half = np.zeros(len(job.tiles), bool)
    half[::2] = True
    began = time.perf_counter()
    ledger.sync(job, half, {}, ledger.done_bits(job.id))
    sync_s = time.perf_counter() - began
    began = time.perf_counter()
    job_status(job, store, ledger)
    status_s = time.perf_counter() - began
    return {
        "tiles": len(job.tiles),
        "submit_s": submit_s,
        "round_ms": statistics.mean(rounds_ms),
        "longest_ms": max(rounds_ms),
        "sync_s": sync_s,
        "status_s": status_s,
        "redis_mb": int(client.info("memory")["used_memory_peak"]) / 1e6,
        "process_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def _end_tiles(client: "redis.Redis", job: Job, first: int) -> int:
    """Take messages from the queue, oldest first, and mark their tiles as done, as workers do; returns how many.

    The first tile of each layer stays in flight, so that no layer is complete. ``first``: number of the next tile.
    """
    taken = cast("list[bytes]", client.rpop(_NAMES.queue(job.id), _TILES_A_ROUND) or [])
    pipe = client.pipeline()
    starts = set(job.tiles.starts.values())
    for number, message in enumerate(taken, start=first):
        if number in starts:
            pipe.hset(_NAMES.unacked, str(number), json.dumps([json.loads(message), "", _NAMES.queue(job.id)]))
        else:
            pipe.setbit(_NAMES.field(job.id, "done"), number, 1)
    pipe.execute()
    return len(taken)


if __name__ == "__main__":
    main()
