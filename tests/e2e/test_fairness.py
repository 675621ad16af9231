"""Jobs share a farm: none waits until another has all of its own."""

import re
from itertools import pairwise

from tests.e2e.fleet import Fleet, wait_for

RECIPE = ("squeezenet1_1", "--weights", "none", "--size", "48", "--steps", "30")
HUGE = (*RECIPE, "--layers", "features.3.*,features.4.*,features.6.*")
SMALL = (*RECIPE, "--layers", "features.3.squeeze", "--filters", "0-11")


def test_a_small_job_behind_a_huge_one_waits_for_one_of_its_batches_at_a_time(farm: Fleet) -> None:
    # Given a huge job under way on one worker, whose batches last longer than it takes to submit twelve tiles
    farm.start("collector")
    worker = farm.start_slow_worker()
    huge = farm.submit(*HUGE)
    assert huge["enqueued"] >= 400

    def batches() -> list[tuple[str, int]]:
        """Of each batch that has ended, in order: its job and how many tiles."""
        found = re.findall(r"rendered job=(\S+) layer=\S+ filters=(\d+) ", farm.log(worker))
        return [(job, int(filters)) for job, filters in found]

    wait_for("its first batches", lambda: len(batches()) >= 2, 60)

    # When a small one comes
    small = farm.submit(*SMALL)
    ended = len(batches())
    wait_for("the small one's batches", lambda: sum(job == small["job"] for job, _ in batches()) >= 3, 60)

    # Then it waited for the batch on the device and the one that the worker held already, took turns from there on, and
    # no batch was less than full. One more of the huge job may come in between while a message is on its way.
    places = [place for place, (job, _) in enumerate(batches()) if job == small["job"]]
    assert len(places) == 3
    assert places[0] - ended <= 3
    assert all(later - earlier <= 3 for earlier, later in pairwise(places))
    assert {filters for _, filters in batches()[: places[-1] + 1]} == {4}
    wait_for("the small job's end", lambda: farm.status(small["job"])["state"] == "finished", 60)
    assert farm.status(huge["job"])["state"] == "running"

    # And when the huge one is cancelled, no batch of it begins any more, and nothing of it is left
    assert farm.run("cancel", huge["job"]).returncode == 0
    rendered = len(batches())
    wait_for("the batch on the device", lambda: farm.outstanding() == 0, 30)
    assert len(batches()) <= rendered + 1
    cancelled = farm.status(huge["job"])
    assert (cancelled["state"], cancelled["queued"], cancelled["in_flight"]) == ("cancelled", 0, 0)
