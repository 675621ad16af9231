"""Submission: each planned tile that is not stored becomes one message, once."""

import base64
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import redis
from celery import Celery

from producer.jobs import feeding
from producer.jobs.inventory import inventory, read_state
from producer.jobs.submit import stored_form, submit
from tests.jobs import NAMES, done_tiles, finish_tiles, sample_job, sample_tile
from workers.clients.broker import outstanding
from workers.clients.ledger import Ledger
from workers.clients.storage import Store
from workers.contract import keys
from workers.contract.errors import BadOption, WeightsUnreadable
from workers.contract.job import Job, Weights, decode
from workers.contract.records import FailureRecord

JOB = sample_job("features.0", "features.2")


def fail(job: Job, number: int, store: Store, ledger: Ledger, reason: str = "out of paint") -> None:
    """Record a failed filter, as a worker does."""
    layer, filter_ = job.tiles[number]
    record = FailureRecord(job=job.id, layer=layer, filter=filter_, reason=reason, attempts=3)
    store.put(keys.failed(job.id, layer, filter_), record.model_dump_json().encode(), "application/json")
    ledger.mark_failed(job.id, number, reason)


def queued(client: "redis.Redis") -> list[tuple[str, int]]:
    """(layer, filter) of every message of every job, in order."""
    found = []
    for queue in sorted(client.scan_iter(f"{NAMES.default_queue}.*")):
        for raw in reversed(client.lrange(queue, 0, -1)):
            _, body, _ = json.loads(base64.b64decode(json.loads(raw)["body"]))
            found.append((body["layer"], body["filter"]))
    return found


def test_a_new_job_is_stored_registered_and_enqueued(
    store: Store, ledger: Ledger, app: Celery, redis_client: "redis.Redis"
) -> None:
    # Given a new job
    # When it is submitted
    result = submit(JOB, None, store=store, ledger=ledger, app=app)
    # Then all of it is enqueued, in order
    assert (result.job, result.planned, result.stored, result.enqueued) == (JOB.id, 8, 0, 8)
    assert queued(redis_client) == list(JOB.tiles)
    # And the bucket holds the job byte by byte, and its state
    assert store.get(keys.job(JOB.id)) == JOB.to_json()
    assert read_state(store, JOB.id) == "running"
    # And the ledger is ready for the collector
    assert ledger.jobs() == {JOB.id}
    assert ledger.is_synced(JOB.id)
    assert not ledger.is_submitting(JOB.id)


def test_submitting_twice_enqueues_once(store: Store, ledger: Ledger, app: Celery, redis_client: "redis.Redis") -> None:
    # Given a job whose messages are queued
    submit(JOB, None, store=store, ledger=ledger, app=app)
    # When it is submitted again, also by a later version
    again = submit(JOB, None, store=store, ledger=ledger, app=app)
    later = submit(JOB.model_copy(update={"versions": {"filterfarm": "99"}}), None, store=store, ledger=ledger, app=app)
    # Then nothing is enqueued, and the job is stored as first submitted
    assert (again.enqueued, later.enqueued) == (0, 0)
    assert queued(redis_client) == list(JOB.tiles)
    assert store.get(keys.job(JOB.id)) == JOB.to_json()


def test_stored_tiles_are_not_enqueued(store: Store, ledger: Ledger, app: Celery, redis_client: "redis.Redis") -> None:
    # Given a job of which three tiles are stored, and an empty Redis
    finish_tiles(JOB, {0, 3, 5}, store, ledger)
    redis_client.flushall()
    # When it is submitted
    result = submit(JOB, None, store=store, ledger=ledger, app=app)
    # Then the other five are enqueued
    assert (result.stored, result.enqueued) == (3, 5)
    assert queued(redis_client) == [JOB.tiles[number] for number in (1, 2, 4, 6, 7)]
    # And the ledger lists the three
    assert done_tiles(ledger, JOB) == {0, 3, 5}


def test_a_complete_job_enqueues_nothing(
    store: Store, ledger: Ledger, app: Celery, redis_client: "redis.Redis"
) -> None:
    # Given a job of which every tile is stored
    finish_tiles(JOB, set(range(8)), store, ledger)
    # When it is submitted
    result = submit(JOB, None, store=store, ledger=ledger, app=app)
    # Then nothing is enqueued, and the job is open for the collector
    assert (result.stored, result.enqueued) == (8, 0)
    assert queued(redis_client) == []
    assert ledger.jobs() == {JOB.id}


