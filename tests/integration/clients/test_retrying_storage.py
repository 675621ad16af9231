"""The store as a worker uses it, before a real object store that fails."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conftest import S3
from tests.e2e.fleet import wait_for
from tests.s3proxy import S3Proxy, s3_proxy
from workers.clients import retrying_storage
from workers.clients.retrying_storage import RetryingStore
from workers.contract.errors import Draining, FilterfarmError, StorageDenied, StorageUnreachable
from workers.contract.settings import Settings

TEXT = "text/plain"


@pytest.fixture
def proxy(s3: S3) -> Iterator[S3Proxy]:
    """The store behind a proxy."""
    with s3_proxy(s3.endpoint) as made:
        yield made


class Reports:
    """The errors that a store has reported."""

    def __init__(self) -> None:
        self.errors: list[FilterfarmError | None] = []

    def __call__(self, error: FilterfarmError | None) -> None:
        self.errors.append(error)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of 0.2 s."""
    monkeypatch.setattr(retrying_storage, "PAUSE_S", 0.2)
    monkeypatch.setattr(retrying_storage, "OWN_RETRY_S", 0.1)


def retrying(
    proxy: S3Proxy, reports: Reports, *, stop: threading.Event | None = None, for_s: float = 30.0
) -> RetryingStore:
    """A worker's store behind the proxy, which retries for ``for_s`` seconds."""
    url = "s3://filterfarm/retries"
    settings = Settings(bucket_url=url, endpoint_url=proxy.endpoint, storage_retry_s=for_s)
    return RetryingStore(settings, stop=stop or threading.Event(), report=reports)


@pytest.mark.parametrize("fault", ["denied", "down"])
def test_one_of_many_callers_retries_and_all_succeed_when_the_store_recovers(proxy: S3Proxy, fault: str) -> None:
    # Given a store that fails, and twenty callers with an object each
    reports = Reports()
    store = retrying(proxy, reports)
    setattr(proxy, fault, True)
    callers = [threading.Thread(target=store.put, args=(f"{n}", b"%d" % n, TEXT)) for n in range(20)]
    for caller in callers:
        caller.start()
    wait_for("the first error", lambda: reports.errors, 30)
    # When each has had its own retries
    time.sleep(1.0)
    mark = time.time()
    wait_for("requests", lambda: len(proxy.since(mark)) >= 5, 30)
    # Then one at a time retries, in turn: twenty at once would send ten times as many requests
    assert len(proxy.since(mark)) <= 5 + 15 * (time.time() - mark)
    assert reports.errors
    assert None not in reports.errors
    # And when the store recovers, each object is stored, and the recovery is reported
    setattr(proxy, fault, False)
    for caller in callers:
        caller.join(20)
    assert [store.get(f"{n}") for n in range(20)] == [b"%d" % n for n in range(20)]
    assert reports.errors[-1] is None
    assert store.exists("7")


def test_an_absent_object_is_no_error(proxy: S3Proxy) -> None:
    # Given a store that works
    reports = Reports()
    store = retrying(proxy, reports)
    # When / Then a missing object is read, and no error is reported
    assert store.get("nothing") is None
    assert not store.exists("nothing")
    store.wait_until_ready()
    assert reports.errors == []


def test_the_last_error_is_raised_when_the_retries_end(proxy: S3Proxy) -> None:
    # Given a store that fails for longer than a worker waits
    proxy.denied = True
    store = retrying(proxy, Reports(), for_s=0.5)
    # When an object is put
    began = time.monotonic()
    with pytest.raises(StorageDenied):
        store.put("x", b"x", TEXT)
    # Then it raises in time, and so does waiting for the store
    assert time.monotonic() - began < 5
    with pytest.raises(StorageDenied):
        store.wait_until_ready()
    # And the kind of error may change meanwhile
    proxy.denied, proxy.down = False, True
    with pytest.raises(StorageUnreachable):
        store.put("x", b"x", TEXT)
    proxy.down = False
    store.wait_until_ready()
    store.put("x", b"x", TEXT)


def test_callers_of_a_stopping_worker_raise_draining(proxy: S3Proxy) -> None:
    # Given callers that wait for a store
    stop = threading.Event()
    ended: list[Draining] = []
    proxy.denied = True
    store = retrying(proxy, Reports(), stop=stop)

    def put() -> None:
        try:
            store.put("x", b"x", TEXT)
        except Draining as error:
            ended.append(error)

    callers = [threading.Thread(target=put) for _ in range(5)]
    for caller in callers:
        caller.start()
    time.sleep(0.5)
    # When the worker stops
    stop.set()
    # Then each caller ends soon
    for caller in callers:
        caller.join(5)
    assert len(ended) == 5


def test_a_store_that_is_read_and_not_written_stays_unavailable(proxy: S3Proxy) -> None:
    # Given keys that may not write any more, and a worker that has found out
    reports = Reports()
    store = retrying(proxy, reports, for_s=0.5)
    store.put("there", b"x", TEXT)
    proxy.denied, proxy.denied_methods = True, ("PUT",)
    with pytest.raises(StorageDenied):
        store.put("tile", b"x", TEXT)
    # When it reads
    assert store.get("there") == b"x"
    assert store.exists("there")
    # Then that is no recovery: nothing is rendered that could not be stored
    assert None not in reports.errors
    with pytest.raises(StorageDenied):
        store.wait_until_ready()
    # And when it may write again, it is one
    proxy.denied = False
    store.wait_until_ready()
    assert reports.errors[-1] is None
    store.put("tile", b"x", TEXT)


def test_hundreds_of_threads_share_its_connections(proxy: S3Proxy, caplog: pytest.LogCaptureFixture) -> None:
    # Given
    store = retrying(proxy, Reports())
    # When each of 200 threads stores an object at the same time
    with ThreadPoolExecutor(200) as threads:
        list(threads.map(lambda number: store.put(f"{number}.txt", b"x" * 60_000, TEXT), range(400)))
    # Then no connection was made beside those that the client keeps
    assert store.get("399.txt") == b"x" * 60_000
    assert "Connection pool is full" not in caplog.text
