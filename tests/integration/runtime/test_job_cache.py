"""The worker's cache of jobs and checkpoints, on a real object store."""

import hashlib
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import S3
from tests.e2e.fleet import wait_for
from tests.jobs import sample_job
from tests.s3proxy import s3_proxy
from workers.clients.retrying_storage import RetryingStore
from workers.contract import keys
from workers.contract.errors import WeightsUnreadable
from workers.contract.job import Job, Weights
from workers.contract.settings import Settings
from workers.runtime import job_cache
from workers.runtime.job_cache import JobCache

CHECKPOINT = b"the parameters"


def store_at(endpoint: str) -> RetryingStore:
    settings = Settings(bucket_url="s3://filterfarm/jobs", endpoint_url=endpoint)
    return RetryingStore(settings, stop=threading.Event(), report=lambda error: None)


def put(store: RetryingStore, job: Job) -> Job:
    store.put(keys.job(job.id), job.to_json(), "application/json")
    return job


def job_with_checkpoint(store: RetryingStore) -> Job:
    digest = hashlib.sha256(CHECKPOINT).hexdigest()
    weights = Weights(source="file", name="mine.pth", sha256=digest)
    job = put(store, sample_job(weights=weights))
    store.put(keys.weights(job.id, digest), CHECKPOINT, "application/octet-stream")
    return job


def test_a_download_does_not_block_other_jobs(s3: S3, tmp_path: Path) -> None:
    # Given a download of one job's checkpoint from a store that is slow at that time
    with s3_proxy(s3.endpoint) as proxy:
        store = store_at(proxy.endpoint)
        slow, other = job_with_checkpoint(store), put(store, sample_job(seed=1))
        found = JobCache(store, tmp_path)
        proxy.delay_s = 3.0
        before, since = proxy.received, time.time()
        download = threading.Thread(target=found.checkpoint, args=(slow,))
        download.start()
        wait_for("the request for the checkpoint", lambda: proxy.received > before, 30)
        proxy.delay_s = 0.0

        # When a message of another job arrives
        job = found.job(other.id)

        # Then that job is loaded before the checkpoint
        assert job == other
        assert found.checkpoint(job) is None
        assert download.is_alive()
        download.join()
        assert [path for _, _, path, _ in proxy.since(since)] == [
            f"/filterfarm/jobs/{key}" for key in (keys.job(other.id), keys.weights(slow.id, slow.weights.sha256 or ""))
        ]

        # And once the checkpoint is stored, it is not requested again
        since = time.time()
        path = found.checkpoint(slow)
        assert path is not None
        assert path.read_bytes() == CHECKPOINT
        assert proxy.since(since) == []


def test_a_checkpoint_of_another_sha256_is_refused(s3: S3, tmp_path: Path) -> None:
    # Given a checkpoint whose object in the bucket has other bytes
    store = store_at(s3.endpoint)
    job = job_with_checkpoint(store)
    key = keys.weights(job.id, job.weights.sha256 or "")
    store.put(key, b"other", "application/octet-stream")
    # When it is downloaded, then it is refused, and no file remains
    with pytest.raises(WeightsUnreadable, match=key):
        JobCache(store, tmp_path).checkpoint(job)
    assert list((tmp_path / "weights").iterdir()) == []


def test_the_oldest_job_is_evicted_and_read_again(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a cache of two jobs, and three jobs
    monkeypatch.setattr(job_cache, "_MOST_JOBS", 2)
    with s3_proxy(s3.endpoint) as proxy:
        store = store_at(proxy.endpoint)
        one, two, three = (put(store, sample_job(seed=seed)) for seed in (1, 2, 3))
        found, since = JobCache(store, tmp_path), time.time()
        # When
        for job in (one, two, three, three, two, one):
            assert found.job(job.id) == job
        # Then
        read = [path.rpartition("/jobs/")[2] for _, _, path, _ in proxy.since(since)]
        assert read == [keys.job(job.id) for job in (one, two, three, one)]
