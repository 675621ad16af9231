"""An error nobody has foreseen: it counts as an attempt, ends as a recorded failure, and harms nobody else."""

import re

import torch

from tests.e2e.fleet import Fleet, wait_for
from workers.networks import registry

RECIPE = ("--layers", "features.0", "--filters", "0-3", "--size", "32", "--steps", "2")


def test_an_unexpected_error_ends_after_three_attempts_with_its_reason(farm: Fleet) -> None:
    # Given a worker that cannot keep a checkpoint, because its cache lies below a file
    blocked = farm.folder / "blocked"
    blocked.touch()
    checkpoint = farm.folder / "mine.pth"
    torch.save(registry.build("squeezenet1_1", seed=1).state_dict(), checkpoint)
    farm.start("collector")
    right = dict(farm.environ)
    farm.environ["FILTERFARM_CACHE"] = str(blocked / "cache")
    worker = farm.start("worker", "--batch", "4")
    farm.environ = right

    # When a job needs that, and another does not
    job = farm.submit("squeezenet1_1", "--weights", str(checkpoint), *RECIPE)["job"]
    other = farm.submit("squeezenet1_1", "--weights", "none", *RECIPE)["job"]
    wait_for("both jobs to end", lambda: not farm.redis.exists("filterfarm:jobs"), 120)

    # Then the one says for each tile what happened, after three attempts, and the other is whole
    status = farm.status(job)
    assert (status["state"], status["stored"], status["failed"], status["requeued"]) == ("finished", 0, 4, 0)
    assert all("NotADirectoryError" in reason for reason in status["reasons"].values())
    unexpected = rf"unexpected job={job} layer=\S+ filter=\d+ reason=NotADirectoryError"
    assert len(re.findall(unexpected, farm.log(worker))) == 3 * 4
    assert (farm.status(other)["stored"], farm.status(other)["failed"]) == (4, 0)
    assert worker.poll() is None

    # And on a worker as it should be, the same submission ends well
    farm.start("worker", "--batch", "4")
    worker.terminate()
    assert worker.wait(30) == 0
    assert farm.submit("squeezenet1_1", "--weights", str(checkpoint), *RECIPE)["enqueued"] == 4
    wait_for("the job to end", lambda: farm.status(job)["stored"] == 4, 120)
    wait_for("the job to end", lambda: farm.status(job)["state"] == "finished", 60)
    assert farm.status(job)["failed"] == 0
