"""What can happen to a submission: twice at once, every message three times, and a queue that is full."""

import re
import time

from tests.conftest import close_pools
from tests.e2e.checks import check_everything
from tests.e2e.fleet import Fleet, wait_for
from workers.contract.broker import enqueue, make_app
from workers.contract.errors import ExitCode
from workers.contract.job import Job, Task
from workers.contract.settings import Settings

RECIPE = ("squeezenet1_1", "--weights", "none", "--size", "32")
JOB = (*RECIPE, "--layers", "features.0", "--steps", "10")


def _finished(farm: Fleet, job: str) -> bool:
    return not farm.redis.sismember("filterfarm:jobs", job)


def _send(farm: Fleet, job: Job) -> None:
    """One more message for each tile."""
    app = make_app(Settings(broker_url=farm.environ["FILTERFARM_BROKER_URL"]))
    enqueue(app, (Task(job=job.id, layer=layer, filter=filter_) for layer, filter_ in job.tiles))
    close_pools()


def test_a_job_submitted_twice_at_once_with_every_message_sent_three_times_is_rendered_once(farm: Fleet) -> None:
    # Given two submissions of one job at the same time
    submitters = [farm.start("submit", *JOB) for _ in range(2)]
    assert [process.wait(90) for process in submitters] == [0, 0], "".join(map(farm.log, submitters))
    (name,) = (bytes(name).decode() for name in farm.redis.sscan_iter("filterfarm:jobs"))
    job = Job.model_validate_json(farm.objects()[f"{name}/job.json"][1])
    # And at least three messages for each tile
    while farm.outstanding() < 3 * 64:
        _send(farm, job)

    # When two workers take them up
    farm.start("collector")
    workers = [farm.start("worker", "--batch", "4") for _ in range(2)]
    wait_for("the job to end", lambda: _finished(farm, name), 120)

    # Then the bucket is as if each had been sent once, and hardly a tile was rendered twice
    check_everything(farm, name)
    rendered = re.findall(r"rendered job=\S+ layer=\S+ filters=(\d+)", "".join(map(farm.log, workers)))
    assert 64 <= sum(map(int, rendered)) <= 1.05 * 64
    status = farm.status(name)
    assert (status["stored"], status["failed"], status["requeued"]) == (64, 0, 0)
    # And what was left of the messages is gone
    wait_for("the rest to be dropped", lambda: farm.outstanding() == 0, 30)


def test_a_queue_that_is_full_is_told_in_one_line_and_costs_only_time(farm: Fleet) -> None:
    # Given a job under way
    farm.start("collector")
    worker = farm.start("worker", "--batch", "4")
    job = farm.submit(*JOB)["job"]
    wait_for("the first tiles", lambda: farm.log(worker).count("rendered job=") >= 1, 90)
    before = farm.objects()

    # When Redis has no memory left for 10 s, and another job is submitted
    farm.redis.config_set("maxmemory", "1")
    began = time.monotonic()
    refused = farm.run("submit", *JOB, "--seed", "1")
    time.sleep(max(0.0, began + 10 - time.monotonic()))
    farm.redis.config_set("maxmemory", "0")

    # Then that is refused with one line that says so and an exit code of its own, and nothing of it is there
    assert refused.returncode == ExitCode.BROKER_FULL, refused.stderr
    assert re.fullmatch(r"filterfarm: Redis at \S+ is full \(.*\); .* again\n", refused.stderr)
    assert {key.split("/")[0] for key in farm.objects()} == {key.split("/")[0] for key in before} == {job}

    # And the first job completes, nothing lost
    wait_for("the job to end", lambda: _finished(farm, job), 120)
    check_everything(farm, job)
    status = farm.status(job)
    assert (status["state"], status["failed"]) == ("finished", 0)
    wait_for("no message to be left", lambda: farm.outstanding() == 0, 30)
