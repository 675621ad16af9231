"""Faults of collectors: killed while they assemble, two at the same time, and an empty Redis."""

from collections import Counter
from pathlib import Path

import pytest

from tests.e2e.fleet import fleet, kill_group, wait_for
from tests.e2e.whole import check_everything, has_ended, stored
from tests.s3proxy import s3_proxy

JOB = (
    "squeezenet1_1",
    "--weights",
    "none",
    "--layers",
    "features.0,features.3.squeeze",
    "--size",
    "32",
    "--steps",
    "2",
)


@pytest.mark.faults
def test_a_collector_that_is_killed_while_it_assembles_is_replaced_and_each_sheet_is_complete(tmp_path: Path) -> None:
    with fleet(tmp_path, "rclone") as farm, s3_proxy(farm.endpoint) as proxy:
        # Given a job of which all 80 tiles are stored, and a store that is slow for its collectors
        worker = farm.start("worker", "--batch", "8")
        job = farm.submit(*JOB)["job"]
        wait_for("all tiles", lambda: stored(farm, job) == 80, 120)
        farm.environ["AWS_ENDPOINT_URL_S3"] = proxy.endpoint
        proxy.delay_s = 0.1
        sheets = (f"{job}/grids/features.0.png", f"{job}/grids/features.3.squeeze.png")

        # When two collectors run, and the active one is killed while it reads tiles, then after the first sheet
        first, second = farm.start("collector"), farm.start("collector")
        wait_for("some tiles to be read", lambda: len(_paths(proxy.requests, "GET", "/tiles/")) >= 10, 60)
        assert not any(key in farm.objects() for key in sheets)
        standby = "standby lock="
        wait_for("one of them to stand by", lambda: standby in farm.log(first) or standby in farm.log(second), 60)
        active, waiting = (second, first) if standby in farm.log(first) else (first, second)
        kill_group(active)
        third = farm.start("collector")
        wait_for("the first sheet", lambda: any(key in farm.objects() for key in sheets), 120)
        active = waiting if "assembled job=" in farm.log(waiting) or standby in farm.log(third) else third
        kill_group(active)
        farm.start("collector")

        # Then the next one completes the job: each sheet is complete and correct, and there is no other object
        wait_for("the job to end", lambda: has_ended(farm, job), 120)
        check_everything(farm, job)
        written = Counter(_paths(proxy.requests, "PUT", "/grids/"))
        assert len(written) == 2
        # A collector killed between sheet and records leaves the sheet to be made again
        assert sum(written.values()) <= 3

        # And no tile was enqueued or rendered again
        assert farm.status(job)["requeued"] == 0
        assert farm.log(worker).count("rendered job=") <= 12


@pytest.mark.faults
def test_two_collectors_enqueue_lost_tiles_once(tmp_path: Path) -> None:
    with fleet(tmp_path, "rclone") as farm:
        # Given a job whose messages were lost, and two collectors
        farm.start("collector"), farm.start("collector")
        job = farm.submit(*JOB)["job"]
        farm.redis.delete(farm.names.queue(job))

        # When they find that, and a third one is started and killed meanwhile
        wait_for("the messages to be enqueued again", lambda: farm.redis.llen(farm.names.queue(job)), 60)
        kill_group(farm.start("collector"))
        another = farm.start("collector")
        wait_for("a collector to be active", lambda: farm.redis.exists(farm.names.collector), 60)

        # Then there is one message for each tile, and still so some seconds later
        for _ in range(5):
            assert farm.status(job)["queued"] == 80
        assert farm.status(job)["requeued"] == 80

        # And the job completes
        farm.start("worker", "--batch", "8")
        wait_for("the job to end", lambda: has_ended(farm, job), 120)
        check_everything(farm, job)
        assert another.poll() is None


@pytest.mark.faults
def test_a_redis_that_comes_back_empty_under_load_is_filled_again_and_no_stored_tile_is_rendered_again(
    tmp_path: Path,
) -> None:
    with fleet(tmp_path, "rclone") as farm:
        # Given a job in progress
        collector, worker = farm.start("collector"), farm.start("worker", "--batch", "4")
        job = farm.submit(*JOB[:-1], "60")["job"]
        wait_for("the first tiles", lambda: farm.log(worker).count("rendered job=") >= 3, 90)

        # When Redis is emptied
        farm.redis.flushall()
        before = {key: when for key, (when, _) in farm.objects().items() if "/tiles/" in key}
        assert 0 < len(before) < 80

        # Then the collector finds the job in the bucket, and the job completes
        finished = f"finished job={job}"
        wait_for("the job to end", lambda: finished in farm.log(collector), 200)
        check_everything(farm, job)
        after = farm.objects()
        assert {key: after[key][0] for key in before} == before


def _paths(requests: list[tuple[float, str, str, int]], method: str, part: str) -> list[str]:
    return [path for _, how, path, status in list(requests) if how == method and part in path and status == 200]
