"""The collector, pass by pass, against a real queue and two real object stores."""

import io
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import redis
from celery import Celery
from PIL import Image

from producer.collector import collector as module
from producer.collector import lost_messages
from producer.collector.collector import Collector
from producer.collector.contact_sheet import CELL_GREY, sheet
from producer.gallery import site
from producer.jobs import feeding
from producer.jobs.inventory import read_problems, read_state, write_status
from producer.jobs.submit import submit
from tests.integration.collector.conftest import MakeCollector
from tests.integration.jobs.test_submit import fail, queued
from tests.jobs import NAMES, done_tiles, finish_tiles, sample_job, sample_tile
from workers.clients.broker import outstanding, tasks_in_redis
from workers.clients.ledger import Ledger
from workers.clients.storage import Store
from workers.contract import keys
from workers.contract.job import Grid, Job
from workers.contract.tile_png import decode_tile, encode_tile, max_bytes

JOB = sample_job("features.0", "features.2")
ALL = set(range(len(JOB.tiles)))


class Passes(threading.Event):
    """A stop event that lets a collector make ``count`` passes without pauses."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._left = count

    def wait(self, timeout: float | None = None) -> bool:
        self._left -= 1
        if self._left <= 0:
            self.set()
        return self.is_set()


@pytest.fixture(autouse=True)
def short_periods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages count as lost after two passes without any, and each pass lists the bucket."""
    monkeypatch.setattr(lost_messages, "LOST_S", 0.0)
    monkeypatch.setattr(module, "RESCAN_S", 0.0)
    monkeypatch.setattr(module, "PASS_S", 0.05)


def drive(collector: Collector, caplog: pytest.LogCaptureFixture, passes: int = 1) -> None:
    """Let the collector make so many passes, none of them aborted by an error."""
    caplog.clear()
    with caplog.at_level(logging.INFO):
        collector.run(Passes(passes))
    assert "collector pass aborted" not in caplog.text


@contextmanager
def running(make_collector: MakeCollector) -> Iterator[Callable[[], None]]:
    """Run a collector in a thread until the block ends or the yielded function is called."""
    stop = threading.Event()
    thread = threading.Thread(target=lambda: make_collector().run(stop))
    thread.start()

    def end() -> None:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()

    try:
        yield end
    finally:
        end()


def submitted(job: Job, store: Store, ledger: Ledger, app: Celery) -> Job:
    submit(job, None, store=store, ledger=ledger, app=app)
    return job


def document(store: Store, key: str) -> Any:
    """A JSON object of the bucket."""
    data = store.get(key)
    assert data is not None, key
    return json.loads(data)


def objects(store: Store) -> dict[str, bytes | None]:
    return {key: store.get(key) for key in store.list("")}


def acknowledge_all(client: "redis.Redis") -> None:
    """Empty the queues, as workers do."""
    for queue in client.scan_iter(f"{NAMES.default_queue}.*"):
        client.delete(queue)


