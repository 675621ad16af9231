"""The batcher: which tiles form a batch, when it starts, and the result of each caller."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import pytest

from workers.contract.errors import Draining, FilterfarmError, RenderFailed, WeightsMissing
from workers.runtime.batcher import Batcher, Group

#: Longer than any of these tests waits on purpose.
PATIENCE_S = 10.0

ONE, TWO, THREE = ("job", "features.0"), ("job", "features.2"), ("other", "features.0")

Run = Callable[[Group, tuple[int, ...]], "dict[int, str | FilterfarmError]"]


class Device:
    """Renders without delay and records its batches. While it is held, it stays busy with its batch."""

    def __init__(self) -> None:
        self.batches: list[tuple[Group, tuple[int, ...]]] = []
        self.busy = threading.Event()
        self.free = threading.Event()
        self.free.set()

    def __call__(self, group: Group, filters: tuple[int, ...]) -> "dict[int, str | FilterfarmError]":
        self.batches.append((group, filters))
        self.busy.set()
        assert self.free.wait(PATIENCE_S)
        return {filter_: f"{group[0]} {group[1]} {filter_}" for filter_ in filters}


@contextmanager
def batching(run: Run, *, size: int, wait_s: float = 60.0) -> Iterator[Batcher[str]]:
    """A batcher that is closed at the end of the test."""
    batcher: Batcher[str] = Batcher(run, size=size, wait_s=wait_s)
    try:
        yield batcher
    finally:
        batcher.close()
        assert batcher.join(PATIENCE_S)


@contextmanager
def held(device: Device, batcher: Batcher[str], size: int) -> Iterator["list[Future[str]]"]:
    """Keep the device busy with a batch of another job until the block ends."""
    device.busy.clear()
    device.free.clear()
    group, before = ("held", "features.0"), len(device.batches)
    futures = [batcher.submit(group, number) for number in range(size)]
    assert device.busy.wait(PATIENCE_S)
    try:
        yield futures
    finally:
        del device.batches[before]
        device.free.set()


def results(futures: "list[Future[str]]") -> list[str]:
    return [future.result(PATIENCE_S) for future in futures]


def test_a_full_batch_starts_at_once() -> None:
    # Given a batcher that would wait for a minute
    device = Device()
    with batching(device, size=4) as batcher:
        # When as many tiles are requested as a batch holds
        futures = [batcher.submit(ONE, number) for number in (3, 1, 2, 0)]
        # Then they are rendered together without delay, and each caller gets its own tile
        assert results(futures) == [f"job features.0 {number}" for number in (3, 1, 2, 0)]
        assert device.batches == [(ONE, (0, 1, 2, 3))]


def test_an_incomplete_batch_starts_after_the_waiting_time() -> None:
    # Given a batcher that waits for a fifth of a second
    device, began = Device(), time.monotonic()
    with batching(device, size=8, wait_s=0.2) as batcher:
        # When fewer tiles are requested than a batch holds
        futures = [batcher.submit(ONE, number) for number in range(3)]
        # Then they are rendered together, after that time
        assert len(results(futures)) == 3
        assert time.monotonic() - began >= 0.2
        assert device.batches == [(ONE, (0, 1, 2))]


def test_a_filter_that_is_requested_twice_is_rendered_once() -> None:
    # Given a message that was delivered twice
    device = Device()
    with batching(device, size=2) as batcher:
        # When the same tile is requested twice
        futures = [batcher.submit(ONE, number) for number in (5, 5, 6)]
        # Then both callers get it, and it was rendered once
        assert results(futures) == ["job features.0 5", "job features.0 5", "job features.0 6"]
        assert device.batches == [(ONE, (5, 6))]


def test_tiles_of_different_layers_and_jobs_never_share_a_batch() -> None:
    # Given tiles of three groups with the same numbers
    device = Device()
    with batching(device, size=2) as batcher:
        # When they are requested in mixed order
        futures = [batcher.submit(group, number) for number in (0, 1) for group in (ONE, TWO, THREE)]
        # Then each group is a batch, and each caller gets the tile of its own group
        assert results(futures) == [f"{group[0]} {group[1]} {n}" for n in (0, 1) for group in (ONE, TWO, THREE)]
        assert sorted(device.batches) == sorted((group, (0, 1)) for group in (ONE, TWO, THREE))


def test_jobs_are_rendered_round_robin() -> None:
    # Given a busy device
    device = Device()
    with batching(device, size=2) as batcher:
        with held(device, batcher, 2):
            # When six tiles of one job are requested, and then four of another
            futures = [batcher.submit(ONE, number) for number in range(6)]
            futures += [batcher.submit(THREE, number) for number in range(4)]
        results(futures)
        # Then their batches alternate
        assert [group for group, _ in device.batches] == [ONE, THREE, ONE, THREE, ONE]


def test_an_incomplete_batch_is_not_kept_waiting_by_full_ones_of_another_job() -> None:
    # Given a busy device
    device = Device()
    with batching(device, size=2, wait_s=0.0) as batcher:
        with held(device, batcher, 2):
            # When three full batches of one job are requested, and a single tile of another
            futures = [batcher.submit(group, number) for group in (ONE, TWO) for number in (0, 1)]
            futures += [batcher.submit(("job", "features.4"), number) for number in (0, 1)]
            futures.append(batcher.submit(THREE, 7))
        results(futures)
        # Then the single tile is rendered after the first of them
        assert [group for group, _ in device.batches][:3] == [ONE, THREE, TWO]


def test_tiles_beyond_a_full_batch_are_in_the_next() -> None:
    # Given a busy device
    device = Device()
    with batching(device, size=4, wait_s=0.05) as batcher:
        with held(device, batcher, 4):
            # When more tiles are requested than a batch holds
            futures = [batcher.submit(ONE, number) for number in range(9)]
        results(futures)
        # Then none is lost and none is rendered twice
        assert device.batches == [(ONE, (0, 1, 2, 3)), (ONE, (4, 5, 6, 7)), (ONE, (8,))]


def test_an_error_of_one_filter_is_raised_to_its_callers_alone() -> None:
    # Given a renderer that returns an error for filter 1 and nothing for filter 2
    def run(group: Group, filters: tuple[int, ...]) -> "dict[int, str | FilterfarmError]":
        made: dict[int, str | FilterfarmError] = {number: "tile" for number in filters if number != 2}
        return made | {1: RenderFailed("out of paint")}

    with batching(run, size=4) as batcher:
        # When four tiles are requested
        futures = [batcher.submit(ONE, number) for number in range(4)]
        # Then two are returned, and the other two raise an error that names the reason
        assert [futures[number].result(PATIENCE_S) for number in (0, 3)] == ["tile", "tile"]
        with pytest.raises(RenderFailed, match="out of paint"):
            futures[1].result(PATIENCE_S)
        with pytest.raises(RenderFailed, match="no result for filter 2"):
            futures[2].result(PATIENCE_S)


@pytest.mark.parametrize(
    ("error", "expected", "words"),
    [
        (WeightsMissing("no weights here"), WeightsMissing, "no weights here"),
        (ZeroDivisionError("by zero"), FilterfarmError, "ZeroDivisionError: by zero"),
        (MemoryError(), FilterfarmError, "MemoryError"),
    ],
)
def test_an_exception_is_raised_to_all_callers_of_the_batch_and_the_next_batch_is_rendered(
    error: Exception, expected: type[FilterfarmError], words: str
) -> None:
    # Given a renderer that raises once
    errors = [error]

    def run(group: Group, filters: tuple[int, ...]) -> "dict[int, str | FilterfarmError]":
        if errors:
            raise errors.pop()
        return dict.fromkeys(filters, "tile")

    with batching(run, size=2) as batcher:
        # When its batch is requested
        futures = [batcher.submit(ONE, number) for number in range(2)]
        # Then all of the batch raise the error
        for future in futures:
            with pytest.raises(expected, match=words):
                future.result(PATIENCE_S)
        # And the next batch is rendered
        assert results([batcher.submit(ONE, number) for number in range(2)]) == ["tile", "tile"]


def test_closing_hands_back_waiting_tiles_and_completes_the_running_batch() -> None:
    # Given a batch on the device, and tiles that wait
    device = Device()
    with batching(device, size=2) as batcher:
        with held(device, batcher, 2) as running:
            waiting = [batcher.submit(group, number) for group in (ONE, TWO) for number in range(3)]
            # When the batcher is closed
            batcher.close()
            # Then all waiting tiles are handed back at once
            for future in waiting:
                with pytest.raises(Draining):
                    future.result(1)
            # And the batch on the device is still rendered
            assert not batcher.join(0.05)
            assert not any(future.done() for future in running)
        # And its tiles are returned, and then the thread ends
        assert len(results(running)) == 2
        assert batcher.join(PATIENCE_S)
        assert device.batches == []


def test_a_batch_is_returned_once_the_next_one_is_on_the_device() -> None:
    # Given a device that is held before each batch, and again at its start
    steps: list[threading.Event] = []
    arrived = threading.Semaphore(0)
    batchers: list[Batcher[str]] = []

    def pause() -> None:
        steps.append(threading.Event())
        arrived.release()
        assert steps[-1].wait(PATIENCE_S)

    def run(group: Group, filters: tuple[int, ...]) -> "dict[int, str | FilterfarmError]":
        pause()
        batchers[0].resolve_previous()
        pause()
        return dict.fromkeys(filters, group[0])

    with batching(run, size=1) as batcher:
        batchers.append(batcher)
        first, second = batcher.submit(ONE, 0), batcher.submit(THREE, 0)
        for _ in range(2):
            assert arrived.acquire(timeout=PATIENCE_S)
            steps[-1].set()
        # When the second batch is due
        assert arrived.acquire(timeout=PATIENCE_S)
        # Then no caller of the first one has a result
        assert not first.done()
        # And they have once the second has started
        steps[-1].set()
        assert arrived.acquire(timeout=PATIENCE_S)
        assert (first.result(0), second.done()) == ("job", False)
        # And the last batch, which none follows, is returned when it ends
        steps[-1].set()
        assert second.result(PATIENCE_S) == "other"


def test_a_batch_is_returned_if_the_next_one_never_reaches_the_device() -> None:
    # Given
    device = Device()

    def run(group: Group, filters: tuple[int, ...]) -> "dict[int, str | FilterfarmError]":
        if group == TWO:
            raise WeightsMissing("no weights")
        return device(group, filters)

    with batching(run, size=1) as batcher:
        with held(device, batcher, size=1):
            first, second = batcher.submit(ONE, 0), batcher.submit(TWO, 0)
        # When / Then
        assert first.result(PATIENCE_S) == "job features.0 0"
        assert isinstance(second.exception(PATIENCE_S), WeightsMissing)


def test_a_closed_batcher_hands_back_every_request() -> None:
    # Given a batcher that was closed, twice
    with batching(Device(), size=2) as batcher:
        batcher.close()
        batcher.close()
        # When a tile is requested
        future = batcher.submit(ONE, 0)
        # Then it is handed back without delay
        with pytest.raises(Draining):
            future.result(1)


def test_many_concurrent_callers_each_get_their_own_tiles() -> None:
    # Given a device and 16 callers, as many as a worker has threads
    device = Device()
    found: list[tuple[Group, int, str]] = []

    with batching(device, size=8, wait_s=0.01) as batcher:

        def call(start: int) -> None:
            for number in range(start, 320, 16):
                group = (ONE, TWO, THREE)[number % 3]
                found.append((group, number, batcher.submit(group, number).result(PATIENCE_S)))

        # When they request 320 tiles of three groups
        threads = [threading.Thread(target=call, args=(start,)) for start in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
    # Then each has its own tiles, and each tile was rendered once
    assert all(text == f"{group[0]} {group[1]} {number}" for group, number, text in found)
    assert sorted(number for _, filters in device.batches for number in filters) == list(range(320))
