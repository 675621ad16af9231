"""Faults of a submission: two at the same time, every message three times, and a Redis that is full."""

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import close_pools
from tests.e2e.fleet import Fleet, fleet, wait_for
from tests.e2e.whole import check_everything, has_ended
from workers.clients.broker import enqueue, make_app
from workers.contract.errors import ExitCode
from workers.contract.job import Job, Task
from workers.contract.settings import Settings

RECIPE = ("squeezenet1_1", "--weights", "none", "--size", "32")
JOB = (*RECIPE, "--layers", "features.0", "--steps", "10")


def _send(farm: Fleet, job: Job) -> None:
    """Enqueue one more message for each tile."""
    app = make_app(Settings(broker_url=farm.environ["FILTERFARM_BROKER_URL"]), farm.names)
    enqueue(app, farm.names, (Task(job=job.id, layer=layer, filter=filter_) for layer, filter_ in job.tiles))
    close_pools()


def test_a_job_submitted_twice_at_once_with_every_message_sent_three_times_is_rendered_once(farm: Fleet) -> None:
    # Given two submissions of one job at the same time
    submitters = [farm.start("submit", *JOB) for _ in range(2)]
    assert [process.wait(90) for process in submitters] == [0, 0], "".join(map(farm.log, submitters))
    (name,) = (bytes(name).decode() for name in farm.redis.sscan_iter(farm.names.jobs))
    job = Job.model_validate_json(farm.objects()[f"{name}/job.json"][1])
    # And at least three messages for each tile
    while farm.outstanding() < 3 * 64:
        _send(farm, job)

    # When two workers start
    farm.start("collector")
    workers = [farm.start("worker", "--batch", "4") for _ in range(2)]
    wait_for("the job to end", lambda: has_ended(farm, name), 120)

    # Then the bucket is as if each had been sent once, and at most 5 % of the tiles were rendered twice
    check_everything(farm, name)
    rendered = re.findall(r"rendered job=\S+ layer=\S+ filters=(\d+)", "".join(map(farm.log, workers)))
    assert 64 <= sum(map(int, rendered)) <= 1.05 * 64
    status = farm.status(name)
    assert (status["stored"], status["failed"], status["requeued"]) == (64, 0, 0)
    # And the remaining messages are dropped
    wait_for("the remaining messages to be dropped", lambda: farm.outstanding() == 0, 30)


#: What the collector writes at the root of the bucket.
LIST_OF_JOBS = {"index.html", "index.js", "index.json", "assets"}


def _check_full_redis(farm: Fleet, fill: Callable[[], None], empty: Callable[[], None]) -> None:
    # Given a job in progress
    farm.start("collector")
    worker = farm.start("worker", "--batch", "4")
    job = farm.submit(*JOB)["job"]
    wait_for("the first tiles", lambda: farm.log(worker).count("rendered job=") >= 1, 90)

    # When Redis is full for 10 s, and another job is submitted
    fill()
    began = time.monotonic()
    refused = farm.run("submit", *JOB, "--seed", "1")
    time.sleep(max(0.0, began + 10 - time.monotonic()))
    empty()

    # Then that is refused with one line and an exit code of its own, and no object of it is stored
    assert refused.returncode == ExitCode.BROKER_FULL, refused.stderr
    assert re.fullmatch(r"filterfarm: Redis at \S+ is full .*\n", refused.stderr)
    assert {key.split("/")[0] for key in farm.objects()} - LIST_OF_JOBS == {job}

    # And the first job completes
    wait_for("the job to end", lambda: has_ended(farm, job), 120)
    check_everything(farm, job)
    status = farm.status(job)
    assert (status["state"], status["failed"]) == ("finished", 0)
    wait_for("the last messages to be acknowledged", lambda: farm.outstanding() == 0, 30)


def test_a_redis_without_memory_is_reported_in_one_line_and_the_job_continues_afterwards(farm: Fleet) -> None:
    _check_full_redis(farm, lambda: _set_memory(farm, "1"), lambda: _set_memory(farm, "0"))


def _set_memory(farm: Fleet, most: str) -> None:
    farm.redis.config_set("maxmemory", most)


@pytest.mark.faults
def test_a_redis_whose_disk_is_full_is_reported_in_one_line_and_the_job_continues_afterwards(tmp_path: Path) -> None:
    # Given a Redis with a small disk of its own
    folder = tmp_path / "queue"
    folder.mkdir()
    with _disk(folder, megabytes=16), fleet(tmp_path, "rclone") as farm:
        filler = folder / "filler"

        def fill() -> None:
            with filler.open("wb", buffering=0) as file:
                for size in (65536, 4096, 64, 1):
                    try:
                        while file.write(b"x" * size) == size:
                            pass
                    except OSError:
                        continue
            wait_for("Redis to fail", lambda: farm.redis.info("persistence")["aof_last_write_status"] == "err", 30)

        _check_full_redis(farm, fill, filler.unlink)


@contextmanager
def _disk(folder: Path, *, megabytes: int) -> Iterator[None]:
    """A file system of that size at ``folder``. Only root can mount one."""
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("mounting a file system needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
