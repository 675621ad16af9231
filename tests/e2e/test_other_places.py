"""Workers that look into another bucket, two farms on one Redis, and workers of another version."""

import json

from tests.e2e.fleet import Fleet, wait_for
from tests.e2e.whole import has_ended
from workers.contract import keys
from workers.contract.errors import ExitCode

JOB = ("squeezenet1_1", "--weights", "none", "--layers", "features.0", "--size", "32", "--steps", "2")


def test_a_worker_with_the_wrong_prefix_does_not_start_and_names_both(farm: Fleet) -> None:
    # Given a farm with a job
    farm.start("collector")
    job = farm.submit(*JOB, "--filters", "0-7")["job"]
    # When a worker is set to another prefix of the bucket
    wrong = farm.run("worker", FILTERFARM_BUCKET="s3://pictures/of/cats")
    # Then it refuses in one line, with both
    assert wrong.returncode == ExitCode.BAD_SETTINGS
    assert len(wrong.stderr.splitlines()) == 1
    assert "serves the farm of s3://pictures/of/filters at" in wrong.stderr
    assert "set to s3://pictures/of/cats at" in wrong.stderr
    # And no message was dropped
    assert farm.status(job)["queued"] == 8


def test_two_farms_share_a_redis_and_each_renders_its_own_job(farm: Fleet) -> None:
    # Given two farms, of which the second began with its collector
    second = {"FILTERFARM_BUCKET": "s3://pictures/second"}
    farm.start("collector")
    wait_for("the first farm", lambda: farm.redis.hlen(keys.FARMS) == 1, 60)
    farm.start("collector", **second)
    wait_for("the second farm", lambda: farm.redis.hlen(keys.FARMS) == 2, 60)
    # When each gets a job, and the first a worker
    one = farm.submit(*JOB, "--filters", "0-7")["job"]
    two = json.loads(farm.run("submit", *JOB, "--filters", "0-3", "--json", **second).stdout)["job"]
    farm.start("worker", "--batch", "4")
    wait_for("the first job to end", lambda: has_ended(farm, one), 120)
    # Then it renders its own job alone
    status = json.loads(farm.run("status", two, "--json", **second).stdout)
    assert (status["stored"], status["queued"], status["workers"]) == (0, 4, 0)
    # And with a worker, the other ends too
    farm.start("worker", "--batch", "4", **second)
    wait_for(
        "the second job to end",
        lambda: json.loads(farm.run("status", two, "--json", **second).stdout)["state"] == "finished",
        120,
    )


def test_a_worker_leaves_the_job_of_a_later_version_to_others_and_status_says_so(farm: Fleet) -> None:
    # Given a job that a later version has written, with an option that this one does not know
    worker = farm.start("worker", "--batch", "4", FILTERFARM_MACHINE="old")
    wait_for("the worker", lambda: farm.is_ready(worker), 60)
    job = farm.submit(*JOB, "--filters", "0-3")["job"]
    wait_for("all tiles", lambda: farm.status(job)["stored"] == 4, 60)
    later = json.loads(farm.objects()[keys.job(job)][1])
    later["id"] = "squeezenet1_1-later-0123456789ab"
    later["recipe"]["sharpen"] = 0.5
    farm.put(keys.job(later["id"]), json.dumps(later).encode())
    # When it is opened by a collector
    farm.start("collector")
    wait_for("the trouble", lambda: farm.status(later["id"])["troubles"], 60)
    # Then the worker hands its messages back, and status names worker, version and reason
    status = farm.status(later["id"])
    assert (status["state"], status["stored"], status["failed"]) == ("running", 0, 0)
    reason = status["troubles"]["cpu@old"]
    assert "recipe.sharpen='0.5', which filterfarm 0.1.0 does not know; upgrade it" in reason
    assert "dropped message" not in farm.log(worker)
    # And it renders other jobs meanwhile
    other = farm.submit(*JOB, "--filters", "4-7")["job"]
    wait_for("the other job to end", lambda: has_ended(farm, other), 60)
    check = farm.status(other)
    assert (check["stored"], check["failed"]) == (4, 0)
    assert worker.poll() is None