def test_failed_filters_are_retried(store: Store, ledger: Ledger, app: Celery, redis_client: "redis.Redis") -> None:
    # Given a job that has ended with a failed filter
    finish_tiles(JOB, set(range(8)) - {2}, store, ledger)
    fail(JOB, 2, store, ledger)
    store.put(keys.records(JOB.id, "features.0"), b"{}", "application/json")
    store.put(keys.records(JOB.id, "features.2"), b"{}", "application/json")
    # When it is submitted again
    result = submit(JOB, None, store=store, ledger=ledger, app=app)
    # Then that filter alone is enqueued, and its failure is deleted
    assert (result.stored, result.enqueued) == (7, 1)
    assert queued(redis_client) == [JOB.tiles[2]]
    assert ledger.failed(JOB.id) == {}
    assert inventory(JOB, store)[1] == {}
    # And the records of its layer are deleted, those of the other layer are not
    assert not store.exists(keys.records(JOB.id, "features.0"))
    assert store.exists(keys.records(JOB.id, "features.2"))


def test_failed_filters_are_retried_while_the_rest_is_queued(
    store: Store, ledger: Ledger, app: Celery, redis_client: "redis.Redis"
) -> None:
    # Given a running job of which one filter has failed
    submit(JOB, None, store=store, ledger=ledger, app=app)
    redis_client.rpop(NAMES.queue(JOB.id))
    fail(JOB, 0, store, ledger)
    # When it is submitted again
    result = submit(JOB, None, store=store, ledger=ledger, app=app)
    # Then that filter alone is enqueued, at the end of the queue
    assert result.enqueued == 1
    assert queued(redis_client) == [*JOB.tiles[1:], JOB.tiles[0]]
    assert ledger.failed(JOB.id) == {}


def test_a_cancelled_job_is_resumed_by_submitting_it_again(
    store: Store, ledger: Ledger, app: Celery, redis_client: "redis.Redis"
) -> None:
    # Given a cancelled job
    submit(JOB, None, store=store, ledger=ledger, app=app)
    finish_tiles(JOB, {0}, store, ledger)
    ledger.cancel(JOB.id)
    assert queued(redis_client) == []
    # When it is submitted again
    result = submit(JOB, None, store=store, ledger=ledger, app=app)
    # Then the missing tiles are enqueued, and the job is no longer cancelled
    assert result.enqueued == 7
    assert not ledger.is_cancelled(JOB.id)
    assert read_state(store, JOB.id) == "running"


def test_a_submission_completes_an_interrupted_one(
    store: Store, ledger: Ledger, app: Celery, redis_client: "redis.Redis"
) -> None:
    # Given a job of which only three messages were enqueued
    submit(JOB, None, store=store, ledger=ledger, app=app)
    redis_client.ltrim(NAMES.queue(JOB.id), -3, -1)
    ledger.set_fed(JOB.id, 3)
    # When it is submitted again
    result = submit(JOB, None, store=store, ledger=ledger, app=app)
    # Then every missing tile has a message, and just one
    assert result.enqueued == 5
    assert queued(redis_client) == list(JOB.tiles)


