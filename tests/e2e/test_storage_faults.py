"""An object store that fails: nothing is acknowledged before it is stored, nothing is lost, and status says why."""

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.fleet import Fleet, descendants, fleet, wait_for
from tests.e2e.whole import check_everything
from tests.s3proxy import S3Proxy, s3_proxy
from workers.contract.tile_png import decode_tile

BATCH = 4
JOB = ("squeezenet1_1", "--weights", "none", "--layers", "features.0", "--size", "32", "--steps", "20")

#: What Python and torch may add while a worker holds all the tiles it may; each is 3 kB.
MOST_GROWTH_MB = 64


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[tuple[Fleet, S3Proxy]]:
    """A fleet whose processes reach the store through a proxy; what the test itself asks the store goes past it."""
    with fleet(tmp_path, "rclone") as farm, s3_proxy(farm.endpoint) as proxy:
        farm.environ["AWS_ENDPOINT_URL_S3"] = proxy.endpoint
        yield farm, proxy


class Watch:
    """Looks after the farm's promises, several times a second, until the block ends."""

    def __init__(self, farm: Fleet, job: str, worker: int) -> None:
        self._farm, self._job, self._worker = farm, job, worker
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._loop)
        #: moments at which a tile was neither stored nor in a message
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
            # A message is nowhere for a moment while Kombu takes it from its queue; one that is lost stays so.
            if sum(self._count(folder)) < 64 and not self._done.wait(1.0) and sum(found := self._count(folder)) < 64:
                self.lost.append(found)
            self.most_in_flight = max(self.most_in_flight, int(self._farm.redis.hlen("unacked")))
            self.rss_mb.append(_rss_mb(self._worker))
            self._done.wait(0.2)

    def _count(self, folder: Path) -> tuple[int, int]:
        """Messages, then stored tiles: what is stored in between is counted twice, and never not at all."""
        return self._farm.outstanding(), len(list(folder.glob("*/*.png")))


def _rss_mb(pid: int) -> float:
    """Memory of a process and all below it."""
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


def _survives(failing: tuple[Fleet, S3Proxy], *, down_s: float, overloaded: float, delay_s: float) -> None:
    farm, proxy = failing
    # Given a job under way
    farm.start("collector")
    worker = farm.start("worker", "--batch", str(BATCH))
    job = farm.submit(*JOB)["job"]
    wait_for("the first tiles", lambda: farm.log(worker).count("rendered job=") >= 2, 90)

    # When the store is gone for a while, comes back slow, and refuses a part of what it is asked
    with Watch(farm, job, worker.pid) as watch:
        before_mb = max(watch.rss_mb, default=_rss_mb(worker.pid))
        proxy.down, began = True, time.time()
        time.sleep(down_s)
        asked = [status for _, _, _, status in proxy.since(began)]
        proxy.down = False
        proxy.overloaded, proxy.delay_s = overloaded, delay_s
        wait_for("all tiles", lambda: farm.redis.bitcount(f"filterfarm:{job}:done") == 64, 240)
        proxy.overloaded, proxy.delay_s = 0.0, 0.0
        wait_for("the job to end", lambda: not farm.redis.sismember("filterfarm:jobs", job), 90)

    # Then every tile was at all times stored or in a message, and all are there now, each made in one attempt
    assert watch.lost == []
    check_everything(farm, job)
    assert _attempts(farm, job) == {1}
    status = farm.status(job)
    assert (status["state"], status["failed"], status["requeued"]) == ("finished", 0, 0)
    assert sum(status == 503 for _, _, _, status in proxy.requests) >= 1

    # And the worker held no more than it may, and asked again a few times a second at most
    assert watch.most_in_flight <= 2 * BATCH
    assert max(watch.rss_mb) - before_mb <= MOST_GROWTH_MB
    assert set(asked) == {0}
    assert 1 <= len(asked) <= 40 + 4 * down_s


def test_a_store_that_is_down_for_a_moment_and_then_overloaded_costs_only_time(
    failing: tuple[Fleet, S3Proxy],
) -> None:
    _survives(failing, down_s=8, overloaded=0.1, delay_s=0.1)


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_store_that_is_down_for_a_minute_then_overloaded_and_slow_costs_only_time(
    failing: tuple[Fleet, S3Proxy],
) -> None:
    _survives(failing, down_s=60, overloaded=0.1, delay_s=5.0)


def _is_said(farm: Fleet, job: str, reason: str, **environ: str) -> None:
    done = farm.run("status", job, **environ)
    assert done.returncode == 0, done.stderr
    assert f"{job}: failed: object store error: " in done.stdout
    assert reason in done.stdout


def _await_a_worker_that_says_so(farm: Fleet) -> None:
    wait_for("a worker to say so", lambda: any(b"@" in name for name in farm.redis.hkeys("filterfarm:storage")), 60)


@pytest.mark.parametrize(
    ("fault", "said"),
    [("denied", "AccessDenied"), pytest.param("no_bucket", "no bucket 'pictures'", marks=pytest.mark.faults)],
)
def test_a_store_that_refuses_is_told_by_status_and_the_job_goes_on_when_it_is_mended(
    failing: tuple[Fleet, S3Proxy], fault: str, said: str
) -> None:
    farm, proxy = failing
    # Given a job under way
    collector, worker = farm.start("collector"), farm.start("worker", "--batch", str(BATCH))
    job = farm.submit(*JOB)["job"]
    wait_for("the first tiles", lambda: farm.log(worker).count("rendered job=") >= 2, 90)

    # When the store refuses everything, or the bucket is gone
    setattr(proxy, fault, True)

    # Then its status says so within a minute, to those whom the store lets in and to those whom it does not
    _await_a_worker_that_says_so(farm)
    _is_said(farm, job, said)
    _is_said(farm, job, said, AWS_ENDPOINT_URL_S3=farm.endpoint)

    # And nobody runs hot: neither with requests, nor in the logs, nor on the device
    rendered, lines, mark = farm.log(worker).count("rendered job="), _lines(farm), time.time()
    time.sleep(10)
    assert len(proxy.since(mark)) <= 20
    assert _lines(farm) - lines <= 10
    assert farm.log(worker).count("rendered job=") - rendered <= 1

    # And when it is mended, the job goes on by itself and loses nothing
    setattr(proxy, fault, False)
    wait_for("the job to end", lambda: not farm.redis.sismember("filterfarm:jobs", job), 120)
    check_everything(farm, job)
    status = farm.status(job)
    assert (status["state"], status["failed"], status["waiting_for"]) == ("finished", 0, "")
    assert _attempts(farm, job) == {1}
    assert collector.poll() is None
    assert worker.poll() is None


def _lines(farm: Fleet) -> int:
    return sum(path.read_text().count("\n") for path in farm.folder.glob("*.log"))
