"""The render process and its faults, each injected into a real child process."""

import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from tests.e2e.fleet import wait_for
from tests.injection import into_python, into_renderer
from tests.jobs import sample_job
from workers.contract.errors import DeviceFailed, DeviceFull, DeviceLost, Draining, FilterfarmError, RenderFailed
from workers.contract.job import Job, Weights
from workers.rendering.tile import Tile
from workers.runtime import render_child
from workers.runtime.render_process import MAX_ATTEMPTS, Batch, Renderer

FILTERS = tuple(range(8))

#: Longer than a child takes to start on a busy machine.
HANG_S = 30.0


def a_job(*layers: str, size_px: int = 16) -> Job:
    return sample_job(*layers, model="squeezenet1_1", filters="0-15", size_px=size_px)


def a_batch(job: Job, layer: str = "features.0", filters: tuple[int, ...] = FILTERS) -> Batch:
    return Batch(job=job, layer=layer, filters=filters, checkpoint=None, device="cpu")


class Child:
    """A renderer whose child runs injected code before each batch. ``calls`` returns the batches it began."""

    def __init__(self, renderer: Renderer, calls: Path) -> None:
        self.render, self.stop = renderer.render, renderer.stop
        self._calls = calls

    def calls(self) -> list[list[int]]:
        """Filters of each batch that the child began since the last call."""
        found = [list(map(int, line.split())) for line in self._calls.read_text().splitlines()]
        self._calls.write_text("")
        return found


@contextmanager
def a_renderer() -> Iterator[Renderer]:
    renderer = Renderer(hang_s=HANG_S)
    try:
        yield renderer
    finally:
        renderer.stop()


