"""What can happen to collectors: killed while they assemble, and two at once."""

from collections import Counter
from pathlib import Path

import pytest

from tests.e2e.fleet import fleet, kill_group, wait_for
from tests.e2e.whole import check_everything
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
def test_a_collector_that_is_killed_while_it_assembles_is_replaced_and_each_sheet_is_whole(tmp_path: Path) -> None:
    with fleet(tmp_path, "rclone") as farm, s3_proxy(farm.endpoint) as proxy:
        # Given a job of which all 80 tiles are stored, and a store that is slow to its collectors
        worker = farm.start("worker", "--batch", "8")
        job = farm.submit(*JOB)["job"]
        wait_for("all tiles", lambda: farm.status(job)["stored"] == 80, 120)
        farm.environ["AWS_ENDPOINT_URL_S3"] = proxy.endpoint
        proxy.delay_s = 0.1
        sheets = (f"{job}/grids/features.0.png", f"{job}/grids/features.3.squeeze.png")

        # When two collectors run, and the one at work is killed: among the tiles, then behind the first sheet
        first, second = farm.start("collector"), farm.start("collector")
        wait_for("some tiles to be read", lambda: len(_paths(proxy.requests, "GET", "/tiles/")) >= 10, 60)
        assert not any(key in farm.objects() for key in sheets)
        waits = "standby lock="
        wait_for("one of them to wait", lambda: waits in farm.log(first) or waits in farm.log(second), 60)
        at_work, waiting = (second, first) if waits in farm.log(first) else (first, second)
        kill_group(at_work)
        third = farm.start("collector")
        wait_for("the first sheet", lambda: any(key in farm.objects() for key in sheets), 120)
        at_work = waiting if "assembled job=" in farm.log(waiting) or waits in farm.log(third) else third
        kill_group(at_work)
        farm.start("collector")

        # Then the next one makes the rest: each sheet is there, whole and right, and nothing else is
        wait_for("the job to end", lambda: not farm.redis.sismember("filterfarm:jobs", job), 120)
        check_everything(farm, job)
        written = Counter(_paths(proxy.requests, "PUT", "/grids/"))
        assert len(written) == 2
        # One that was killed between its sheet and its records leaves the sheet to be made again
        assert sum(written.values()) <= 3

        # And no tile was enqueued, nor rendered, again
        assert farm.status(job)["requeued"] == 0
        assert farm.log(worker).count("rendered job=") <= 12


@pytest.mark.faults
def test_two_collectors_enqueue_what_was_lost_once(tmp_path: Path) -> None:
    with fleet(tmp_path, "rclone") as farm:
        # Given a job whose messages were lost, and two collectors
        farm.start("collector"), farm.start("collector")
        job = farm.submit(*JOB)["job"]
        farm.redis.delete(f"filterfarm.render.{job}")

        # When they find that, and one of them is killed and started again meanwhile
        wait_for("the messages to be sent again", lambda: farm.status(job)["queued"] > 0, 60)
        kill_group(farm.start("collector"))
        collectors = farm.start("collector")
        wait_for("it to wait or to work", lambda: farm.redis.exists("filterfarm:collector"), 30)

        # Then there is one message for each tile, also a while later
        for _ in range(5):
            assert farm.status(job)["queued"] == 80
        assert farm.status(job)["requeued"] == 80

        # And the job completes
        farm.start("worker", "--batch", "8")
        wait_for("the job to end", lambda: not farm.redis.sismember("filterfarm:jobs", job), 120)
        check_everything(farm, job)
        assert collectors.poll() is None


@pytest.mark.faults
def test_a_queue_that_comes_back_empty_under_load_is_filled_again_and_no_stored_tile_is_rendered_again(
    tmp_path: Path,
) -> None:
    with fleet(tmp_path, "rclone") as farm:
        # Given a job under way
        collector, worker = farm.start("collector"), farm.start("worker", "--batch", "4")
        job = farm.submit(*JOB[:-1], "60")["job"]
        wait_for("the first tiles", lambda: farm.log(worker).count("rendered job=") >= 3, 90)

        # When the queue is empty from one moment to the next, and nobody does anything about it
        farm.redis.flushall()
        before = {key: when for key, (when, _) in farm.objects().items() if "/tiles/" in key}
        assert 0 < len(before) < 80

        # Then the collector finds the job in the bucket, and it completes
        finished = f"finished job={job}"
        wait_for("the job to end", lambda: finished in farm.log(collector), 200)
        check_everything(farm, job)
        after = farm.objects()
        assert {key: after[key][0] for key in before} == before


def _paths(requests: list[tuple[float, str, str, int]], method: str, part: str) -> list[str]:
    return [path for _, how, path, status in list(requests) if how == method and part in path and status == 200]
