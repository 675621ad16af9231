"""Status of a job, read from the ledger and the bucket of real servers."""

import time

import pytest
import redis
from celery import Celery

from producer.cli import text
from producer.jobs.inventory import write_status
from producer.jobs.status import JobStatus, job_status, require_complete, status_without_storage
from producer.jobs.submit import submit
from tests.integration.jobs.test_submit import fail
from tests.jobs import NAMES, finish_tiles, sample_job
from workers.clients.ledger import Ledger
from workers.clients.presence import COLLECTOR, Presence
from workers.clients.storage import Store
from workers.contract.errors import NoBucket, StorageDenied, StorageUnreachable

JOB = sample_job("features.0", "features.2")


@pytest.fixture
def running(store: Store, ledger: Ledger, app: Celery, redis_client: "redis.Redis") -> Ledger:
    """Ledger of a running job of eight tiles: three stored, one failed, one with the worker, three queued."""
    submit(JOB, None, store=store, ledger=ledger, app=app)
    finish_tiles(JOB, {0, 1, 4}, store, ledger)
    fail(JOB, 5, store, ledger)
    for number in range(5):
        message = redis_client.rpop(NAMES.queue(JOB.id))
        assert isinstance(message, bytes)
        if number == 4:
            redis_client.hset(NAMES.unacked, "tag", f'[{message.decode()}, "", "{NAMES.queue(JOB.id)}"]')
    ledger.record_requeued(JOB.id, {1, 2})
    redis_client.set(NAMES.collector, "x")
    Presence(redis_client, NAMES).worker_heartbeat("cpu-1@here")
    return ledger


def counts(status: JobStatus) -> tuple[int, ...]:
    return status.planned, status.stored, status.failed, status.queued, status.in_flight, status.requeued


def test_the_status_of_a_running_job_holds_every_count(running: Ledger, store: Store) -> None:
    # Given a running job
    # When it is asked for
    status = job_status(JOB, store, running)
    # Then each count is correct, and it waits for nothing
    assert counts(status) == (8, 3, 1, 3, 1, 2)
    assert (status.state, status.workers, status.waiting_for) == ("running", 1, "")
    assert status.reasons == {"features.2/1": "out of paint"}
    # And the text shows all of it
    shown = text.status(status)
    assert "running, 3 of 8 tiles, 1 failed, 2 re-enqueued" in shown
    assert "queued: 3; in flight: 1; re-enqueued: 2; workers seen: 1" in shown
    assert "failed features.2/1: out of paint" in shown


def test_a_job_without_a_worker_or_a_collector_reports_it(
    running: Ledger, store: Store, redis_client: "redis.Redis"
) -> None:
    # Given a worker that was last seen 40 s ago
    redis_client.zadd(NAMES.workers, {"cpu-1@here": time.time() - 40})
    # When the status is read, then the job waits for a worker
    assert "a worker: none has been seen for 40 s" in job_status(JOB, store, running).waiting_for
    # And with neither messages nor a collector, it waits for a collector
    redis_client.delete(NAMES.collector, NAMES.unacked, NAMES.queue(JOB.id))
    assert "a collector, to re-enqueue lost tiles" in job_status(JOB, store, running).waiting_for
    # And with all tiles stored, for a collector to assemble the sheets
    finish_tiles(JOB, set(range(8)), store, running)
    assert "a collector, to assemble the sheets" in job_status(JOB, store, running).waiting_for
    # And once it has ended, for nothing
    write_status(store, JOB.id, "finished", reasons={})
    assert job_status(JOB, store, running).waiting_for == ""


@pytest.mark.parametrize(
    ("error", "state"),
    [(StorageDenied("refused"), "failed"), (NoBucket("refused"), "failed"), (StorageUnreachable("refused"), "running")],
)
def test_an_object_store_error_is_reported_for_every_running_job(
    running: Ledger, store: Store, error: StorageDenied | NoBucket | StorageUnreachable, state: str
) -> None:
    # Given a collector that gets errors from the store
    presence = Presence(running.client, NAMES)
    presence.report_storage_error(COLLECTOR, error)
    # When the status is read by a client with access to the store
    status = job_status(JOB, store, running)
    # Then it reports the error, and the state is failed only if an action is needed
    assert (status.state, status.waiting_for) == (state, "object store error: refused")
    assert counts(status) == (8, 3, 1, 3, 1, 2)
    # And a client without access gets the same
    unaided = status_without_storage(JOB.id, running, error)
    assert unaided is not None
    assert (unaided.state, unaided.waiting_for) == (state, "object store error: refused")
    assert counts(unaided) == counts(status)
    # And a command that waits for a failed job raises the reason
    if state == "failed":
        assert f"{JOB.id}: failed: object store error: refused, 3 of 8 tiles" in text.status(status)
        with pytest.raises(StorageDenied, match="object store error: refused"):
            require_complete(status)
    # And once the error is gone, the job is running again
    presence.report_storage_error(COLLECTOR, None)
    assert (job_status(JOB, store, running).state, job_status(JOB, store, running).waiting_for) == ("running", "")


def test_a_finished_job_is_not_failed_by_later_errors_of_the_store(running: Ledger, store: Store) -> None:
    # Given a finished job, and a store that refuses
    write_status(store, JOB.id, "finished", reasons={})
    running.unregister(JOB.id)
    Presence(running.client, NAMES).report_storage_error(COLLECTOR, StorageDenied("refused"))
    # When it is asked for
    status = job_status(JOB, store, running)
    # Then it is finished, and the ledger alone knows no open job of that name
    assert (status.state, status.waiting_for) == ("finished", "")
    assert status_without_storage(JOB.id, running, StorageDenied("refused")) is None
