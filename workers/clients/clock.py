"""This machine's clock against Redis's.

Kombu stamps each delivery with the clock of the worker that takes it, and any other worker compares that stamp with
its own: with clocks far apart, messages in work would be given away at once, or only long after their worker died.
"""

import time

import redis

from workers.contract.errors import ClockWrong


def check_clock(client: "redis.Redis", visibility_timeout_s: float) -> float:
    """Redis's time, in Unix seconds. Raises ClockWrong where this machine's differs by a quarter of the timeout.

    Two workers may then differ by half of it, and a message whose heartbeat is up to another quarter late is still
    its worker's own. Raises redis.RedisError.
    """
    before = time.time()
    seconds, microseconds = client.time()
    after = time.time()
    there = seconds + microseconds / 1e6
    # Whatever the way there and back took is in nobody's disfavour.
    ahead_s = before - there if before > there else min(0.0, after - there)
    if abs(ahead_s) > visibility_timeout_s / 4:
        raise ClockWrong(
            f"this machine's clock is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} Redis's, and a "
            f"worker's may be {visibility_timeout_s / 4:g} s off; set the clocks by NTP"
        )
    return there
