"""Two clocks, and how far they may be apart."""

import time

import pytest
import redis

from workers.clients.clock import check_clock
from workers.contract.errors import ClockWrong


def test_a_clock_that_is_right_gives_rediss_time(redis_client: "redis.Redis") -> None:
    # Given a Redis on this very machine
    # When the clocks are compared as strictly as can be
    now = check_clock(redis_client, 5.0)
    # Then they agree
    assert now == pytest.approx(time.time(), abs=5)


@pytest.mark.parametrize(("ahead_s", "word"), [(31.0, "31 s ahead of"), (-31.0, "31 s behind"), (300.0, "300 s ahead")])
def test_a_clock_that_is_wrong_says_by_how_much(
    redis_client: "redis.Redis", monkeypatch: pytest.MonkeyPatch, ahead_s: float, word: str
) -> None:
    # Given a machine whose clock is wrong by more than a quarter of the visibility timeout
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + ahead_s)
    # When the clocks are compared
    with pytest.raises(ClockWrong) as caught:
        check_clock(redis_client, 120.0)
    # Then one line says by how much, and the way out
    assert word in str(caught.value)
    assert "NTP" in str(caught.value)
    # And the same clock is good enough for a longer timeout
    check_clock(redis_client, 1300.0)