def test_a_layer_is_assembled_when_all_of_its_tiles_are_stored_and_not_before(
    collector: Collector, store: Store, ledger: Ledger, app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a job of two layers of four tiles, of which seven are stored
    submitted(JOB, store, ledger, app)
    finish_tiles(JOB, ALL - {6}, store, ledger)
    # When the collector makes its passes
    drive(collector, caplog, 2)
    # Then the complete layer has its sheet and records, and the other has not
    assert store.exists(keys.grid(JOB.id, "features.0"))
    assert document(store, keys.records(JOB.id, "features.0"))["complete"] is True
    assert not store.exists(keys.grid(JOB.id, "features.2"))
    # And what it has is shown, and said to be a part
    partial = document(store, keys.records(JOB.id, "features.2"))
    assert (partial["complete"], partial["planned"], partial["sheet_tile_px"]) == (False, 4, None)
    assert [record["filter"] for record in partial["filters"]] == [0, 1, 3]
    # And the job is not finished
    assert read_state(store, JOB.id) == "running"
    assert ledger.jobs() == {JOB.id}


def test_a_complete_job_is_finished_with_sheets_records_and_gallery(
    collector: Collector, store: Store, ledger: Ledger, app: Celery, redis_client: "redis.Redis",
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    # Given a job of which every tile is stored
    submitted(JOB, store, ledger, app)
    finish_tiles(JOB, ALL, store, ledger)
    acknowledge_all(redis_client)
    # When the collector makes its passes
    drive(collector, caplog)
    # Then each sheet shows each tile in its place
    for layer in JOB.layers:
        with Image.open(io.BytesIO(store.get(keys.grid(JOB.id, layer.name)) or b"")) as image:
            canvas = np.asarray(image)
        assert canvas.shape == (2 * 8 + 5, 2 * 8 + 5, 3)
        assert [int(canvas[y, x, 0]) for y in (0, 13) for x in (0, 13)] == [1, 2, 3, 4]
        # And each filter has its record
        records = document(store, keys.records(JOB.id, layer.name))
        assert (records["job"], records["layer"]) == (JOB.id, layer.name)
        assert [record["filter"] for record in records["filters"]] == [0, 1, 2, 3]
        assert {record["status"] for record in records["filters"]} == {"live"}
    # And the gallery is stored, and the job has ended
    gallery = document(store, keys.gallery(JOB.id))
    assert (gallery["state"], gallery["tiles"], gallery["done"], gallery["failed"]) == ("finished", 8, 8, 0)
    assert [(layer["name"], layer["done"], layer["sheet"]) for layer in gallery["layers"]] == [
        ("features.0", 4, True),
        ("features.2", 4, True),
    ]
    assert site.is_ours(store.get(keys.index(JOB.id)) or b"")
    assert document(store, keys.status(JOB.id))["state"] == "finished"
    assert ledger.jobs() == set()


def test_another_pass_changes_nothing(
    make_collector: MakeCollector, store: Store, ledger: Ledger, app: Celery, redis_client: "redis.Redis",
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    # Given a job that was finished
    submitted(JOB, store, ledger, app)
    finish_tiles(JOB, ALL, store, ledger)
    acknowledge_all(redis_client)
    first = make_collector()
    drive(first, caplog)
    before = objects(store)
    # When the same collector and a new one make further passes
    for collector in (first, make_collector()):
        drive(collector, caplog, 2)
    # Then every object is the same, byte by byte, and nothing is enqueued
    assert objects(store) == before
    assert queued(redis_client) == []


def test_a_dead_filter_has_a_dark_cell_on_the_sheet_and_is_marked_in_records_and_gallery(
    collector: Collector, store: Store, ledger: Ledger, app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a job of which one filter is dead
    job = submitted(sample_job(), store, ledger, app)
    finish_tiles(job, {0, 1, 2, 3}, store, ledger)
    dead = sample_tile(job, "features.0", 2, status="dead")
    store.put(keys.tile(job.id, "features.0", 2), dead, "image/png")
    # When the collector makes its passes
    drive(collector, caplog)
    # Then its record says so, the gallery too, and its cell alone is dark on the sheet
    records = document(store, keys.records(job.id, "features.0"))["filters"]
    assert [record["status"] for record in records] == ["live", "live", "dead", "live"]
    assert document(store, keys.gallery(job.id))["layers"][0]["dead"] == 1
    with Image.open(io.BytesIO(store.get(keys.grid(job.id, "features.0")) or b"")) as image:
        assert image.getpixel((0, 13)) == (CELL_GREY,) * 3
        assert [image.getpixel(place) for place in ((0, 0), (13, 0), (13, 13))] == [(n, 0, 200) for n in (1, 2, 4)]
    # And its stored tile is as it was rendered
    assert store.get(keys.tile(job.id, "features.0", 2)) == dead


def test_a_job_with_labels_has_the_numbers_of_its_filters_on_its_sheets(
    collector: Collector, store: Store, ledger: Ledger, app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    # Given two jobs with labels, of tiles that have room for them and of tiles that have not
    wide = sample_job(grid=Grid(labels=True), filters="7,11,30", size_px=32)
    small = sample_job(grid=Grid(labels=True), filters="7,11,30")
    for job in (wide, small):
        submitted(job, store, ledger, app)
        finish_tiles(job, {0, 1, 2}, store, ledger)
    # When the collector makes its passes
    drive(collector, caplog, 2)
    # Then the sheet of the first has the filters' numbers below its tiles
    with Image.open(io.BytesIO(store.get(keys.grid(wide.id, "features.0")) or b"")) as image:
        pixels = [decode_tile(sample_tile(wide, "features.0", number), (32, 32))[0] for number in (7, 11, 30)]
        assert np.array_equal(
            np.asarray(image), sheet([(one, "live") for one in pixels], wide.grid, (32, 32), ["7", "11", "30"])
        )
        assert image.info.get("Description") is None
        assert image.height > 2 * 32 + 5
    # And that of the second says that it has none
    with Image.open(io.BytesIO(store.get(keys.grid(small.id, "features.0")) or b"")) as image:
        assert image.size == (2 * 8 + 5, 2 * 8 + 5)
        assert "Labels left out" in image.info["Description"]


@pytest.mark.parametrize("kind", ["cut", "empty", "text", "large", "foreign-job", "foreign-filter", "no-text", "grey"])
def test_an_invalid_tile_is_reopened_and_only_what_is_no_picture_is_deleted(
    collector: Collector, store: Store, ledger: Ledger, app: Celery, redis_client: "redis.Redis",
    caplog: pytest.LogCaptureFixture, kind: str,
) -> None:  # fmt: skip
    # Given a job of which every tile is recorded as stored, and one of them is invalid
    job = submitted(sample_job(), store, ledger, app)
    acknowledge_all(redis_client)
    finish_tiles(job, {0, 1, 2, 3}, store, ledger)
    good, picture = sample_tile(job, "features.0", 1), io.BytesIO()
    Image.new("L" if kind == "grey" else "RGB", (8, 8)).save(picture, "PNG")
    bad = {
        "cut": good[:-40],
        "empty": b"",
        "text": b"<html>503 Slow Down</html>",
        "large": good + bytes(max_bytes((8, 8))),
        "foreign-job": sample_tile(sample_job(seed=1), "features.0", 1),
        "foreign-filter": sample_tile(job, "features.0", 2),
        "no-text": picture.getvalue(),
        "grey": picture.getvalue(),
    }[kind]
    key = keys.tile(job.id, "features.0", 1)
    store.put(key, bad, "image/png")
    # When the collector makes its passes
    drive(collector, caplog)
    # Then its layer is not assembled
    assert not store.exists(keys.grid(job.id, "features.0"))
    partial = document(store, keys.records(job.id, "features.0"))
    assert (partial["complete"], [record["filter"] for record in partial["filters"]]) == (False, [0, 2, 3])
    assert read_state(store, job.id) == "running"
    # And it is open again, and deleted unless it is a picture, which a later version may have written
    assert store.exists(key) == (kind in {"large", "foreign-job", "foreign-filter", "no-text", "grey"})
    assert done_tiles(ledger, job) == {0, 2, 3}
    # And that tile alone is enqueued
    assert queued(redis_client) == [("features.0", 1)]
    # And when it is rendered, the job is finished
    acknowledge_all(redis_client)
    finish_tiles(job, {1}, store, ledger)
    drive(collector, caplog)
    assert read_state(store, job.id) == "finished"


def test_tiles_of_a_later_version_are_kept_and_assembled_with_all_that_their_records_say(
    collector: Collector, store: Store, ledger: Ledger, app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a job of which a later version's worker has rendered a tile, with a field and a word more
    job = submitted(sample_job(), store, ledger, app)
    finish_tiles(job, {0, 1, 2, 3}, store, ledger)
    pixels, record = decode_tile(sample_tile(job, "features.0", 2), (8, 8))
    later = record.model_copy(update={"kernels": "cudnn", "entropy": 1.5})
    data = encode_tile(pixels, later)
    store.put(keys.tile(job.id, "features.0", 2), data, "image/png")
    # When the collector makes its passes
    drive(collector, caplog, 2)
    # Then the tile is as it was, the job is finished, and the layer's records hold all of it
    assert store.get(keys.tile(job.id, "features.0", 2)) == data
    assert read_state(store, job.id) == "finished"
    assert "reopened" not in caplog.text
    records = document(store, keys.records(job.id, "features.0"))["filters"]
    assert (records[2]["kernels"], records[2]["entropy"]) == ("cudnn", 1.5)


def test_a_tile_that_is_recorded_and_not_stored_is_reopened(
    collector: Collector, store: Store, ledger: Ledger, app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a tile that was deleted from the bucket
    job = submitted(sample_job(), store, ledger, app)
    finish_tiles(job, {0, 1, 2, 3}, store, ledger)
    store.delete(keys.tile(job.id, "features.0", 3))
    # When the collector makes its passes
    drive(collector, caplog)
    # Then it is open again
    assert done_tiles(ledger, job) == {0, 1, 2}
    assert read_state(store, job.id) == "running"


def test_lost_messages_are_enqueued_again_once(
    collector: Collector, store: Store, ledger: Ledger, app: Celery, redis_client: "redis.Redis",
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    # Given a job of which three tiles are stored, and the messages of the others lost
    submitted(JOB, store, ledger, app)
    finish_tiles(JOB, {0, 1, 4}, store, ledger)
    acknowledge_all(redis_client)
    # When the collector makes some passes
    drive(collector, caplog, 5)
    # Then each of the others is enqueued and counted once
    assert queued(redis_client) == [JOB.tiles[number] for number in (2, 3, 5, 6, 7)]
    assert ledger.requeued(JOB.id) == 5
    assert not ledger.is_submitting(JOB.id)


def test_nothing_is_enqueued_again_while_messages_are_queued(
    collector: Collector, store: Store, ledger: Ledger, app: Celery, redis_client: "redis.Redis",
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    # Given a job whose messages are queued
    submitted(JOB, store, ledger, app)
    # When the collector makes some passes
    drive(collector, caplog, 5)
    # Then there is still one message for each tile
    assert queued(redis_client) == list(JOB.tiles)
    assert ledger.requeued(JOB.id) == 0


def test_nothing_is_enqueued_again_before_a_message_counts_as_lost(
    collector: Collector, store: Store, ledger: Ledger, app: Celery, redis_client: "redis.Redis",
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # Given a message in transit from the queue to a worker, which is in neither list
    monkeypatch.setattr(lost_messages, "LOST_S", 60.0)
    submitted(JOB, store, ledger, app)
    acknowledge_all(redis_client)
    # When the collector makes some passes, and then some more while the worker holds the message
    drive(collector, caplog, 3)
    redis_client.hset(NAMES.unacked, "tag", json.dumps([{}, "", NAMES.queue(JOB.id)]))
    drive(collector, caplog, 3)
    # Then it never counted as lost
    assert ledger.requeued(JOB.id) == 0


def test_lost_messages_of_one_job_are_found_although_another_has_messages(
    collector: Collector, store: Store, ledger: Ledger, app: Celery, redis_client: "redis.Redis",
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    # Given two jobs, of which one has lost its messages and the other has not
    lost = submitted(sample_job(), store, ledger, app)
    acknowledge_all(redis_client)
    waiting = submitted(sample_job(seed=1), store, ledger, app)
    # When the collector makes some passes
    drive(collector, caplog, 5)
    # Then the first has a message for each tile again, and the other is unchanged
    messages = outstanding(redis_client, NAMES, [lost.id, waiting.id])
    assert [messages[lost.id].queued, messages[waiting.id].queued] == [4, 4]
    assert [ledger.requeued(lost.id), ledger.requeued(waiting.id)] == [4, 0]


def test_of_a_thousand_messages_exactly_the_lost_one_is_enqueued_again(
    collector: Collector, store: Store, ledger: Ledger, app: Celery, redis_client: "redis.Redis",
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    # Given a job that has lost one message of a thousand, one that a worker holds, and another job
    job = submitted(sample_job(filters="0-999", channels=1000), store, ledger, app)
    submitted(sample_job(seed=1), store, ledger, app)
    taken, lost = (cast("bytes", redis_client.rpop(NAMES.queue(job.id))) for _ in range(2))
    assert lost
    assert taken
    redis_client.hset(NAMES.unacked, "tag", json.dumps([json.loads(taken), "", NAMES.queue(job.id)]))
    # When the collector makes some passes
    drive(collector, caplog, 5)
    # Then there are a thousand messages again, of a thousand tiles
    assert redis_client.llen(NAMES.queue(job.id)) == 999
    assert ledger.requeued(job.id) == 1
    assert tasks_in_redis(redis_client, NAMES, [job.id]) == {job.id: set(job.tiles)}


def test_a_tile_that_a_worker_holds_is_not_lost_though_its_message_is_gone(
    collector: Collector, store: Store, ledger: Ledger, app: Celery, redis_client: "redis.Redis",
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    # Given a claimed tile without a message
    job = submitted(sample_job(), store, ledger, app)
    acknowledge_all(redis_client)
    assert ledger.claim(job.id, 2, "token", 60.0)
    # When the collector makes some passes
    drive(collector, caplog, 5)
    # Then the others are enqueued again
    assert sorted(queued(redis_client)) == [("features.0", number) for number in (0, 1, 3)]


def test_a_large_job_is_topped_up(
    collector: Collector, store: Store, ledger: Ledger, app: Celery, redis_client: "redis.Redis",
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # Given a job of which a window was sent and rendered
    monkeypatch.setattr(feeding, "WINDOW", 4)
    monkeypatch.setattr(feeding, "_LEAST_WINDOW", 4)
    job = submitted(JOB, store, ledger, app)
    assert len(queued(redis_client)) == 4
    acknowledge_all(redis_client)
    finish_tiles(job, {0, 1, 2, 3}, store, ledger)
    # When the collector makes a pass
    drive(collector, caplog)
    # Then the rest is sent, and nothing counts as lost
    assert queued(redis_client) == [job.tiles[number] for number in (4, 5, 6, 7)]
    assert ledger.requeued(job.id) == 0


def test_a_layer_that_cannot_be_assembled_is_reported_and_blocks_nobody(
    collector: Collector, store: Store, ledger: Ledger, app: Celery, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # Given a job of two layers, and a disk that holds no sheet of the first
    submitted(JOB, store, ledger, app)
    other = submitted(sample_job(seed=1), store, ledger, app)
    finish_tiles(JOB, ALL, store, ledger)
    finish_tiles(other, {0, 1, 2, 3}, store, ledger)
    put_file = Store.put_file

    def refuse(self: Store, key: str, path: Path, content_type: str = "") -> None:
        if key == keys.grid(JOB.id, "features.0"):
            raise OSError(28, "No space left on device")
        put_file(self, key, path, content_type)

    monkeypatch.setattr(Store, "put_file", refuse)
    # When the collector makes its passes
    drive(collector, caplog, 5)
    # Then it tried three times, and the job ended with the reason; the rest of it is there, and so is the other job
    assert caplog.text.count("cannot assemble") <= 3
    assert read_state(store, JOB.id) == "finished"
    assert read_state(store, other.id) == "finished"
    assert "No space left on device" in read_problems(store, JOB.id)["features.0"]
    assert store.exists(keys.grid(JOB.id, "features.2"))


def test_a_job_that_is_being_submitted_is_not_requeued(
    collector: Collector, store: Store, ledger: Ledger, app: Celery, redis_client: "redis.Redis",
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    # Given a job whose messages are being published
    submitted(JOB, store, ledger, app)
    acknowledge_all(redis_client)
    ledger.begin_submission(JOB.id)
    # When the collector makes its passes
    drive(collector, caplog, 3)
    # Then it does not enqueue them as well
    assert queued(redis_client) == []
    # And when the submission has ended, it does
    ledger.end_submission(JOB.id)
    drive(collector, caplog, 3)
    assert len(queued(redis_client)) == 8


def test_an_emptied_redis_is_filled_again_from_the_bucket(
    collector: Collector, store: Store, ledger: Ledger, app: Celery, redis_client: "redis.Redis",
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    # Given a job of which three tiles are stored and one has failed
    submitted(JOB, store, ledger, app)
    finish_tiles(JOB, {0, 1, 4}, store, ledger)
    fail(JOB, 6, store, ledger)
    drive(collector, caplog)
    # When Redis is emptied
    redis_client.flushall()
    drive(collector, caplog, 3)
    # Then the ledger is rebuilt from the bucket
    assert ledger.jobs() == {JOB.id}
    assert done_tiles(ledger, JOB) == {0, 1, 4}
    assert ledger.failed(JOB.id) == {6: "out of paint"}
    # And only what is missing is enqueued
    assert queued(redis_client) == [JOB.tiles[number] for number in (2, 3, 5, 7)]


def test_a_new_collector_restores_a_job_that_only_the_bucket_holds(
    make_collector: MakeCollector, store: Store, ledger: Ledger, app: Celery, redis_client: "redis.Redis",
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    # Given a job of which every tile is stored, and an empty Redis
    submitted(JOB, store, ledger, app)
    finish_tiles(JOB, ALL, store, ledger)
    redis_client.flushall()
    # When a collector starts
    drive(make_collector(), caplog)
    # Then it finishes the job, and enqueues nothing
    assert read_state(store, JOB.id) == "finished"
    assert queued(redis_client) == []


def test_jobs_that_have_ended_are_not_restored(
    make_collector: MakeCollector, store: Store, ledger: Ledger, app: Celery, redis_client: "redis.Redis",
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    # Given a cancelled job and a finished one without tiles, and an empty Redis
    for seed, state in ((1, "cancelled"), (2, "finished")):
        job = submitted(sample_job(seed=seed), store, ledger, app)
        write_status(store, job.id, state, reasons={})
    redis_client.flushall()
    # When a collector starts
    drive(make_collector(), caplog, 3)
    # Then it restores neither
    assert ledger.jobs() == set()
    assert queued(redis_client) == []


def test_a_cancelled_job_is_not_requeued(
    collector: Collector, store: Store, ledger: Ledger, app: Celery, redis_client: "redis.Redis",
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    # Given a job that the collector has read
    submitted(JOB, store, ledger, app)
    drive(collector, caplog)
    # When it is cancelled, and the workers have dropped its messages
    ledger.cancel(JOB.id)
    write_status(store, JOB.id, "cancelled", reasons={})
    acknowledge_all(redis_client)
    drive(collector, caplog, 3)
    # Then nothing is enqueued again
    assert queued(redis_client) == []
    assert ledger.jobs() == set()
    assert read_state(store, JOB.id) == "cancelled"


def test_a_job_with_failed_filters_finishes_with_a_gap_and_the_reasons(
    collector: Collector, store: Store, ledger: Ledger, app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a job of which one filter has no tile
    submitted(JOB, store, ledger, app)
    finish_tiles(JOB, ALL - {5}, store, ledger)
    fail(JOB, 5, store, ledger)
    # When the collector makes its passes
    drive(collector, caplog)
    # Then the job has ended, and the bucket holds the reason
    status = document(store, keys.status(JOB.id))
    assert status["state"] == "finished"
    assert status["failed"] == {"features.2/1": "out of paint"}
    # And so do the records of the layer, with the number of attempts
    record = document(store, keys.records(JOB.id, "features.2"))["filters"][1]
    assert (record["filter"], record["status"], record["reason"]) == (1, "failed", "out of paint")
    assert record["attempts"] == 3
    # And its cell is dark on the sheet, and it is marked in the gallery
    with Image.open(io.BytesIO(store.get(keys.grid(JOB.id, "features.2")) or b"")) as image:
        assert image.getpixel((13 + 4, 0)) == (CELL_GREY,) * 3
        assert image.getpixel((0, 0)) == (1, 0, 200)
    assert [layer["failed"] for layer in document(store, keys.gallery(JOB.id))["layers"]] == [0, 1]


def test_a_job_submitted_again_right_after_it_ended_waits_for_its_failed_filter(
    collector: Collector, store: Store, ledger: Ledger, app: Celery, redis_client: "redis.Redis",
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    # Given a job that the collector has just finished, with a failed filter
    job = submitted(sample_job(), store, ledger, app)
    acknowledge_all(redis_client)
    finish_tiles(job, {0, 1, 2}, store, ledger)
    fail(job, 3, store, ledger)
    drive(collector, caplog)
    assert read_state(store, job.id) == "finished"
    # When it is submitted again before the collector's next pass
    submitted(job, store, ledger, app)
    drive(collector, caplog)
    # Then it runs until that filter is rendered
    assert read_state(store, job.id) == "running"
    # And then the job ends without a gap
    acknowledge_all(redis_client)
    finish_tiles(job, {3}, store, ledger)
    drive(collector, caplog, 2)
    assert document(store, keys.status(job.id))["failed"] == {}
    records = document(store, keys.records(job.id, "features.0"))["filters"]
    assert [record["status"] for record in records] == ["live"] * 4
    assert document(store, keys.gallery(job.id))["failed"] == 0


def test_a_failed_filter_that_succeeds_while_the_job_runs_leaves_no_gap(
    collector: Collector, store: Store, ledger: Ledger, app: Celery, redis_client: "redis.Redis",
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    # Given a job of which the first layer is assembled with a gap, and the second is not rendered
    submitted(JOB, store, ledger, app)
    finish_tiles(JOB, {0, 1, 2}, store, ledger)
    fail(JOB, 3, store, ledger)
    drive(collector, caplog)
    assert store.exists(keys.records(JOB.id, "features.0"))
    # When it is submitted again, and then all of it is rendered
    submitted(JOB, store, ledger, app)
    drive(collector, caplog)
    finish_tiles(JOB, ALL, store, ledger)
    acknowledge_all(redis_client)
    drive(collector, caplog, 2)
    # Then the first layer has no gap
    assert read_state(store, JOB.id) == "finished"
    records = document(store, keys.records(JOB.id, "features.0"))["filters"]
    assert [record["status"] for record in records] == ["live"] * 4
    with Image.open(io.BytesIO(store.get(keys.grid(JOB.id, "features.0")) or b"")) as image:
        assert [image.getpixel(place) for place in ((0, 13), (13, 13))] == [(3, 0, 200), (4, 0, 200)]


def garbage(kind: str) -> bytes:
    """Invalid contents of a job.json."""
    if kind == "another job's":
        return sample_job(seed=9).to_json()
    if kind == "too small a grid":
        return sample_job(grid=Grid(rows=1, columns=1)).to_json()
    return {"empty": b"", "cut": JOB.to_json()[:200], "binary": bytes(range(256)), "hostile": b'{"model": "../x"}'}[
        kind
    ]


@pytest.mark.parametrize("kind", ["empty", "cut", "binary", "hostile", "another job's"])
def test_an_unreadable_job_is_ignored_and_the_others_continue(
    collector: Collector, store: Store, ledger: Ledger, app: Celery, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    # Given an unreadable job, first by name, and a job of which every tile is stored
    store.put(keys.job("a-job"), garbage(kind), "application/json")
    ledger.register("a-job")
    submitted(JOB, store, ledger, app)
    finish_tiles(JOB, ALL, store, ledger)
    # When the collector makes its passes
    drive(collector, caplog)
    # Then the first is ignored with one line in the log, and the other is finished
    assert "ignoring unreadable job=a-job reason=" in caplog.text
    assert "a-job" not in ledger.jobs()
    assert read_state(store, JOB.id) == "finished"


def test_a_job_whose_grid_has_no_room_for_its_tiles_does_not_stop_the_others(
    collector: Collector, store: Store, ledger: Ledger, app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a job whose grid is too small, first by name, and a valid one
    crowded = json.loads(sample_job().to_json())
    crowded["grid"] |= {"rows": 1, "columns": 1}
    store.put(keys.job("a-job"), json.dumps(crowded).encode(), "application/json")
    ledger.register("a-job")
    good = submitted(sample_job(), store, ledger, app)
    finish_tiles(good, {0, 1, 2, 3}, store, ledger)
    # When the collector makes its passes
    collector.run(Passes(2))
    # Then the valid one is finished
    assert read_state(store, good.id) == "finished"


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"filters": [{}]}'])
def test_unreadable_records_do_not_stop_the_collector(
    collector: Collector, store: Store, ledger: Ledger, app: Celery, data: bytes
) -> None:
    # Given a job of which every tile is stored, and a layer with a sheet and unreadable records
    submitted(JOB, store, ledger, app)
    finish_tiles(JOB, ALL, store, ledger)
    store.put(keys.grid(JOB.id, "features.0"), b"x", "image/png")
    store.put(keys.records(JOB.id, "features.0"), data, "application/json")
    # When the collector makes its passes
    collector.run(Passes(2))
    # Then the layer is assembled again, and the job is finished
    assert read_state(store, JOB.id) == "finished"
    assert len(document(store, keys.records(JOB.id, "features.0"))["filters"]) == 4


def test_foreign_objects_in_the_bucket_are_unchanged(
    collector: Collector, store: Store, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    # Given foreign objects
    for key in ("photos/cat.png", "a b/job.json", ".hidden/job.json", "loose.txt"):
        store.put(key, b"x", "text/plain")
    before = objects(store)
    # When the collector makes its passes
    drive(collector, caplog, 2)
    # Then nothing has changed
    assert objects(store) == before
    assert ledger.jobs() == set()


def test_a_second_collector_stands_by_and_takes_over(
    make_collector: MakeCollector, store: Store, ledger: Ledger, app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a running collector
    caplog.set_level(logging.INFO)
    with running(make_collector) as stop_first:
        eventually(lambda: bool(ledger.client.exists(NAMES.collector)))
        # When another starts
        with running(make_collector):
            # Then it stands by, logs that once, and the first assembles
            eventually(lambda: "standby lock=" in caplog.text)
            one = submitted(sample_job(), store, ledger, app)
            finish_tiles(one, {0, 1, 2, 3}, store, ledger)
            eventually(lambda: read_state(store, one.id) == "finished")
            assert caplog.text.count("standby lock=") == 1
            # And when the first stops, the second assembles
            stop_first()
            two = submitted(sample_job(seed=1), store, ledger, app)
            finish_tiles(two, {0, 1, 2, 3}, store, ledger)
            eventually(lambda: read_state(store, two.id) == "finished")
    # And the last one releases the lock
    assert not ledger.client.exists(NAMES.collector)


def test_a_killed_collector_is_replaced_when_its_lock_expires(
    collector: Collector, store: Store, ledger: Ledger, app: Celery, redis_client: "redis.Redis",
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    # Given the lock of a killed collector, and a complete job
    submitted(JOB, store, ledger, app)
    finish_tiles(JOB, ALL, store, ledger)
    assert redis_client.lock(NAMES.collector, timeout=60).acquire(blocking=False)
    # When another makes a pass before the lock expires
    drive(collector, caplog)
    # Then it does nothing
    assert read_state(store, JOB.id) == "running"
    # And when the lock has expired, it finishes the job
    redis_client.pexpire(NAMES.collector, 1)
    eventually(lambda: not redis_client.exists(NAMES.collector))
    drive(collector, caplog)
    assert read_state(store, JOB.id) == "finished"


def test_a_collector_that_has_lost_its_lock_writes_nothing(
    collector: Collector, store: Store, ledger: Ledger, app: Celery, redis_client: "redis.Redis"
) -> None:
    # Given a collector whose lock has expired, and another that has taken over
    submitted(JOB, store, ledger, app)
    finish_tiles(JOB, ALL, store, ledger)
    assert redis_client.lock(NAMES.collector, timeout=30).acquire(blocking=False)
    before = objects(store)
    # When the first continues its pass
    with pytest.raises(redis.exceptions.LockError):
        collector.run_pass()
    # Then it has written nothing
    assert objects(store) == before
    assert ledger.jobs() == {JOB.id}


def eventually(probe: Callable[[], bool]) -> None:
    """Return once ``probe`` returns True."""
    deadline = time.monotonic() + 60
    while not probe():
        assert time.monotonic() < deadline
        time.sleep(0.05)
