"""Jobs share a farm: none waits until another has finished."""

import re
from itertools import pairwise

from tests.e2e.fleet import Fleet, wait_for
from tests.e2e.whole import has_ended

RECIPE = ("squeezenet1_1", "--weights", "none", "--size", "48", "--steps", "30")
HUGE = (*RECIPE, "--layers", "features.3.*,features.4.*,features.6.*")
SMALL = (*RECIPE, "--layers", "features.3.squeeze", "--filters", "0-11")


def test_a_small_job_behind_a_huge_one_takes_turns_with_it(farm: Fleet) -> None:
    # Given a huge job in progress on one worker, whose batches take longer than the submission of twelve tiles
    farm.start("collector")
    worker = farm.start_slow_worker()
    huge = farm.submit(*HUGE)
    assert huge["enqueued"] >= 400

    def batches() -> list[tuple[str, int]]:
        """(job, number of tiles) of each batch that has ended, in order."""
        found = re.findall(r"rendered job=(\S+) layer=\S+ filters=(\d+) ", farm.log(worker))
        return [(job, int(filters)) for job, filters in found]

    wait_for("its first batches", lambda: len(batches()) >= 2, 90)

    # When a small job is submitted
    small = farm.submit(*SMALL)
    ended = len(batches())
    wait_for("the small job to end", lambda: has_ended(farm, small["job"]), 90)

    # Then it waited for the batch on the device and the one that the worker held already, and alternated with the huge
    # job from there on. One more batch of the huge job may come in between while a message is in transit.
    places = [place for place, (job, _) in enumerate(batches()) if job == small["job"]]
    assert places[0] - ended <= 3
    assert all(later - earlier <= 3 for earlier, later in pairwise(places))
    # And at most one batch was smaller than the batch size, for the same reason
    assert sum(filters for job, filters in batches() if job == small["job"]) == 12
    assert sum(filters < 4 for _, filters in batches()[: places[-1]]) <= 1
    assert farm.status(small["job"])["state"] == "finished"
    assert farm.status(huge["job"])["state"] == "running"

    # And when the huge job is cancelled, no further batch of it starts, and none of its messages is left
    assert farm.run("cancel", huge["job"]).returncode == 0
    rendered = len(batches())
    wait_for("the batch on the device to end", lambda: farm.outstanding() == 0, 60)
    assert len(batches()) <= rendered + 1
    cancelled = farm.status(huge["job"])
    assert (cancelled["state"], cancelled["queued"], cancelled["in_flight"]) == ("cancelled", 0, 0)
