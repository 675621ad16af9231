"""Who belongs to a farm: the id in the bucket, and the list of farms in Redis."""

import threading
from dataclasses import replace

import pytest
import redis

from workers.clients.identity import identify, known_farm
from workers.clients.storage import Store
from workers.contract import keys
from workers.contract.errors import BadSettings
from workers.contract.settings import Settings


def test_a_bucket_gets_an_id_once_and_every_address_of_it_leads_to_that(
    settings: Settings, store: Store, redis_client: "redis.Redis"
) -> None:
    # When two processes come with two addresses of the same bucket
    farm = identify(settings, store, redis_client)
    other = replace(settings, endpoint_url=settings.endpoint_url.replace("127.0.0.1", "localhost"))
    # Then it is one farm
    assert identify(other, Store(other, retry_s=5), redis_client) == farm
    assert keys.is_name(farm)
    assert known_farm(redis_client) == farm
    # And also after Redis was emptied
    redis_client.flushall()
    assert identify(settings, store, redis_client) == farm


def test_processes_that_come_at_the_same_time_agree(
    settings: Settings, store: Store, redis_client: "redis.Redis"
) -> None:
    # Given eight processes and a bucket without an id
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(identify(settings, Store(settings, retry_s=5), redis_client)))
        for _ in range(8)
    ]
    # When all ask for it
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    # Then they have the same
    assert len(found) == 8
    assert len(set(found)) == 1


def test_a_process_of_another_bucket_is_refused_with_both_and_a_collector_founds_a_second_farm(
    settings: Settings, store: Store, redis_client: "redis.Redis"
) -> None:
    # Given a farm, and a process that looks into another prefix
    farm = identify(settings, store, redis_client)
    wrong = replace(settings, bucket_url=f"{settings.bucket_url}/elsewhere")
    # When / Then
    with pytest.raises(BadSettings) as caught:
        identify(wrong, Store(wrong, retry_s=5), redis_client)
    message = str(caught.value)
    assert f"serves the farm of {settings.bucket_url} at {settings.endpoint_url}" in message
    assert f"set to {wrong.bucket_url} at {settings.endpoint_url}" in message
    assert all(name in message for name in ("FILTERFARM_BUCKET", "AWS_ENDPOINT_URL_S3", "FILTERFARM_BROKER_URL"))
    assert "\n" not in message
    assert known_farm(redis_client) == farm
    # And a collector may begin a second farm, which others then join
    second = identify(wrong, Store(wrong, retry_s=5), redis_client, founds=True)
    assert second != farm
    assert identify(wrong, Store(wrong, retry_s=5), redis_client) == second
    assert known_farm(redis_client) is None


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"farm": "../x"}', b'{"farm": 7, "x": 1}', b"\xff"])
def test_an_id_that_is_none_is_an_error_of_one_line(
    settings: Settings, store: Store, redis_client: "redis.Redis", data: bytes
) -> None:
    # Given
    store.put(keys.FARM_OBJECT, data, "application/json")
    if data == b'{"farm": 7, "x": 1}':  # a number is a name too, and unknown fields are ignored
        assert identify(settings, store, redis_client) == "7"
        return
    # When / Then
    with pytest.raises(BadSettings, match="farm.json in .* is not valid; delete it"):
        identify(settings, store, redis_client)
