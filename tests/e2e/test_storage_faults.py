"""An object store that fails: tiles are acknowledged only once stored, none is lost, and status reports the reason."""

import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.fleet import Fleet, descendants, fleet, wait_for
from tests.e2e.whole import check_everything, has_ended, stored
from tests.s3proxy import S3Proxy, s3_proxy
from workers.contract.tile_png import decode_tile

#: Batch size of a slow worker, in tiles.
BATCH = 4
JOB = ("squeezenet1_1", "--weights", "none", "--layers", "features.0", "--size", "32", "--steps", "20")

#: Allowed growth of a worker's memory while the store fails. The tiles it holds are 3 kB each.
MOST_GROWTH_MB = 64


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[tuple[Fleet, S3Proxy]]:
    """A fleet whose processes reach the store through a proxy. The test itself accesses the store directly."""
    with fleet(tmp_path, "rclone") as farm, s3_proxy(farm.endpoint) as proxy:
        farm.environ["AWS_ENDPOINT_URL_S3"] = proxy.endpoint
        yield farm, proxy


class Watch:
    """Samples messages, stored tiles and memory five times a second until the block ends."""

    def __init__(self, farm: Fleet, job: str, worker: int) -> None:
        self._farm, self._job, self._worker = farm, job, worker
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._loop)
        #: samples in which a tile was neither stored nor in a message
        self.lost: list[tuple[int, int]] = []
        self.most_in_flight = 0
        self.rss_mb: list[float] = []

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _loop(self) -> None:
        folder = self._farm.folder / "store" / "data" / "pictures" / "of" / "filters" / self._job / "tiles"
        while not self._done.is_set():
            # A message is in neither list for a moment while Kombu moves it. A lost message is so a second later, too.
            if sum(self._count(folder)) < 64 and not self._done.wait(1.0) and sum(found := self._count(folder)) < 64:
                self.lost.append(found)
            self.most_in_flight = max(self.most_in_flight, int(self._farm.redis.hlen(self._farm.names.unacked)))
            self.rss_mb.append(_rss_mb(self._worker))
            self._done.wait(0.2)

    def _count(self, folder: Path) -> tuple[int, int]:
        """Messages, then stored tiles: in this order, a tile stored in between is counted twice, not zero times."""
        return self._farm.outstanding(), len(list(folder.glob("*/*.png")))


def _rss_mb(pid: int) -> float:
    """Resident memory of a process and its descendants, in MB."""
    total = 0.0
    for one in [pid, *descendants(pid)]:
        try:
            text = (Path("/proc") / str(one) / "status").read_text()
        except OSError:
            continue
        total += sum(float(kb) for kb in re.findall(r"VmRSS:\s+(\d+) kB", text)) / 1024
    return total


def _attempts(farm: Fleet, job: str) -> set[int]:
    tiles = [body for key, (_, body) in farm.objects().items() if key.startswith(f"{job}/tiles/")]
    assert len(tiles) == 64
    return {decode_tile(body, (32, 32))[1].attempts for body in tiles}


