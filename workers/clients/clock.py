"""Compares this machine's clock with that of Redis.

Kombu stamps each delivery with the clock of the worker that receives it, and other workers compare the stamp with their
own clocks. If these differ too much, messages in flight are redelivered at once, or long after their worker died.
"""

import time

import redis

from workers.contract.errors import ClockWrong


def check_clock(client: "redis.Redis", visibility_timeout_s: float) -> float:
    """Redis's time in Unix seconds. Raises ClockWrong if this machine's differs by more than a quarter of the timeout.

    Two workers then differ by at most half of it, and a heartbeat may be late by another quarter before a message is
    redelivered. Raises redis.RedisError.
    """
    before = time.time()
    seconds, microseconds = client.time()
    after = time.time()
    there = seconds + microseconds / 1e6
    # The round trip's time is not counted as a difference.
    ahead_s = before - there if before > there else min(0.0, after - there)
    if abs(ahead_s) > visibility_timeout_s / 4:
        raise ClockWrong(
            f"this machine's clock is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} Redis's, and a "
            f"worker's may be {visibility_timeout_s / 4:g} s off; set the clocks by NTP"
        )
    return there
