"""A farm that renders for SOAK_MINUTES (3 for a try): memory and descriptors of its processes must not grow."""

import os
import statistics
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.fleet import Fleet, descendants, wait_for
from tests.e2e.whole import has_ended

MINUTES = float(os.environ.get("SOAK_MINUTES", "30"))

#: Allowed growth between the second quarter and the last: allocator noise, and connections that open and close.
MORE_MB, MORE_DESCRIPTORS = 40.0, 8

TILES = ("squeezenet1_1", "--weights", "none", "--layers", "features.0")
RECIPE = (*TILES, "--size", "32", "--method", "notebook", "--steps", "4")


def usage(pid: int) -> tuple[float, int]:
    """Resident megabytes and open descriptors of a process."""
    status = (Path("/proc") / str(pid) / "status").read_text()
    kilobytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
    return kilobytes / 1024, len(list((Path("/proc") / str(pid) / "fd").iterdir()))


def watched(worker: "subprocess.Popen[bytes]", collector: "subprocess.Popen[bytes]") -> dict[str, int]:
    """Name of each process -> its id."""
    celery = descendants(worker.pid)[0]
    children = {(Path("/proc") / str(pid) / "cmdline").read_bytes(): pid for pid in descendants(celery)}
    renderer = next(pid for command, pid in children.items() if b"spawn_main" in command)
    return {"collector": collector.pid, "supervisor": worker.pid, "celery": celery, "renderer": renderer}


@pytest.mark.soak
@pytest.mark.timeout(int(MINUTES * 60) + 600)
def test_nothing_grows_while_a_farm_works(farm: Fleet) -> None:
    # Given a worker and a collector that have rendered one job
    collector, worker = farm.start("collector"), farm.start("worker", "--batch", "8")
    first = farm.submit(*RECIPE, "--seed", "0")["job"]
    wait_for("the first job to end", lambda: has_ended(farm, first), 180)
    processes = watched(worker, collector)
    samples: dict[str, list[tuple[float, int]]] = {name: [] for name in processes}

    # When they render one job after the other
    deadline, seed = time.monotonic() + 60 * MINUTES, 0
    while time.monotonic() < deadline:
        seed += 1
        job_id = farm.submit(*RECIPE, "--seed", str(seed))["job"]
        wait_for("a job to end", lambda job_id=job_id: has_ended(farm, job_id), 180)  # type: ignore[misc]
        for name, pid in processes.items():
            samples[name].append(usage(pid))

    # Then they are the same processes, and none holds more memory or descriptors than after its warm-up
    assert seed >= 8, "too few jobs to tell growth from the warm-up; raise SOAK_MINUTES"
    assert watched(worker, collector) == processes
    quarter = len(samples["celery"]) // 4
    report = {}
    for name, series in samples.items():
        early, late = series[quarter : 2 * quarter], series[-quarter:]
        more_mb = statistics.median(mb for mb, _ in late) - statistics.median(mb for mb, _ in early)
        more_descriptors = max(count for _, count in late) - max(count for _, count in early)
        report[name] = f"{early[0][0]:.0f} MB and {more_mb:+.1f}, {early[0][1]} descriptors and {more_descriptors:+d}"
        assert more_mb <= MORE_MB, report
        assert more_descriptors <= MORE_DESCRIPTORS, report
    (farm.folder / "report").write_text("\n".join([f"{seed} jobs", *(f"{k}: {v}" for k, v in report.items())]))

    # And no message is left
    assert farm.redis.hlen(farm.names.unacked) == 0
    assert farm.redis.zcard(farm.names.unacked_index) == 0
    assert farm.outstanding() == 0
    # And all keys in Redis are ours or Kombu's
    assert all(b"filterfarm" in key or b"_kombu" in key for key in farm.redis.scan_iter())
