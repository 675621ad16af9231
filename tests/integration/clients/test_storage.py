"""The object store, on two real servers that differ where S3 leaves room."""

import filecmp
import random
import threading
import time
import tracemalloc
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import boto3
import pytest

from tests import servers
from tests.conftest import S3
from tests.s3proxy import s3_proxy
from tests.servers import free_port
from workers.clients.storage import Store
from workers.contract.errors import FilterfarmError, NoBucket, StorageDenied, StorageUnreachable
from workers.contract.settings import Settings

TEXT = "text/plain"


def set_credentials(monkeypatch: pytest.MonkeyPatch, key: str, secret: str) -> None:
    """Change the credentials; boto3's default session keeps those it has read."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)


@pytest.mark.parametrize("size", [0, 1, 100_000, 3_000_000])
def test_a_stored_object_is_read_back(store: Store, size: int) -> None:
    # Given some bytes
    body = random.Random(size).randbytes(size)
    # When they are put
    store.put("job/tiles/features.0/0.png", body, "image/png")
    # Then they are there, and the same
    assert store.exists("job/tiles/features.0/0.png")
    assert store.get("job/tiles/features.0/0.png") == body


def test_a_file_is_stored_and_fetched_without_being_held_in_memory(store: Store, tmp_path: Path) -> None:
    # Given a checkpoint much larger than a chunk
    sent, received = tmp_path / "sent.pth", tmp_path / "received.pth"
    sent.write_bytes(random.Random(0).randbytes(1 << 20) * 32)
    tracemalloc.start()
    # When
    store.put_file("job/weights/0", sent)
    fetched = store.get_file("job/weights/0", received)
    # Then
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert fetched
    assert filecmp.cmp(sent, received, shallow=False)
    assert peak < sent.stat().st_size / 2


def test_an_object_is_read_piece_by_piece(store: Store) -> None:
    # Given an object of several pieces, and an empty one
    body = random.Random(0).randbytes(2_500_000)
    store.put("job/grids/a.png", body, "image/png")
    store.put("job/empty", b"", TEXT)
    # When they are opened
    found, empty = store.open("job/grids/a.png"), store.open("job/empty")
    assert found
    assert empty
    with found, empty:
        # Then the size is known before they are read, and no piece is large
        assert (found.size, empty.size) == (len(body), 0)
        pieces = list(found.chunks)
        assert b"".join(pieces) == body
        assert max(map(len, pieces)) <= 1 << 20
        assert list(empty.chunks) == []
    # And one that was not read to its end may be closed, and an absent one is None
    unread = store.open("job/grids/a.png")
    assert unread
    unread.close()
    assert store.open("job/none") is None
    assert store.get("job/empty") == b""


def test_an_object_that_breaks_off_is_an_error_of_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a server that ends while an object is read, of which more is left than sockets hold
    with servers.rclone(tmp_path) as (endpoint, key, secret):
        S3(name="rclone", endpoint=endpoint, key=key, secret=secret).sign_in(monkeypatch)
        store = Store(Settings(bucket_url="s3://filterfarm", endpoint_url=endpoint), retry_s=0)
        store.make_bucket()
        store.put("job/a", bytes(64 << 20), TEXT)
        found = store.open("job/a")
        assert found
        next(found.chunks)
    # When the rest is read
    with found, pytest.raises(StorageUnreachable, match=endpoint):
        list(found.chunks)


def test_a_listing_has_sizes_and_times(store: Store) -> None:
    # Given an object
    began = time.time()
    store.put("job/a", b"four", TEXT)
    # When it is listed at once
    (found,) = store.list_objects("job/")
    # Then its size and time are there, and the time may still be that of another write
    assert (found.key, found.size) == ("job/a", 4)
    assert began - 2 < found.modified_ns / 1e9 < time.time() + 2
    assert not found.settled
    # And some seconds later it is not
    time.sleep(3.5)
    (later,) = store.list_objects("job/")
    assert later == replace(found, settled=True)


def test_a_file_that_is_absent_is_not_fetched(store: Store, tmp_path: Path) -> None:
    # When / Then
    assert not store.get_file("job/weights/1", tmp_path / "received.pth")


def test_putting_again_replaces_the_whole_object(store: Store) -> None:
    # Given an object
    store.put("job/status.json", b"a long first version", TEXT)
    # When a shorter one is put in its place, twice
    for _ in range(2):
        store.put("job/status.json", b"short", TEXT)
    # Then nothing of the first is left
    assert store.get("job/status.json") == b"short"
    assert list(store.list("job/")) == ["job/status.json"]


def test_an_absent_object_is_none_and_no_error(store: Store) -> None:
    # Given an object beside the one that is asked for
    store.put("job/tiles/features.0/0.png", b"x", TEXT)
    # When another is asked for, or its folder
    for key in ("job/tiles/features.0/1.png", "job/tiles/features.0", "job", "other/job.json"):
        # Then there is none
        assert store.get(key) is None
        assert not store.exists(key)


def test_a_deleted_object_is_gone_and_deleting_it_again_does_no_harm(store: Store) -> None:
    # Given two objects
    store.put("job/a", b"x", TEXT)
    store.put("job/b", b"x", TEXT)
    # When one is deleted, twice
    for _ in range(2):
        store.delete("job/a")
    # Then it is gone at once, and the other is not
    assert not store.exists("job/a")
    assert store.get("job/a") is None
    assert list(store.list("job/")) == ["job/b"]


def test_a_deleted_object_can_be_put_again(store: Store) -> None:
    # Given an object that was deleted with its folder
    store.put("job/tiles/features.0/0.png", b"old", TEXT)
    store.delete("job/tiles/features.0/0.png")
    # When it is put again
    store.put("job/tiles/features.0/0.png", b"new", TEXT)
    # Then it is there
    assert store.get("job/tiles/features.0/0.png") == b"new"


def test_an_object_that_is_too_long_comes_cut(store: Store) -> None:
    # Given an object of 1000 bytes
    store.put("job/a", bytes(1000), TEXT)
    # When it is asked for with a limit
    # Then no more than that comes, and one of just that length comes whole
    assert store.get("job/a", max_bytes=10) == bytes(10)
    assert store.get("job/a", max_bytes=1000) == bytes(1000)
    # And the connection is still good
    assert store.get("job/a") == bytes(1000)


def test_more_objects_than_a_page_holds_are_listed_once_each(store: Store) -> None:
    # Given 1,005 objects in two folders, put in no order
    wanted = [f"job/tiles/features.0/{number}.png" for number in range(1000)]
    wanted += [f"job/tiles/features.2/{number}.png" for number in range(5)]
    shuffled = random.Random(0).sample(wanted, len(wanted))
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: store.put(key, b"x", TEXT), shuffled))
    # When they are listed
    # Then each is there, once
    assert sorted(store.list("job/tiles/")) == sorted(wanted)
    # And a narrower prefix takes fewer
    assert sorted(store.list("job/tiles/features.2/")) == sorted(wanted[1000:])


def test_folders_of_similar_names_are_all_listed(store: Store) -> None:
    # Given folders of which one's name begins with another's
    wanted = sorted(["a/1", "a-b/2", "a.b/3", "a0/4", "a/b/5", "A/6", "_/7"])
    for key in wanted:
        store.put(f"job/{key}", b"x", TEXT)
    # When all are listed
    # Then each is there once; in which order, servers do not agree
    assert sorted(store.list("job/")) == [f"job/{key}" for key in wanted]


def test_a_partial_prefix_lists_all_keys_that_begin_with_it(store: Store) -> None:
    # Given jobs of which one's name begins with another's
    for key in ("job-1/a", "job-10/b", "other/c"):
        store.put(key, b"x", TEXT)
    # When they are listed by their beginning, and as a folder
    # Then the slash makes the difference
    assert sorted(store.list("job-1")) == ["job-1/a", "job-10/b"]
    assert list(store.list("job-1/")) == ["job-1/a"]
    assert list(store.list("nothing/")) == []


def test_folders_are_the_first_segments_of_all_keys(store: Store) -> None:
    # Given three jobs, and an object in no folder
    for key in ("b/job.json", "b/tiles/features.0/0.png", "a/job.json", "c/x/y/z", "loose"):
        store.put(key, b"x", TEXT)
    # When folders are listed
    # Then each is there once
    assert sorted(store.folders()) == ["a", "b", "c"]


def test_an_empty_bucket_has_nothing_to_list(store: Store) -> None:
    # Given nothing
    # Then there is nothing, and that is no error
    store.check()
    assert list(store.folders()) == []
    assert list(store.list("")) == []


def test_two_prefixes_of_a_bucket_do_not_see_each_other(store: Store, settings: Settings) -> None:
    # Given an object, and a store with another prefix in the same bucket
    store.put("job/a", b"x", TEXT)
    other = Store(replace(settings, bucket_url=f"s3://filterfarm/{uuid.uuid4().hex}"), retry_s=10)
    # When the other looks
    # Then it sees nothing of it
    assert not other.exists("job/a")
    assert list(other.folders()) == []


def test_a_bucket_can_be_made_twice_and_keeps_its_objects(store: Store) -> None:
    # Given a bucket with an object
    store.put("job/a", b"x", TEXT)
    # When it is made again
    store.make_bucket()
    # Then the object is still there
    assert store.get("job/a") == b"x"


def test_a_missing_bucket_is_an_error_at_once(settings: Settings, s3: S3) -> None:
    # Given a bucket that nobody made
    name = f"b{uuid.uuid4().hex}"
    store = Store(replace(settings, bucket_url=f"s3://{name}"), retry_s=30)
    began = time.monotonic()
    # When it is used
    calls: list[Callable[[], object]] = [store.check, lambda: store.get("a"), lambda: list(store.list(""))]
    if s3.name == "rclone":  # SeaweedFS makes the bucket for its administrator
        calls.append(lambda: store.put("a", b"x", TEXT))
    for call in calls:
        with pytest.raises(NoBucket) as caught:
            call()
        # Then the error names it
        assert repr(name) in str(caught.value)
    # And nothing was tried again
    assert time.monotonic() - began < 10
    # And once it is made, it is there
    store.make_bucket()
    store.check()


@pytest.mark.parametrize("wrong", ["key", "secret"])
def test_wrong_credentials_are_an_error_at_once_and_no_absent_object(
    settings: Settings, s3: S3, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    # Given an object, and credentials of which one half is wrong
    Store(settings, retry_s=10).put("job/a", b"x", TEXT)
    set_credentials(monkeypatch, *(("nobody", s3.secret) if wrong == "key" else (s3.key, "a-wrong-secret")))
    store = Store(settings, retry_s=30)
    began = time.monotonic()
    # When it is used
    calls = (
        store.check, lambda: store.get("job/a"), lambda: store.exists("job/a"), lambda: list(store.list("")),
        lambda: store.put("job/a", b"y", TEXT), lambda: store.put("job/a", bytes(3_000_000), TEXT),
        lambda: store.delete("job/a"),
    )  # fmt: skip
    for call in calls:
        with pytest.raises(StorageDenied) as caught:
            call()
        # Then the error names the variables, and neither key nor secret
        assert "AWS_SECRET_ACCESS_KEY" in str(caught.value)
        assert "a-wrong-secret" not in str(caught.value)
    # And nothing was tried again
    assert time.monotonic() - began < 10


def test_missing_credentials_deny_access(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an environment without credentials, and no machine that would give some
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    # When the store is used, then the error says what to set
    with pytest.raises(StorageDenied, match="AWS_ACCESS_KEY_ID"):
        Store(settings, retry_s=10).check()


def test_a_second_store_of_this_process_may_have_other_credentials(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a store that was used with good credentials
    good = Store(settings, retry_s=10)
    good.check()
    # When the environment changes and another is made
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")
    other = Store(settings, retry_s=10)
    # Then the second goes by what the environment says now
    with pytest.raises(StorageDenied):
        other.check()
    # And the first is as good as before
    good.check()


def test_a_store_on_this_machine_is_reached_past_a_proxy(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an office in which all web traffic goes through a proxy, which does not know this machine's own servers
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    # When a store on 127.0.0.1 is used, as "run" does
    # Then it answers
    Store(settings, retry_s=0).check()


@pytest.mark.parametrize("retry_s", [0.0, 1.0])
def test_a_store_that_does_not_answer_is_given_up_when_its_retries_end(
    rclone: S3, retry_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an address where nobody listens
    rclone.sign_in(monkeypatch)
    endpoint = f"http://127.0.0.1:{free_port()}"
    store = Store(Settings(bucket_url="s3://filterfarm", endpoint_url=endpoint), retry_s=retry_s)
    began = time.monotonic()
    # When the store is used
    with pytest.raises(StorageUnreachable) as caught:
        store.put("job/a", b"x", TEXT)
    # Then it is tried for as long as was asked for, and the error names the address and the variable
    assert retry_s <= time.monotonic() - began + 0.1
    assert time.monotonic() - began < retry_s + 10
    assert endpoint in str(caught.value)
    assert "AWS_ENDPOINT_URL_S3" in str(caught.value)


@pytest.mark.parametrize(("size", "asks"), [(1, False), (100_000, False), (3_000_000, True)])
def test_only_large_bodies_are_announced(settings: Settings, s3: S3, size: int, asks: bool) -> None:
    # Given a proxy that records requests with "Expect: 100-continue"
    with s3_proxy(s3.endpoint) as proxy:
        store = Store(replace(settings, endpoint_url=proxy.endpoint), retry_s=10)
        # When an object is put
        store.put("job/a", bytes(size), TEXT)
        # Then only a large body waits for the server's answer before it is sent
        assert bool(proxy.announced) == asks
        assert store.get("job/a") == bytes(size)


def test_a_server_that_is_no_object_store_is_an_error_of_ours(
    redis_client: object, broker_url: str, rclone: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given the address of another kind of server
    rclone.sign_in(monkeypatch)
    port = broker_url.rpartition(":")[2].partition("/")[0]
    settings = Settings(bucket_url="s3://filterfarm", endpoint_url=f"http://127.0.0.1:{port}")
    # When it is used as a store
    # Then an error of filterfarm is raised
    with pytest.raises(FilterfarmError):
        Store(settings, retry_s=0).check()


def test_stopping_ends_retries_early(rclone: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a store out of reach, and a minute of retries
    rclone.sign_in(monkeypatch)
    stop = threading.Event()
    settings = Settings(bucket_url="s3://filterfarm", endpoint_url=f"http://127.0.0.1:{free_port()}")
    store = Store(settings, retry_s=60, stop=stop)
    timer = threading.Timer(0.5, stop.set)
    timer.start()
    began = time.monotonic()
    # When the stop event is set during the retries
    with pytest.raises(StorageUnreachable):
        store.get("job/a")
    # Then the store raises at once
    assert 0.4 < time.monotonic() - began < 30
    timer.join()


def test_a_store_that_comes_back_in_time_was_never_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a store that has just gone away, and 30 seconds of retries
    with servers.rclone(tmp_path) as at:
        endpoint, key, secret = at
        S3(name="rclone", endpoint=endpoint, key=key, secret=secret).sign_in(monkeypatch)
        store = Store(Settings(bucket_url="s3://filterfarm", endpoint_url=endpoint), retry_s=30)
        store.make_bucket()
    with ThreadPoolExecutor(1) as pool:
        # When an object is put while nobody listens, and then the store comes back
        put = pool.submit(store.put, "job/a", b"x", TEXT)
        time.sleep(0.5)
        assert not put.done()
        with servers.rclone(tmp_path, at=at):
            put.result(30)
            # Then the object is stored
            assert store.get("job/a") == b"x"
