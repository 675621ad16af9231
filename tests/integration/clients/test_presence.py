"""Who is there and what they hear from the object store, on a real server."""

import json
import time

import pytest
import redis

from workers.clients.presence import COLLECTOR, Presence
from workers.contract import keys
from workers.contract.errors import NoBucket, StorageDenied, StorageUnreachable

ONE, TWO = "cpu-1@here", "cpu-2@here"


@pytest.fixture
def presence(redis_client: "redis.Redis") -> Presence:
    """Nobody has been seen yet."""
    return Presence(redis_client)


def test_workers_are_known_by_when_they_were_last_seen(presence: Presence, redis_client: "redis.Redis") -> None:
    # Given a worker that was just seen, twice, one a minute ago, and one of last week
    for _ in range(2):
        presence.worker_heartbeat(ONE)
    redis_client.zadd(keys.WORKERS, {TWO: time.time() - 60, "cpu-3@here": time.time() - 7 * 86400})
    # When one is seen again
    presence.worker_heartbeat(ONE)
    # Then those of the last day are listed, with the seconds since
    seen = presence.workers()
    assert set(seen) == {ONE, TWO}
    assert 0 <= seen[ONE] < 5
    assert 59 < seen[TWO] < 65


def test_a_worker_that_left_in_good_order_is_forgotten(presence: Presence, redis_client: "redis.Redis") -> None:
    # Given two workers, both without a bucket
    for name in (ONE, TWO):
        presence.worker_heartbeat(name)
        presence.report_storage_error(name, NoBucket("no bucket"))
    # When one leaves, twice
    for _ in range(2):
        presence.remove_worker(ONE)
    # Then the other is left
    assert set(presence.workers()) == {TWO}
    assert redis_client.hkeys(keys.STORAGE) == [TWO.encode()]


def test_a_storage_error_counts_if_every_worker_reports_it(presence: Presence) -> None:
    # Given two workers, of which one is refused
    assert presence.storage_error() is None
    for name in (ONE, TWO):
        presence.worker_heartbeat(name)
    presence.report_storage_error(ONE, StorageDenied("refused"))
    # Then that is its own trouble, for the other gets on
    assert presence.storage_error() is None
    # And when both are, it is everybody's
    presence.report_storage_error(TWO, StorageUnreachable("no answer"))
    trouble = presence.storage_error()
    assert trouble is not None
    assert (trouble.refused, trouble.reason) == (True, "refused")
    # And when one gets on again, it is over
    presence.report_storage_error(ONE, None)
    assert presence.storage_error() is None


def test_a_storage_error_counts_if_the_collector_reports_it(presence: Presence) -> None:
    # Given a worker that gets on, and a collector that does not
    presence.worker_heartbeat(ONE)
    presence.report_storage_error(COLLECTOR, StorageUnreachable("no answer"))
    # Then no job can end
    trouble = presence.storage_error()
    assert trouble is not None
    assert (trouble.refused, trouble.reason) == (False, "no answer")


def test_what_was_said_long_ago_or_by_who_has_gone_counts_no_more(
    presence: Presence, redis_client: "redis.Redis"
) -> None:
    # Given a worker without trouble, one that was killed in trouble, and a collector that spoke two minutes ago
    presence.worker_heartbeat(ONE)
    presence.report_storage_error(TWO, NoBucket("no bucket"))
    old = json.dumps({"refused": True, "reason": "refused", "at": time.time() - 120})
    redis_client.hset(keys.STORAGE, COLLECTOR, old)
    # When the farm is asked for
    # Then there is no trouble
    assert presence.storage_error() is None