def test_a_large_job_is_enqueued_in_windows(
    store: Store, ledger: Ledger, app: Celery, redis_client: "redis.Redis"
) -> None:
    # Given a job of more tiles than a window holds, of which some in the middle are stored
    large = sample_job(*(f"layer{number}" for number in range(10)), filters="0-999", channels=1000)
    finish_tiles(large, {5, 2000, 4100}, store, ledger)
    # When it is submitted
    result = submit(large, None, store=store, ledger=ledger, app=app)
    # Then its first tiles have messages, in order
    assert (result.planned, result.stored, result.enqueued) == (10_000, 3, feeding.WINDOW)
    assert "4,096 enqueued, 5,901 more on their way" in result.summary
    wanted = [tile for number, tile in enumerate(large.tiles) if number not in {5, 2000, 4100}]
    assert queued(redis_client) == wanted[: feeding.WINDOW]
    # And nothing is sent until half of them are taken
    assert feeding.feed(large, ledger, app, open_jobs=1) == 0
    redis_client.ltrim(NAMES.queue(large.id), 0, feeding.WINDOW // 2 - 1)
    assert feeding.feed(large, ledger, app, open_jobs=1) == feeding.WINDOW // 2
    # And with many open jobs, a job has fewer messages, but never none
    assert feeding.window(1) == feeding.window(4) == feeding.WINDOW
    assert feeding.window(16) == feeding.WINDOW // 4
    assert feeding.window(10_000) == 256
    # And at the end, each tile was sent once
    sent = wanted[: feeding.WINDOW + feeding.WINDOW // 2]
    while ledger.fed(large.id) < 10_000:
        redis_client.unlink(NAMES.queue(large.id))
        feeding.feed(large, ledger, app, open_jobs=1)
        sent += queued(redis_client)
    assert sent == wanted
    assert not ledger.is_submitting(large.id)


def test_another_content_under_the_same_id_is_refused(store: Store) -> None:
    # Given a job whose id the bucket gives to other content
    taken = sample_job(seed=1).model_copy(update={"id": JOB.id})
    store.put(keys.job(JOB.id), taken.to_json(), "application/json")
    # When / Then
    with pytest.raises(BadOption, match=f"the bucket has a job {JOB.id} of other options; choose another --seed"):
        stored_form(JOB, store)
    assert stored_form(taken, store) == taken


def test_another_job_is_enqueued_while_one_runs(
    store: Store, ledger: Ledger, app: Celery, redis_client: "redis.Redis"
) -> None:
    # Given a job that runs
    submit(JOB, None, store=store, ledger=ledger, app=app)
    # When another is submitted
    other = sample_job(seed=1)
    result = submit(other, None, store=store, ledger=ledger, app=app)
    # Then all of it is enqueued, in a queue of its own
    assert result.enqueued == 4
    messages = outstanding(redis_client, NAMES, [JOB.id, other.id])
    assert [messages[JOB.id].queued, messages[other.id].queued] == [8, 4]
    assert ledger.jobs() == {JOB.id, other.id}


def test_a_malformed_job_in_the_bucket_is_replaced(store: Store, ledger: Ledger, app: Celery) -> None:
    # Given garbage under the key of the job
    store.put(keys.job(JOB.id), b"{", "application/json")
    # When the job is submitted
    submit(JOB, None, store=store, ledger=ledger, app=app)
    # Then the bucket holds it
    data = store.get(keys.job(JOB.id))
    assert data is not None
    assert decode(Job, data, "it") == JOB


def test_a_checkpoint_is_uploaded_once(store: Store, ledger: Ledger, app: Celery, tmp_path: Path) -> None:
    # Given a job with a checkpoint file
    path = tmp_path / "mine.pth"
    path.write_bytes(b"parameters")
    weights = Weights(source="file", name="mine.pth", sha256=hashlib.sha256(b"parameters").hexdigest())
    job = JOB.model_copy(update={"weights": weights})
    # When it is submitted twice, the second time after the file has changed
    submit(job, path, store=store, ledger=ledger, app=app)
    path.write_bytes(b"other")
    submit(job, path, store=store, ledger=ledger, app=app)
    # Then the bucket holds the first checkpoint
    assert store.get(keys.weights(job.id, weights.sha256 or "")) == b"parameters"


def test_a_checkpoint_that_changed_after_planning_is_not_stored(
    store: Store, ledger: Ledger, app: Celery, tmp_path: Path
) -> None:
    # Given a job whose checkpoint has another SHA-256 than when the job was planned
    path = tmp_path / "mine.pth"
    path.write_bytes(b"other")
    job = JOB.model_copy(update={"weights": Weights(source="file", name="mine.pth", sha256="ab" * 32)})
    # When it is submitted, then it is refused, and the bucket holds nothing
    with pytest.raises(WeightsUnreadable, match="changed"):
        submit(job, path, store=store, ledger=ledger, app=app)
    assert list(store.list("")) == []


def test_the_inventory_counts_objects_of_the_job_only(store: Store, ledger: Ledger) -> None:
    # Given a tile, a failure, and foreign objects
    finish_tiles(JOB, {1}, store, ledger)
    fail(JOB, 2, store, ledger, reason="größer\nnext line")
    fail(JOB, 1, store, ledger)
    store.put(keys.failed(JOB.id, "features.0", 3), b"no json", "application/json")
    store.put(keys.failed(JOB.id, "features.2", 0), b'{"why": 1}', "application/json")
    for key in ("features.0/0.png.part", "features.0/63.png", "features.9/0.png", "0.png", "features.0/x.png"):
        store.put(f"{JOB.id}/tiles/{key}", sample_tile(JOB, "features.0", 0), "image/png")
    # When the inventory is taken
    stored, failed = inventory(JOB, store)
    # Then only the job's own tiles count, a tile overrides a failure, and an unreadable reason is "unknown"
    assert np.flatnonzero(stored).tolist() == [1]
    assert failed == {2: "größer\nnext line", 3: "unknown", 4: "unknown"}


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"7", b"null", b'"finished"', b"{}", b'{"state": 1}', b'{"state": []}', b'{"state": {}}',
     b'{"state": "sideways"}', b"\xff\xfe", b"[" * 100_000],
)  # fmt: skip
def test_an_unreadable_status_means_running(store: Store, data: bytes) -> None:
    # Given garbage under the key of the status
    store.put(keys.status(JOB.id), data, "application/json")
    # When it is read
    # Then the job counts as running, so that the collector checks it
    assert read_state(store, JOB.id) == "running"


@pytest.mark.parametrize("state", ["finished", "cancelled"])
def test_how_a_job_ended_is_read_from_the_bucket(store: Store, state: str) -> None:
    # Given a job that has ended
    store.put(keys.status(JOB.id), json.dumps({"state": state}).encode(), "application/json")
    # Then its state is read from the bucket
    assert read_state(store, JOB.id) == state
