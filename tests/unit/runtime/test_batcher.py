"""The batcher: which tiles go together, when, and what each caller hears."""

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
    """Renders at once, and keeps what it was asked for; while it is held, it is busy with its batch."""

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
    """A batcher that ends with the test."""
    batcher: Batcher[str] = Batcher(run, size=size, wait_s=wait_s)
    try:
        yield batcher
    finally:
        batcher.close()
        assert batcher.join(PATIENCE_S)


@contextmanager
def held(device: Device, batcher: Batcher[str], size: int) -> Iterator["list[Future[str]]"]:
    """The device is busy with a batch of a job of its own, until the block ends."""
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


def answers(futures: "list[Future[str]]") -> list[str]:
    return [future.result(PATIENCE_S) for future in futures]


def test_a_full_batch_goes_at_once() -> None:
    # Given a batcher that would wait for a minute
    device = Device()
    with batching(device, size=4) as batcher:
        # When as many tiles come as a batch holds
        futures = [batcher.submit(ONE, number) for number in (3, 1, 2, 0)]
        # Then they are rendered together, at once, and each caller gets its own
        assert answers(futures) == [f"job features.0 {number}" for number in (3, 1, 2, 0)]
        assert device.batches == [(ONE, (0, 1, 2, 3))]


def test_an_incomplete_batch_runs_once_it_has_waited() -> None:
    # Given a batcher that waits for a fifth of a second
    device, began = Device(), time.monotonic()
    with batching(device, size=8, wait_s=0.2) as batcher:
        # When fewer tiles come than a batch holds
        futures = [batcher.submit(ONE, number) for number in range(3)]
        # Then they are rendered together, after that time
        assert len(answers(futures)) == 3
        assert time.monotonic() - began >= 0.2
        assert device.batches == [(ONE, (0, 1, 2))]


def test_a_filter_that_is_asked_for_twice_is_rendered_once() -> None:
    # Given a message that was delivered twice
    device = Device()
    with batching(device, size=2) as batcher:
        # When both ask for the same tile
        futures = [batcher.submit(ONE, number) for number in (5, 5, 6)]
        # Then both get it, and it was rendered once
        assert answers(futures) == ["job features.0 5", "job features.0 5", "job features.0 6"]
        assert device.batches == [(ONE, (5, 6))]


def test_tiles_of_different_layers_and_jobs_never_share_a_batch() -> None:
    # Given tiles of three groups with the same numbers
    device = Device()
    with batching(device, size=2) as batcher:
        # When they come mixed
        futures = [batcher.submit(group, number) for number in (0, 1) for group in (ONE, TWO, THREE)]
        # Then each group is a batch, and each caller gets the tile of its own group
        assert answers(futures) == [f"{group[0]} {group[1]} {n}" for n in (0, 1) for group in (ONE, TWO, THREE)]
        assert sorted(device.batches) == sorted((group, (0, 1)) for group in (ONE, TWO, THREE))


def test_jobs_take_turns() -> None:
    # Given a busy device
    device = Device()
    with batching(device, size=2) as batcher:
        with held(device, batcher, 2):
            # When one job asks for six tiles, and then another for four
            futures = [batcher.submit(ONE, number) for number in range(6)]
            futures += [batcher.submit(THREE, number) for number in range(4)]
        answers(futures)
        # Then neither waits until the other has all of its own
        assert [group for group, _ in device.batches] == [ONE, THREE, ONE, THREE, ONE]


def test_an_incomplete_batch_is_not_kept_waiting_by_full_ones_of_another_job() -> None:
    # Given a busy device
    device = Device()
    with batching(device, size=2, wait_s=0.0) as batcher:
        with held(device, batcher, 2):
            # When one job asks for three full batches, and another for a single tile
            futures = [batcher.submit(group, number) for group in (ONE, TWO) for number in (0, 1)]
            futures += [batcher.submit(("job", "features.4"), number) for number in (0, 1)]
            futures.append(batcher.submit(THREE, 7))
        answers(futures)
        # Then the single tile has its turn after the first of them
        assert [group for group, _ in device.batches][:3] == [ONE, THREE, TWO]


