"""Heartbeats and object store errors in Redis, on a real server."""

import json
import time

import pytest
import redis

from tests.jobs import NAMES
from workers.clients.presence import COLLECTOR, Presence, machine_of
from workers.contract.errors import NoBucket, StorageDenied, StorageUnreachable

ONE, TWO = "cpu-1@here", "cpu-2@here"


@pytest.fixture
def presence(redis_client: "redis.Redis") -> Presence:
    """No worker has been seen yet."""
    return Presence(redis_client, NAMES)


def test_workers_of_the_last_day_are_listed_with_the_age_of_their_heartbeat(
    presence: Presence, redis_client: "redis.Redis"
) -> None:
    # Given heartbeats of now (two), a minute ago, and last week
    for _ in range(2):
        presence.worker_heartbeat(ONE)
    redis_client.zadd(NAMES.workers, {TWO: time.time() - 60, "cpu-3@here": time.time() - 7 * 86400})
    # When one worker sends another
    presence.worker_heartbeat(ONE)
    # Then those of the last day are listed, with the seconds since
    seen = presence.workers()
    assert set(seen) == {ONE, TWO}
    assert 0 <= seen[ONE] < 5
    assert 59 < seen[TWO] < 65


def test_a_removed_worker_leaves_no_heartbeat_and_no_error(presence: Presence, redis_client: "redis.Redis") -> None:
    # Given two workers that report a missing bucket
    for name in (ONE, TWO):
        presence.worker_heartbeat(name)
        presence.report_storage_error(name, NoBucket("no bucket"))
    # When one is removed, twice
    for _ in range(2):
        presence.remove_worker(ONE)
    # Then the other remains
    assert set(presence.workers()) == {TWO}
    assert redis_client.hkeys(NAMES.storage) == [TWO.encode()]


def test_a_storage_error_counts_if_every_worker_reports_it(presence: Presence) -> None:
    # Given two workers, one of which is denied access
    assert presence.storage_error() is None
    for name in (ONE, TWO):
        presence.worker_heartbeat(name)
    presence.report_storage_error(ONE, StorageDenied("refused"))
    # Then it is not an error of the farm
    assert presence.storage_error() is None
    # And when both report an error, it is
    presence.report_storage_error(TWO, StorageUnreachable("no answer"))
    error = presence.storage_error()
    assert error is not None
    assert (error.refused, error.reason) == (True, "refused")
    # And when one can use the store again, it is not
    presence.report_storage_error(ONE, None)
    assert presence.storage_error() is None


def test_a_storage_error_counts_if_the_collector_reports_it(presence: Presence) -> None:
    # Given a worker without an error, and a collector with one
    presence.worker_heartbeat(ONE)
    presence.report_storage_error(COLLECTOR, StorageUnreachable("no answer"))
    # Then it is an error of the farm
    error = presence.storage_error()
    assert error is not None
    assert (error.refused, error.reason) == (False, "no answer")


def test_errors_that_are_old_or_of_dead_workers_do_not_count(presence: Presence, redis_client: "redis.Redis") -> None:
    # Given a worker without an error, a dead one with an error, and an error of the collector two minutes old
    presence.worker_heartbeat(ONE)
    presence.report_storage_error(TWO, NoBucket("no bucket"))
    old = json.dumps({"refused": True, "reason": "refused", "at": time.time() - 120})
    redis_client.hset(NAMES.storage, COLLECTOR, old)
    # When / Then
    assert presence.storage_error() is None


@pytest.mark.parametrize(
    ("worker", "machine"),
    [
        ("cpu-12@here", "cpu@here"),
        ("cuda1-3@rack-3.gpu_1", "cuda1@rack-3.gpu_1"),
        ("cuda1-3.2@rack-3.gpu_1", "cuda1@rack-3.gpu_1"),
        ("odd", "odd@"),
        ("a-b-1@c@d", "a-b@c@d"),
    ],
)
def test_a_machine_is_the_device_and_host_of_a_worker(worker: str, machine: str) -> None:
    assert machine_of(worker) == machine


def test_troubles_are_shown_for_a_day_or_until_the_machine_renders_again(
    presence: Presence, redis_client: "redis.Redis"
) -> None:
    # Given troubles of today and of last week, and entries that are none
    presence.report_trouble("cpu@one", "no disk")
    presence.report_trouble("cpu@two", "no internet")
    redis_client.hset(NAMES.troubles, "cpu@old", json.dumps({"reason": "x", "at": time.time() - 7 * 86400}))
    for name, text in (("a", b"\xff"), ("b", b"{"), ("c", b"[]"), ("d", b'{"at": 1}'), (b"\xff", b"{}")):
        redis_client.hset(NAMES.troubles, name, text)
    # When / Then
    assert presence.troubles("job") == {"cpu@one": "no disk", "cpu@two": "no internet"}
    presence.report_trouble("cpu@one", None)
    assert presence.troubles("job") == {"cpu@two": "no internet"}


def test_a_trouble_with_one_job_is_shown_for_that_job_for_some_minutes(
    presence: Presence, redis_client: "redis.Redis"
) -> None:
    # Given
    presence.report_trouble("cpu@one", "version 2 is not known", job_id="job")
    old = json.dumps({"reason": "x", "at": time.time() - 600})
    redis_client.hset(NAMES.troubles, "cpu@two job", old)
    # When / Then
    assert presence.troubles("job") == {"cpu@one": "version 2 is not known"}
    assert presence.troubles("other") == {}
