"""Jobs share a farm: none waits until another has all of its own."""

import re
import time

import pytest

from tests.e2e.fleet import Fleet, wait_for

RECIPE = ("squeezenet1_1", "--weights", "none", "--size", "48", "--steps", "30")
HUGE = (*RECIPE, "--layers", "features.3.*,features.4.*,features.6.*")
SMALL = (*RECIPE, "--layers", "features.3.squeeze", "--filters", "0-11")


def _jobs(farm: Fleet) -> set[str]:
    """Ids of the jobs that have not ended."""
    return {bytes(name).decode() for name in farm.redis.sscan_iter("filterfarm:jobs")}


def _seconds_open(farm: Fleet, *arguments: str) -> tuple[str, float]:
    """Submit a job; its id, and how long it was open. Its planning, which is no work of the farm, does not count."""
    before = _jobs(farm)
    farm.start("submit", *arguments)
    wait_for("the job to be registered", lambda: _jobs(farm) - before, 60)
    began = time.monotonic()
    (job,) = _jobs(farm) - before
    wait_for("the job to end", lambda: job not in _jobs(farm), 120)
    return job, time.monotonic() - began


@pytest.mark.alone
def test_a_small_job_behind_a_huge_one_takes_at_most_twice_its_time_alone_and_one_batch(farm: Fleet) -> None:
    # Given a huge job under way on one worker
    farm.start("collector")
    worker = farm.start("worker", "--batch", "4")
    huge = farm.submit(*HUGE)
    assert huge["enqueued"] >= 400
    wait_for("its first tiles", lambda: farm.log(worker).count("rendered job=") >= 3, 60)

    # When a small one comes
    small, behind_s = _seconds_open(farm, *SMALL)

    # Then they took turns, in batches as full as ever
    assert huge["job"] in _jobs(farm)
    batches = re.findall(r"rendered job=(\S+) layer=\S+ filters=(\d+) seconds=([\d.]+)", farm.log(worker))
    since = batches[next(place for place, (job, _, _) in enumerate(batches) if job == small) :]
    assert [(job == small, filters) for job, filters, _ in since[:5]] == [(turn, "4") for turn in (1, 0, 1, 0, 1)]
    batch_s = max(float(seconds) for job, _, seconds in batches if job == huge["job"])

    # And when the huge one is cancelled, no batch of it begins any more, and nothing of it is left
    assert farm.run("cancel", huge["job"]).returncode == 0
    rendered = farm.log(worker).count("rendered job=")
    wait_for("the batch on the device", lambda: farm.outstanding() == 0, 30)
    assert farm.log(worker).count("rendered job=") <= rendered + 1
    cancelled = farm.status(huge["job"])
    assert (cancelled["state"], cancelled["queued"], cancelled["in_flight"]) == ("cancelled", 0, 0)

    # And a small one alone takes at least half as long, the batch aside that it found on the device
    _, alone_s = _seconds_open(farm, *SMALL, "--seed", "1")
    print(f"behind a huge job {behind_s:.1f} s, alone {alone_s:.1f} s, longest batch {batch_s:.2f} s")  # noqa: T201
    assert behind_s <= 2 * alone_s + batch_s
