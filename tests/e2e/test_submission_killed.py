"""A submission that is killed halfway is completed when it is repeated."""

import signal
import time

import pytest

from tests.e2e.fleet import Fleet

#: So many messages that they are published in several chunks.
MANY = ("squeezenet1_1", "--weights", "none", "--size", "32", "--layers", "features.1[0-2].*", "--steps", "1")


@pytest.mark.faults
def test_a_submission_that_was_killed_halfway_is_completed_when_it_is_repeated(farm: Fleet) -> None:
    # Given a submission that was killed while it published its messages
    process = farm.start("submit", *MANY)
    deadline = time.monotonic() + 90
    while not list(farm.redis.scan_iter("filterfarm.render.*")):  # no pause: publishing takes half a second
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGKILL)
    process.wait()
    sent = farm.outstanding()

    # When its status is read, then it counts the published messages
    (job,) = (bytes(name).decode() for name in farm.redis.sscan_iter(farm.names.jobs))
    assert farm.status(job)["queued"] == sent

    # And when it is repeated, then every tile has a message
    again = farm.submit(*MANY)
    assert (again["job"], again["enqueued"]) == (job, again["planned"])
    assert 0 < sent < again["planned"]
    assert farm.status(job)["queued"] >= again["planned"]