def _check_outage(failing: tuple[Fleet, S3Proxy], *, down_s: float, overloaded: float, delay_s: float) -> None:
    farm, proxy = failing
    # Given a job in progress
    farm.start("collector")
    worker = farm.start_slow_worker(batch_s=0.5)
    job = farm.submit(*JOB)["job"]
    wait_for("the first tiles", lambda: farm.log(worker).count("rendered job=") >= 2, 90)

    # When the store is down for a while, then slow, and answers a part of the requests with 503
    with Watch(farm, job, worker.pid) as watch:
        before_mb = max(watch.rss_mb, default=_rss_mb(worker.pid))
        proxy.down, began = True, time.time()
        time.sleep(down_s)
        asked = proxy.since(began)
        proxy.down = False
        proxy.overloaded, proxy.delay_s = overloaded, delay_s
        wait_for("all tiles", lambda: stored(farm, job) == 64, 240)
        proxy.overloaded, proxy.delay_s = 0.0, 0.0
        wait_for("the job to end", lambda: has_ended(farm, job), 90)

    # Then every tile was stored or in a message at all times, and all are stored now, each rendered in one attempt
    assert watch.lost == []
    check_everything(farm, job)
    assert _attempts(farm, job) == {1}
    status = farm.status(job)
    assert (status["state"], status["failed"], status["requeued"]) == ("finished", 0, 0)
    assert sum(status == 503 for _, _, _, status in proxy.requests) >= 1

    # And the worker held at most two batches, and sent at most a few requests a second
    assert watch.most_in_flight <= 2 * BATCH
    assert max(watch.rss_mb) - before_mb <= MOST_GROWTH_MB
    assert {status for *_, status in asked} == {0}
    sent = [
        (method, path) for _, method, path, _ in asked if method != "GET" and ("/tiles/" in path or "check" in path)
    ]
    assert 1 <= len(sent) <= 40 + 4 * down_s
    # And the collector, which reads tiles with eight threads and stores the gallery, did not send many more
    assert len(asked) - len(sent) <= 64 + 4 * down_s


def test_a_store_that_is_down_for_a_moment_and_then_overloaded_costs_only_time(
    failing: tuple[Fleet, S3Proxy],
) -> None:
    _check_outage(failing, down_s=8, overloaded=0.1, delay_s=0.1)


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_store_that_is_down_for_a_minute_then_overloaded_and_slow_costs_only_time(
    failing: tuple[Fleet, S3Proxy],
) -> None:
    _check_outage(failing, down_s=60, overloaded=0.1, delay_s=5.0)


def _check_reported(farm: Fleet, job: str, reason: str, **environ: str) -> None:
    """``status`` reports that the job has failed because of the object store."""
    done = farm.run("status", job, "--json", **environ)
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    assert status["state"] == "failed"
    assert reason in status["waiting_for"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("denied", "AccessDenied"), pytest.param("no_bucket", "no bucket 'pictures'", marks=pytest.mark.faults)],
)
def test_a_store_that_refuses_is_reported_by_status_and_the_job_resumes_when_access_is_restored(
    failing: tuple[Fleet, S3Proxy], fault: str, reason: str
) -> None:
    farm, proxy = failing
    # Given a job in progress
    collector, worker = farm.start("collector"), farm.start_slow_worker(batch_s=0.5)
    job = farm.submit(*JOB)["job"]
    wait_for("the first tiles", lambda: farm.log(worker).count("rendered job=") >= 2, 90)

    # When the store denies every request, or the bucket is missing
    setattr(proxy, fault, True)

    # Then its status reports that within a minute, to clients with access to the store and to those without
    wait_for("a worker's report", lambda: any(b"@" in name for name in farm.redis.hkeys(farm.names.storage)), 60)
    _check_reported(farm, job, reason)
    _check_reported(farm, job, reason, AWS_ENDPOINT_URL_S3=farm.endpoint)

    # And there are few requests and log lines, and no further batch on the device
    rendered, lines, mark = farm.log(worker).count("rendered job="), _lines(farm), time.time()
    time.sleep(10)
    assert len(proxy.since(mark)) <= 20
    assert _lines(farm) - lines <= 10
    assert farm.log(worker).count("rendered job=") - rendered <= 1

    # And when access is restored, the job resumes without a command and loses nothing
    setattr(proxy, fault, False)
    wait_for("the job to end", lambda: has_ended(farm, job), 120)
    check_everything(farm, job)
    status = farm.status(job)
    assert (status["state"], status["failed"], status["waiting_for"]) == ("finished", 0, "")
    assert _attempts(farm, job) == {1}
    assert collector.poll() is None
    assert worker.poll() is None


def _lines(farm: Fleet) -> int:
    return sum(path.read_text().count("\n") for path in farm.folder.glob("*.log"))
