"""The gallery that the collector writes, pass by pass, against real servers."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import redis
from celery import Celery

from producer.collector import collector as module
from producer.collector import job_gallery, jobs_index, lost_messages, previews
from producer.collector.collector import Collector
from producer.gallery import site
from producer.jobs.inventory import load_job, read_state, write_status
from producer.jobs.submit import submit
from tests.integration.collector.conftest import MakeCollector
from tests.integration.collector.test_collector import Passes, acknowledge_all, document, drive, objects
from tests.integration.jobs.test_submit import fail
from tests.jobs import NAMES, finish_tiles, sample_job, sample_tile
from workers.clients.ledger import Ledger
from workers.clients.storage import Store
from workers.contract import keys
from workers.contract.errors import StorageUnreachable

JOB = sample_job("features.0", "features.2")
ALL = set(range(len(JOB.tiles)))

FIRST_VERSION = Path(__file__).parents[2] / "data" / "v0.1.0" / "bucket"


@pytest.fixture(autouse=True)
def short_periods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pass lists the bucket, looks at each layer and writes what has changed."""
    monkeypatch.setattr(lost_messages, "LOST_S", 60.0)
    monkeypatch.setattr(module, "RESCAN_S", 0.0)
    monkeypatch.setattr(previews, "EVERY_S", 0.0)
    monkeypatch.setattr(previews, "_PAUSE", 0.0)
    for owner in (job_gallery, jobs_index):
        monkeypatch.setattr(owner, "EVERY_S", 0.0)


def received(store: Store, key: str) -> Any:
    """The data of a script."""
    text = (store.get(key) or b"").decode("ascii")
    return json.loads(f"[{text.removeprefix('filterfarm.receive(').rstrip().removesuffix(');')}]")[2]


def layers(store: Store) -> dict[str, dict[str, Any]]:
    """The layers in the job's document, by name."""
    return {layer["name"]: layer for layer in document(store, keys.gallery(JOB.id))["layers"]}