@contextmanager
def a_child(folder: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> Iterator[Child]:
    calls = folder / "calls"
    calls.touch()
    note = f"print(*filters, file=open({str(calls)!r}, 'a'), flush=True)"
    for name, value in into_renderer(folder / "fault", f"{note}\n{textwrap.dedent(fault)}").items():
        monkeypatch.setenv(name, value)
    with a_renderer() as renderer:
        yield Child(renderer, calls)


def errors(results: dict[int, Tile | FilterfarmError]) -> dict[int, str]:
    return {filter_: str(result) for filter_, result in results.items() if isinstance(result, FilterfarmError)}


def test_tiles_that_kill_the_renderer_fail_alone_after_three_attempts_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given one filter that crashes the renderer, one that aborts it, and one that is killed as for too much memory
    fault = """
        if 1 in filters: ctypes.string_at(0)
        if 2 in filters: os.abort()
        if 5 in filters: os.kill(os.getpid(), signal.SIGKILL)
    """
    with a_child(tmp_path, monkeypatch, fault) as child:
        # When they are in one batch of eight
        results = child.render(a_batch(a_job()))

        # Then these alone have no tile, and each has its reason
        assert set(results) == set(FILTERS)
        times = f" ({MAX_ATTEMPTS} attempts)"
        assert errors(results) == {
            filter_: f"renderer died: signal {number}{times}" for filter_, number in ((1, 11), (2, 6), (5, 9))
        }

        # And each was rendered three times, the last time alone
        calls = child.calls()
        for filter_ in (1, 2, 5):
            with_it = [filters for filters in calls if filter_ in filters]
            assert len(with_it) == MAX_ATTEMPTS == 3
            assert with_it[-1] == [filter_]


@pytest.mark.faults  # each of its three attempts waits for the time limit
def test_a_tile_that_hangs_the_renderer_fails_alone_after_three_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a filter whose rendering never ends
    with a_child(tmp_path, monkeypatch, "while 5 in filters: time.sleep(1)") as child:
        # When it is in a batch of eight
        results = child.render(a_batch(a_job()))
        # Then it alone has no tile, after three attempts
        assert set(results) == set(FILTERS)
        assert errors(results) == {5: f"renderer made no progress for {HANG_S:g} s (3 attempts)"}
        assert isinstance(results[5], RenderFailed)
        assert len([filters for filters in child.calls() if 5 in filters]) == 3


def test_a_tile_that_raises_affects_no_other_tile_and_no_renderer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a filter whose rendering raises
    with a_child(tmp_path, monkeypatch, "if 2 in filters: raise RuntimeError('no such luck')") as child:
        # When it is in a batch
        results = child.render(a_batch(a_job()))
        # Then it alone has no tile, and is not retried
        assert errors(results) == {2: "RuntimeError: no such luck"}
        assert child.calls().count([2]) == 1


def test_a_batch_that_does_not_fit_is_halved_and_what_fits_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a device with memory for three tiles of one layer
    fault = (
        "if layer == 'features.0' and len(filters) > 3:\n"
        "    raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB')"
    )
    with a_child(tmp_path, monkeypatch, fault) as child:
        job = a_job("features.0", "features.3.squeeze")

        # When a batch of eight is rendered
        results = child.render(a_batch(job))

        # Then it is halved until it fits, the rest uses that size at once, and every tile is rendered
        assert set(results) == set(FILTERS)
        assert errors(results) == {}
        assert [len(filters) for filters in child.calls()] == [8, 4, 2, 2, 2, 2]

        # And the next batch of that layer starts with that size, and one of another layer with its full size
        child.render(a_batch(job, filters=tuple(range(8, 16))))
        assert [len(filters) for filters in child.calls()] == [2, 2, 2, 2]
        child.render(a_batch(job, "features.3.squeeze"))
        assert [len(filters) for filters in child.calls()] == [8]


def test_a_process_at_its_memory_limit_renders_in_smaller_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a child that may allocate 100 MB: less than eight of the tiles need, and more than one needs
    fault = """
        pages = int(open("/proc/self/statm").read().split()[0])
        if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
            original(tap, layer, filters[:1], recipe, device)
            pages = int(open("/proc/self/statm").read().split()[0])
            limit = pages * os.sysconf("SC_PAGE_SIZE") + 100 * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    """
    with a_child(tmp_path, monkeypatch, fault) as child:
        job = a_job("features.3.squeeze", size_px=400)
        job = job.model_copy(update={"recipe": job.recipe.model_copy(update={"steps": 1})})

        # When a batch of eight is rendered
        results = child.render(a_batch(job, "features.3.squeeze"))

        # Then every tile is rendered, in smaller batches of the same child
        assert set(results) == set(FILTERS)
        assert errors(results) == {}
        sizes = [len(filters) for filters in child.calls()]
        assert sizes[0] == 8
        assert sizes[-1] < 8


def test_a_batch_that_does_not_fit_is_freed_before_its_halves_are_rendered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a device with memory for four tiles, unless a tensor of a failed batch is still allocated
    fault = """
        import weakref
        if getattr(torch, "left_over", lambda: None)() is not None:
            raise RuntimeError("the failed batch is still in memory")
        if len(filters) > 4:
            activations = torch.zeros(len(filters))
            torch.left_over = weakref.ref(activations)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
    """
    with a_child(tmp_path, monkeypatch, fault) as child:
        # When a batch of eight is rendered
        results = child.render(a_batch(a_job()))
        # Then its memory is free when its halves are rendered
        assert errors(results) == {}
        assert [len(filters) for filters in child.calls()] == [8, 4, 4]


def test_a_batch_that_is_killed_for_its_memory_is_halved_and_what_fits_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a machine that kills a process that renders more than three tiles
    fault = "if len(filters) > 3: os.kill(os.getpid(), signal.SIGKILL)"
    with a_child(tmp_path, monkeypatch, fault) as child:
        # When a batch of eight is rendered
        results = child.render(a_batch(a_job()))
        # Then every tile is rendered
        assert set(results) == set(FILTERS)
        assert errors(results) == {}
        assert [len(filters) for filters in child.calls()] == [8, 4, 1, 1, 1, 1, 2, 2]
        # And another job of the same network and recipe starts with the size that fits
        other = a_job().model_copy(update={"weights": a_job().weights.model_copy(update={"name": "other"}), "id": "b"})
        assert other.id != a_job().id
        assert errors(child.render(a_batch(other, filters=tuple(range(8, 16))))) == {}
        assert [len(filters) for filters in child.calls()] == [2, 2, 2, 2]


def test_a_device_that_fails_once_gets_a_new_process_and_no_tile_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a fault after which every call of the process fails, as after an illegal access on a GPU
    fault = f"""
        if not os.path.exists({str(tmp_path / "broken")!r}):
            open({str(tmp_path / "broken")!r}, "w").close()
            torch.broken = True
        if hasattr(torch, "broken"):
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    """
    with a_child(tmp_path, monkeypatch, fault) as child:
        # When a batch is rendered
        results = child.render(a_batch(a_job()))
        # Then another process renders it
        assert set(results) == set(FILTERS)
        assert errors(results) == {}
        assert [len(filters) for filters in child.calls()] == [8, 4, 4]


def test_a_device_that_always_fails_is_the_reason_of_each_tile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    fault = "raise torch.AcceleratorError('CUDA error: uncorrectable ECC error encountered')"
    with a_child(tmp_path, monkeypatch, fault) as child:
        # When a batch is rendered
        results = child.render(a_batch(a_job(), filters=(3,)))
        # Then the error of the tile is of a type that is requeued for other workers
        assert [type(result) for result in results.values()] == [DeviceFailed]
        assert errors(results)[3] == "AcceleratorError: CUDA error: uncorrectable ECC error encountered"
        assert child.calls() == [[3]] * MAX_ATTEMPTS


@pytest.mark.faults  # it waits for the time limit
def test_a_device_that_no_longer_answers_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a device on which every call blocks, such as a GPU that has disconnected from its bus
    hang = """
        import sys, time
        if "--multiprocessing-fork" in sys.orig_argv:
            import torch
            torch.nn.Conv2d._conv_forward = lambda *_: time.sleep(600)
    """
    for name, value in into_python(tmp_path / "fault", textwrap.dedent(hang)).items():
        monkeypatch.setenv(name, value)
    # When it is checked / Then
    reason = "cpu does not compute: renderer made no progress for 30 s"
    with a_renderer() as renderer, pytest.raises(DeviceLost, match=reason):
        renderer.check("cpu")


def test_a_device_that_this_machine_does_not_have_is_lost() -> None:
    with a_renderer() as renderer:
        # When / Then
        with pytest.raises(DeviceLost, match="cuda:99 does not compute: "):
            renderer.check("cuda:99")
        # And a device that computes is not lost
        renderer.check("cpu")


def test_a_tile_that_does_not_fit_alone_fails_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a device without free memory
    fault = "raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB')"
    with a_child(tmp_path, monkeypatch, fault) as child:
        # When a batch is rendered
        results = child.render(a_batch(a_job(), filters=(0, 1)))
        # Then the error of each tile is of a type that is requeued for other workers
        assert [type(result) for result in results.values()] == [DeviceFull, DeviceFull]
        assert errors(results)[0] == "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB"


@pytest.mark.faults  # it takes longer than the time limit
def test_a_renderer_that_makes_progress_is_not_hung_however_long_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a renderer that takes longer than the time limit, and makes progress all the time
    fault = f"""
        for _ in range({int(HANG_S) + 4}):
            time.sleep(1)
            torch.nn.Identity()(torch.zeros(1))
    """
    with a_child(tmp_path, monkeypatch, fault) as child:
        # When it renders a batch
        results = child.render(a_batch(a_job()))
        # Then it was not restarted
        assert errors(results) == {}
        assert len(child.calls()) == 1


def test_the_start_of_a_batch_is_reported_once_while_the_device_renders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a child that waits for the report, and then has no memory for more than half of a batch
    reported = tmp_path / "reported"
    fault = f"""
        import pathlib
        while not pathlib.Path({str(reported)!r}).exists():
            time.sleep(0.01)
        if len(filters) > 4:
            raise MemoryError("too many")
    """
    times = []

    def begun() -> None:
        times.append(time.monotonic())
        reported.touch()

    with a_child(tmp_path, monkeypatch, fault) as child:
        # When
        results = child.render(a_batch(a_job()), begun)
        # Then
        assert not errors(results)
        assert child.calls() == [list(FILTERS), list(FILTERS[:4]), list(FILTERS[4:])]
    assert len(times) == 1


def test_stopping_requeues_the_batch_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a renderer during a batch
    with a_child(tmp_path, monkeypatch, "time.sleep(600)") as child:
        raised: list[BaseException] = []

        def render() -> None:
            try:
                child.render(a_batch(a_job()))
            except Draining as error:
                raised.append(error)

        thread = threading.Thread(target=render)
        thread.start()
        deadline = time.monotonic() + 60
        while not child.calls():
            assert time.monotonic() < deadline
            time.sleep(0.1)

        # When it is stopped
        child.stop()
        thread.join(10)

        # Then the batch raises Draining, and so does every later one
        assert [str(error) for error in raised] == ["the worker is stopping"]
        with pytest.raises(Draining):
            child.render(a_batch(a_job()))


def test_stopping_keeps_the_tiles_of_the_parts_that_are_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a batch of which a part of four does not fit into memory, and whose second half of that takes long
    fault = """
        if len(filters) > 4: raise torch.OutOfMemoryError("CUDA out of memory")
        if 4 in filters: time.sleep(600)
    """
    with a_child(tmp_path, monkeypatch, fault) as child:
        found: list[dict[int, Tile | FilterfarmError]] = []
        thread = threading.Thread(target=lambda: found.append(child.render(a_batch(a_job()))))
        thread.start()
        wait_for("the second half", lambda: [4, 5, 6, 7] in child.calls(), 120)

        # When the renderer is stopped
        child.stop()
        thread.join(10)

        # Then the first half has its tiles, and the rest is requeued
        (results,) = found
        assert all(isinstance(results[filter_], Tile) for filter_ in (0, 1, 2, 3))
        assert all(isinstance(results[filter_], Draining) for filter_ in (4, 5, 6, 7))


def test_large_tensors_are_allocated_in_huge_pages_unless_the_user_sets_glibc_tunables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    found = tmp_path / "found"
    report = f"import os; open({str(found)!r}, 'w').write(os.environ['GLIBC_TUNABLES'])"
    for mine, wanted in ((None, "glibc.malloc.hugetlb=1"), ("glibc.malloc.arena_max=3", "glibc.malloc.arena_max=3")):
        monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
        if mine is not None:
            monkeypatch.setenv("GLIBC_TUNABLES", mine)
        # When
        folder = tmp_path / str(mine)
        folder.mkdir()
        with a_child(folder, monkeypatch, report) as child:
            child.render(a_batch(a_job("features.0")))
        # Then
        assert found.read_text() == wanted


@pytest.mark.parametrize(("source", "seeds"), [("none", {1, 2}), ("file", {0})])
def test_a_network_with_trained_weights_is_the_same_for_every_seed(
    source: Literal["none", "file"], seeds: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given batches of two seeds
    renderer = Renderer(hang_s=60)
    asked: list[tuple[Any, ...]] = []

    def answer(function: object, network: tuple[Any, ...], *rest: object) -> list[Tile]:
        asked.append(network)
        return []

    monkeypatch.setattr(renderer, "_call", answer)
    weights = Weights(source=source, name="mine.pth", sha256="0" * 64)
    try:
        # When they are rendered
        for seed in (1, 2):
            job = sample_job(weights=weights, seed=seed)
            renderer.render(Batch(job=job, layer="features.0", filters=(0,), checkpoint=None, device="cpu"))
    finally:
        renderer.stop()
    # Then random networks differ, and a trained one is loaded once
    assert {network[3] for network in asked} == seeds


def test_a_growing_download_is_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a folder of downloads
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(render_child, "_DOWNLOAD_CHECK_S", 0.05)
    partial = tmp_path / "hub" / "checkpoints" / "vgg16.pth.0123.partial"
    partial.parent.mkdir(parents=True)
    progress = SimpleNamespace(value=0)
    threading.Thread(target=render_child._count_downloads, args=(progress,), daemon=True).start()
    # When a file grows, then that counts
    seen = 0
    for size in (10, 20, 30):
        (tmp_path / "next").write_bytes(bytes(size))
        (tmp_path / "next").replace(partial)  # at once, without an empty file between
        wait_for("progress", lambda seen=seen: progress.value > seen, 10)  # type: ignore[misc]
        seen = progress.value
    # And when it does not, then it does not
    time.sleep(0.3)
    assert progress.value == seen