def test_what_does_not_fit_into_a_batch_is_in_the_next() -> None:
    # Given a busy device
    device = Device()
    with batching(device, size=4, wait_s=0.05) as batcher:
        with held(device, batcher, 4):
            # When more tiles come than a batch holds
            futures = [batcher.submit(ONE, number) for number in range(9)]
        answers(futures)
        # Then none is lost and none is rendered twice
        assert device.batches == [(ONE, (0, 1, 2, 3)), (ONE, (4, 5, 6, 7)), (ONE, (8,))]


def test_an_error_of_one_filter_reaches_only_those_who_asked_for_it() -> None:
    # Given a renderer that cannot make filter 1, and forgets filter 2
    def run(group: Group, filters: tuple[int, ...]) -> "dict[int, str | FilterfarmError]":
        made: dict[int, str | FilterfarmError] = {number: "tile" for number in filters if number != 2}
        return made | {1: RenderFailed("out of paint")}

    with batching(run, size=4) as batcher:
        # When four tiles are asked for
        futures = [batcher.submit(ONE, number) for number in range(4)]
        # Then two are made, and the two others say why not
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
def test_a_run_that_raises_tells_its_callers_and_the_next_batch_goes_on(
    error: Exception, expected: type[FilterfarmError], words: str
) -> None:
    # Given a renderer that raises once
    errors = [error]

    def run(group: Group, filters: tuple[int, ...]) -> "dict[int, str | FilterfarmError]":
        if errors:
            raise errors.pop()
        return dict.fromkeys(filters, "tile")

    with batching(run, size=2) as batcher:
        # When its batch is asked for
        futures = [batcher.submit(ONE, number) for number in range(2)]
        # Then all of the batch hear it
        for future in futures:
            with pytest.raises(expected, match=words):
                future.result(PATIENCE_S)
        # And the next batch is rendered
        assert answers([batcher.submit(ONE, number) for number in range(2)]) == ["tile", "tile"]


def test_closing_hands_back_what_waits_and_lets_the_running_batch_end() -> None:
    # Given a batch on the device, and tiles that wait
    device = Device()
    with batching(device, size=2) as batcher:
        with held(device, batcher, 2) as running:
            waiting = [batcher.submit(group, number) for group in (ONE, TWO) for number in range(3)]
            # When the worker is told to stop
            batcher.close()
            # Then all that waits is handed back at once
            for future in waiting:
                with pytest.raises(Draining):
                    future.result(1)
            # And the batch on the device goes on
            assert not batcher.join(0.05)
            assert not any(future.done() for future in running)
        # And ends with its tiles, and with it the thread
        assert len(answers(running)) == 2
        assert batcher.join(PATIENCE_S)
        assert device.batches == []


def test_callers_of_a_batch_are_told_once_the_next_one_is_on_the_device() -> None:
    # Given a device that is held with each batch before it begins, and again once it has
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
        # When the second batch is to begin
        assert arrived.acquire(timeout=PATIENCE_S)
        # Then nobody has been told of the first one
        assert not first.done()
        # And when it has begun, they have
        steps[-1].set()
        assert arrived.acquire(timeout=PATIENCE_S)
        assert (first.result(0), second.done()) == ("job", False)
        # And of the last one, which none follows, when it ends
        steps[-1].set()
        assert second.result(PATIENCE_S) == "other"


def test_callers_of_a_batch_are_told_when_the_next_one_never_comes_to_the_device() -> None:
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


def test_a_closed_batcher_takes_no_work() -> None:
    # Given a batcher that was closed, twice
    with batching(Device(), size=2) as batcher:
        batcher.close()
        batcher.close()
        # When a tile is asked for
        future = batcher.submit(ONE, 0)
        # Then it is handed back at once
        with pytest.raises(Draining):
            future.result(1)


def test_many_callers_at_once_each_get_their_own() -> None:
    # Given a device and 16 callers, as many as a worker has threads
    device = Device()
    found: list[tuple[Group, int, str]] = []

    with batching(device, size=8, wait_s=0.01) as batcher:

        def call(start: int) -> None:
            for number in range(start, 320, 16):
                group = (ONE, TWO, THREE)[number % 3]
                found.append((group, number, batcher.submit(group, number).result(PATIENCE_S)))

        # When they ask for 320 tiles of three groups
        threads = [threading.Thread(target=call, args=(start,)) for start in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
    # Then each has what it asked for, and each tile was rendered once
    assert all(text == f"{group[0]} {group[1]} {number}" for group, number, text in found)
    assert sorted(number for _, filters in device.batches for number in filters) == list(range(320))
