"""A submission that is killed half-way is made whole when it is repeated."""

import signal
import time

import pytest

from tests.e2e.fleet import Fleet

#: So many messages that they go in more than one piece.
MANY = ("squeezenet1_1", "--weights", "none", "--size", "32", "--layers", "features.1[0-2].*", "--steps", "1")


@pytest.mark.faults
def test_a_submission_that_was_killed_half_way_is_made_whole_when_it_is_repeated(farm: Fleet) -> None:
    # Given a submission that was killed in the middle of its messages
    process = farm.start("submit", *MANY)
    deadline = time.monotonic() + 90
    while not list(farm.redis.scan_iter("filterfarm.render.*")):  # without a pause: it takes half a second
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGKILL)
    process.wait()
    sent = farm.outstanding()

    # When its status is asked for, then that counts what is there
    (job,) = (bytes(name).decode() for name in farm.redis.sscan_iter("filterfarm:jobs"))
    assert farm.status(job)["queued"] == sent

    # And when it is repeated, then every tile has a message
    again = farm.submit(*MANY)
    assert (again["job"], again["enqueued"]) == (job, again["planned"])
    assert 0 < sent < again["planned"]
    assert farm.status(job)["queued"] >= again["planned"]
