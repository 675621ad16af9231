"""An unexpected error in a worker: it counts as an attempt, then as a failure of the tile, and affects no other job."""

import re

import torch

from tests.e2e.fleet import Fleet, wait_for
from tests.e2e.whole import has_ended
from workers.networks import registry

RECIPE = ("--layers", "features.0", "--filters", "0-3", "--size", "32", "--steps", "2")


def test_an_unexpected_error_ends_after_three_attempts_with_its_reason(farm: Fleet) -> None:
    # Given a worker that cannot store a checkpoint, because the path of its cache leads through a file
    blocked = farm.folder / "blocked"
    blocked.touch()
    checkpoint = farm.folder / "mine.pth"
    torch.save(registry.build("squeezenet1_1", seed=1).state_dict(), checkpoint)
    farm.start("collector")
    right = dict(farm.environ)
    farm.environ["FILTERFARM_CACHE"] = str(blocked / "cache")
    worker = farm.start("worker", "--batch", "4")
    farm.environ = right

    # When one job needs a checkpoint, and another does not
    job = farm.submit("squeezenet1_1", "--weights", str(checkpoint), *RECIPE)["job"]
    other = farm.submit("squeezenet1_1", "--weights", "none", *RECIPE)["job"]
    wait_for("both jobs to end", lambda: has_ended(farm, job) and has_ended(farm, other), 120)

    # Then each tile of the first has failed with the reason after three attempts, and the other job is complete
    status = farm.status(job)
    assert (status["state"], status["stored"], status["failed"], status["requeued"]) == ("finished", 0, 4, 0)
    assert all("NotADirectoryError" in reason for reason in status["reasons"].values())
    unexpected = rf"unexpected job={job} layer=\S+ filter=\d+ reason=NotADirectoryError"
    assert len(re.findall(unexpected, farm.log(worker))) == 3 * 4
    assert (farm.status(other)["stored"], farm.status(other)["failed"]) == (4, 0)
    assert worker.poll() is None

    # And on a worker with a usable cache, the same submission succeeds
    farm.start("worker", "--batch", "4")
    worker.terminate()
    assert worker.wait(30) == 0
    assert farm.submit("squeezenet1_1", "--weights", str(checkpoint), *RECIPE)["enqueued"] == 4
    wait_for("the job to end", lambda: has_ended(farm, job), 120)
    status = farm.status(job)
    assert (status["state"], status["stored"], status["failed"]) == ("finished", 4, 0)