def test_the_page_is_there_before_the_first_tile(
    collector: Collector, store: Store, ledger: Ledger, app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a job without tiles
    submit(JOB, None, store=store, ledger=ledger, app=app)
    # When the collector makes a pass
    drive(collector, caplog)
    # Then the job has its page, its assets and its document, in both forms
    assert store.get(keys.index(JOB.id)) == site.job_page(JOB.id)
    assert all(store.get(keys.asset(JOB.id, name)) == data for name, data in site.assets().items())
    found = document(store, keys.gallery(JOB.id))
    assert (found["state"], found["tiles"], found["done"]) == ("running", 8, 0)
    assert received(store, keys.gallery_script(JOB.id)) == found
    # And the bucket lists it
    assert store.get(keys.JOBS_PAGE) == site.jobs_page()
    (listed,) = document(store, keys.JOBS)["jobs"]
    assert (listed["id"], listed["state"], listed["strip"]) == (JOB.id, "running", None)
    assert received(store, keys.JOBS_SCRIPT) == document(store, keys.JOBS)


def test_the_gallery_fills_tile_by_tile_and_no_cell_moves(
    collector: Collector, store: Store, ledger: Ledger, app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a job of which two tiles of a layer are stored
    submit(JOB, None, store=store, ledger=ledger, app=app)
    finish_tiles(JOB, {1, 3}, store, ledger)
    # When the collector makes its passes
    drive(collector, caplog, 2)
    # Then the gallery shows these
    first = received(store, keys.layer_script(JOB.id, "features.0"))
    assert (first["filter"], first["cell"], first["complete"]) == ([1, 3], [1, 3], False)
    assert store.exists(keys.atlas(JOB.id, "features.0"))
    assert store.exists(keys.strip(JOB.id, "features.0"))
    before = layers(store)["features.0"]
    assert (before["done"], before["strip"], before["sheet"]) == (2, 2, False)
    # And with a third and a failure, these too, under another stamp
    finish_tiles(JOB, {0}, store, ledger)
    fail(JOB, 4, store, ledger)
    drive(collector, caplog, 2)
    second = received(store, keys.layer_script(JOB.id, "features.0"))
    assert (second["filter"], second["cell"]) == ([0, 1, 3], [0, 1, 3])
    failed = received(store, keys.layer_script(JOB.id, "features.2"))
    assert (failed["status"], failed["reasons"]) == ("f", {"0": "out of paint"})
    after = layers(store)
    assert (after["features.0"]["stamp"], after["features.2"]["failed"]) == (second["stamp"], 1)
    assert second["stamp"] != before["stamp"]
    # And a failed tile that succeeds is a tile
    finish_tiles(JOB, {4}, store, ledger)
    drive(collector, caplog, 2)
    assert received(store, keys.layer_script(JOB.id, "features.2"))["status"] == "l"


def test_what_has_not_changed_is_not_written_again(
    make_collector: MakeCollector, store: Store, ledger: Ledger, app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a running job with a preview
    submit(JOB, None, store=store, ledger=ledger, app=app)
    finish_tiles(JOB, {1, 3}, store, ledger)
    first = make_collector()
    drive(first, caplog, 3)
    before = objects(store)
    # When the same collector and a new one, a second later, make further passes
    time.sleep(1.1)
    drive(first, caplog, 2)
    drive(make_collector(), caplog, 3)
    # Then every object is the same
    assert objects(store) == before


@pytest.mark.parametrize("data", [None, b"", b"<html>503 Slow Down</html>"])
def test_a_preview_leaves_out_a_tile_that_is_missing_or_unreadable(
    collector: Collector, store: Store, ledger: Ledger, app: Celery, caplog: pytest.LogCaptureFixture,
    data: bytes | None,
) -> None:  # fmt: skip
    # Given three tiles that are recorded as stored, of which one is not readable
    submit(JOB, None, store=store, ledger=ledger, app=app)
    finish_tiles(JOB, {0, 1, 2}, store, ledger)
    store.delete(keys.tile(JOB.id, "features.0", 1))
    if data is not None:
        store.put(keys.tile(JOB.id, "features.0", 1), data, "image/png")
    # When the collector makes its passes
    drive(collector, caplog, 3)
    # Then the others are shown
    assert received(store, keys.layer_script(JOB.id, "features.0"))["filter"] == [0, 2]


def test_an_unexpected_error_in_a_preview_is_logged_once_and_the_job_ends(
    collector: Collector, store: Store, ledger: Ledger, app: Celery, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # Given a machine without memory for a preview
    def refuse(*_: Any, **__: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(previews, "layer_objects", refuse)
    submit(JOB, None, store=store, ledger=ledger, app=app)
    finish_tiles(JOB, {0, 1, 2}, store, ledger)
    # When the collector makes its passes
    drive(collector, caplog, 4)
    # Then one line says so
    assert caplog.text.count("no preview job=") == 1
    # And the job is finished all the same
    finish_tiles(JOB, ALL, store, ledger)
    drive(collector, caplog, 2)
    assert read_state(store, JOB.id) == "finished"


def test_layers_beyond_the_memory_are_shown_once_they_are_complete(
    collector: Collector, store: Store, ledger: Ledger, app: Celery, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # Given room for the thumbnails of one layer, and two in progress
    monkeypatch.setattr(previews, "MAX_ATLAS_PIXELS", 4 * 8 * 8)
    submit(JOB, None, store=store, ledger=ledger, app=app)
    finish_tiles(JOB, {0, 1, 4}, store, ledger)
    # When the collector makes its passes
    drive(collector, caplog, 2)
    # Then the first has a preview and the second has none
    assert store.exists(keys.atlas(JOB.id, "features.0"))
    assert not store.exists(keys.atlas(JOB.id, "features.2"))
    # And once the first is complete, there is room for the second
    finish_tiles(JOB, {2, 3}, store, ledger)
    drive(collector, caplog, 3)
    assert received(store, keys.layer_script(JOB.id, "features.0"))["complete"]
    assert received(store, keys.layer_script(JOB.id, "features.2"))["filter"] == [0]


def test_a_collector_killed_between_any_two_writes_is_completed_by_the_next(
    make_collector: MakeCollector, store: Store, ledger: Ledger, app: Celery, redis_client: "redis.Redis",
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # Given what a collector writes of a job with a failed tile
    put, put_file = Store.put, Store.put_file
    left = 0

    def count(function: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            nonlocal left
            if left == 0:
                raise StorageUnreachable("killed")
            left -= 1
            function(*arguments)

        return call

    job = sample_job()

    def finish(writes: int) -> dict[str, bytes | None]:
        nonlocal left
        redis_client.flushall()
        for key in list(store.list("")):
            store.delete(key)
        left = 10_000
        submit(job, None, store=store, ledger=ledger, app=app)
        acknowledge_all(redis_client)
        finish_tiles(job, {0, 1, 2}, store, ledger)
        fail(job, 3, store, ledger)
        left = writes
        make_collector().run(Passes(1))
        left = 10_000
        make_collector().run(Passes(2))
        return objects(store)

    def finished(store: Store) -> bool:
        return read_state(store, job.id) == "finished"

    monkeypatch.setattr(Store, "put", count(put))
    monkeypatch.setattr(Store, "put_file", count(put_file))
    monkeypatch.setattr(module, "STORAGE_PAUSE_S", 0.0)
    whole = finish(10_000)
    times = {keys.gallery(job.id), keys.gallery_script(job.id), keys.JOBS, keys.JOBS_SCRIPT, keys.status(job.id)}
    assets = len(site.assets())
    # When it is killed after each of its writes but those of assets
    for writes in [*range(3), *range(assets, assets + 12), *range(2 * assets + 8, 2 * assets + 16)]:
        found = finish(writes)
        # Then the next one leaves the same objects; some hold the time
        assert found.keys() == whole.keys(), writes
        assert {key for key in whole if found[key] != whole[key]} <= times, writes
        assert finished(store)
        assert json.loads(found[keys.gallery(job.id)] or b"")["state"] == "finished"
        assert json.loads(found[keys.JOBS] or b"")["jobs"][0]["state"] == "finished"


def test_a_layer_with_a_failed_tile_is_not_complete_until_it_is_rendered_again(
    collector: Collector, store: Store, ledger: Ledger, app: Celery, redis_client: "redis.Redis",
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    # Given a finished job with a failed tile, and another layer
    submit(JOB, None, store=store, ledger=ledger, app=app)
    acknowledge_all(redis_client)
    finish_tiles(JOB, ALL - {3}, store, ledger)
    fail(JOB, 3, store, ledger)
    drive(collector, caplog, 2)
    assert layers(store)["features.0"]["sheet"]
    # When it is submitted again, and collectors make passes
    submit(JOB, None, store=store, ledger=ledger, app=app)
    drive(collector, caplog, 3)
    # Then its layer is partial, and the other is complete
    assert document(store, keys.records(JOB.id, "features.0"))["complete"] is False
    assert not store.exists(keys.grid(JOB.id, "features.0"))
    assert [layers(store)[name]["sheet"] for name in ("features.0", "features.2")] == [False, True]
    assert document(store, keys.gallery(JOB.id))["state"] == "running"
    # And once it is rendered, all is complete
    finish_tiles(JOB, {3}, store, ledger)
    drive(collector, caplog, 2)
    assert document(store, keys.records(JOB.id, "features.0"))["complete"] is True
    assert document(store, keys.gallery(JOB.id))["state"] == "finished"


def test_a_cancelled_job_is_shown_as_such(
    collector: Collector, store: Store, ledger: Ledger, app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a running job with two tiles
    submit(JOB, None, store=store, ledger=ledger, app=app)
    finish_tiles(JOB, {1, 3}, store, ledger)
    drive(collector, caplog, 2)
    # When it is cancelled
    ledger.cancel(JOB.id)
    write_status(store, JOB.id, "cancelled", reasons={})
    drive(collector, caplog, 2)
    # Then its gallery and the list of jobs say so
    assert document(store, keys.gallery(JOB.id))["state"] == "cancelled"
    assert received(store, keys.gallery_script(JOB.id))["state"] == "cancelled"
    assert [job["state"] for job in document(store, keys.JOBS)["jobs"]] == ["cancelled"]


def test_a_job_of_the_first_version_gets_its_gallery_when_it_is_submitted_again(
    collector: Collector, store: Store, ledger: Ledger, app: Celery, redis_client: "redis.Redis",
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    # Given a finished job of 0.1.0 with failed tiles, without an atlas
    job_id = "squeezenet1_1-notebook-69567ee0"
    for path in filter(Path.is_file, (FIRST_VERSION / job_id).rglob("*")):
        store.put(str(path.relative_to(FIRST_VERSION)), path.read_bytes(), "application/octet-stream")
    tiles = {key: store.get(key) for key in store.list(f"{job_id}/tiles/")}
    # When the collector sees the bucket, then the list of jobs has it, and the job is as it was
    drive(collector, caplog)
    (listed,) = document(store, keys.JOBS)["jobs"]
    assert (listed["id"], listed["state"], listed["tiles"], listed["done"], listed["failed"]) == (
        job_id, "finished", 10, 8, 2,
    )  # fmt: skip
    assert not store.exists(keys.gallery(job_id))
    # When its last failures are gone and it is submitted again
    job = load_job(job_id, store)
    for key in list(store.list(f"{job_id}/failed/")):
        name, filter_ = keys.parse_filter_key(key) or ("", 0)
        store.put(keys.tile(job_id, name, filter_), sample_tile(job, name, filter_), "image/png")
        store.delete(key)
    submit(job, None, store=store, ledger=ledger, app=app)
    drive(collector, caplog, 2)
    # Then it has the new gallery, nothing was rendered, and its tiles are as they were
    assert read_state(store, job_id) == "finished"
    assert len(redis_client.keys(f"{NAMES.default_queue}.*")) == 0
    for layer in job.layers:
        assert received(store, keys.layer_script(job_id, layer.name))["complete"]
        assert store.exists(keys.atlas(job_id, layer.name))
    assert {key: store.get(key) for key in tiles} == tiles


@pytest.mark.parametrize(
    ("key", "data"),
    [
        (keys.JOBS_PAGE, b"<!doctype html><title>My photos</title>"),
        (keys.JOBS, b'{"photos": []}'),
        (keys.JOBS, b"\xff\xfe"),
        (keys.JOBS_SCRIPT, b"console.log(1);"),
    ],
)
def test_an_index_of_somebody_else_is_left_alone(
    make_collector: MakeCollector, store: Store, ledger: Ledger, app: Celery, caplog: pytest.LogCaptureFixture,
    key: str, data: bytes,
) -> None:  # fmt: skip
    # Given a bucket with such an object at its root
    store.put(key, data, "text/plain")
    submit(JOB, None, store=store, ledger=ledger, app=app)
    finish_tiles(JOB, ALL, store, ledger)
    # When a collector makes its passes
    drive(make_collector(), caplog, 3)
    # Then it is unchanged, one line says so, and the job is finished
    assert store.get(key) == data
    assert caplog.text.count(f"not overwriting object={key} ") == 1
    assert read_state(store, JOB.id) == "finished"
    # And the others are written, but no asset without the page
    others = {keys.JOBS_PAGE, keys.JOBS, keys.JOBS_SCRIPT} - {key}
    assert all(store.exists(other) for other in others)
    assert store.exists(keys.asset("", "app.css")) == (key != keys.JOBS_PAGE)


def test_the_list_of_jobs_loses_those_whose_folder_is_gone(
    make_collector: MakeCollector, store: Store, ledger: Ledger, app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    # Given two finished jobs
    other = sample_job(seed=1)
    for job in (JOB, other):
        submit(job, None, store=store, ledger=ledger, app=app)
        finish_tiles(job, set(range(len(job.tiles))), store, ledger)
    first = make_collector()
    drive(first, caplog, 2)
    assert [job["id"] for job in document(store, keys.JOBS)["jobs"]] == sorted([JOB.id, other.id])
    # When the folder of one is deleted
    for key in list(store.list(f"{other.id}/")):
        store.delete(key)
    drive(first, caplog, 2)
    # Then the other is left
    assert [job["id"] for job in document(store, keys.JOBS)["jobs"]] == [JOB.id]


def test_a_look_takes_a_fifth_of_the_time_at_most_and_reads_what_is_new(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given previews with their pauses, and a clock
    monkeypatch.setattr(previews, "EVERY_S", 5.0)
    monkeypatch.setattr(previews, "_PAUSE", 4.0)
    now = 100.0
    monkeypatch.setattr(previews, "time", SimpleNamespace(monotonic=lambda: now))
    reads: list[str] = []
    get = Store.get

    def slow(self: Store, key: str, **options: Any) -> bytes | None:
        nonlocal now
        now += 1.0
        reads.append(key)
        return get(self, key, **options)

    job = sample_job(filters="0-7")
    for filter_ in range(8):
        store.put(keys.tile(job.id, "features.0", filter_), sample_tile(job, "features.0", filter_), "image/png")
    monkeypatch.setattr(Store, "get", slow)
    found = previews.Previews(store, lambda: None)

    def look(*ended: int) -> bool:
        done = np.zeros(8, bool)
        done[list(ended)] = True
        found.note(job, done, {})
        return bool(found.look())

    # When two tiles are there, and reading them takes 2 s
    assert look(0, 1)
    assert (len(reads), now) == (2, 102.0)
    # Then the next look is 8 s later, and reads only what is new
    now = 109.0
    assert not look(0, 1, 2)
    now = 110.5
    assert look(0, 1, 2)
    assert reads[2:] == [keys.tile(job.id, "features.0", 2)]
    # And without anything new there is none
    now = 200.0
    assert not look(0, 1, 2)
    assert len(reads) == 3
