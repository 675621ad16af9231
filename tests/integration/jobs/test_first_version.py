"""What filterfarm 0.1.0 wrote loads, keeps its id, and is resumed. The files in ``tests/data/v0.1.0`` never change."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from celery import Celery

from producer.jobs.inventory import inventory, load_job, read_state
from producer.jobs.local_store import LocalStore
from producer.jobs.status import local_status
from producer.jobs.submit import stored_form, submit
from producer.planning.job_builder import make_job
from producer.planning.options import Options
from workers.clients.ledger import Ledger
from workers.clients.storage import Store
from workers.contract import keys
from workers.contract.errors import CorruptJob
from workers.contract.job import decode, decode_whole_job
from workers.contract.records import FailureRecord
from workers.contract.tile_png import decode_tile_of

FOLDER = Path(__file__).parents[2] / "data" / "v0.1.0"

#: id -> stored and failed tiles, state
JOBS = {
    "squeezenet1_1-notebook-69567ee0": (8, 2, "finished"),
    "squeezenet1_1-fourier-c776cb41": (6, 0, "running"),
}

#: The options that 0.1.0 was given.
OPTIONS = {
    "model": "squeezenet1_1", "weights": "none", "layers": "features.0,features.3.squeeze", "filters": "0-4",
    "size": "16", "steps": 2,
}  # fmt: skip


@pytest.fixture
def local(tmp_path: Path) -> LocalStore:
    """A copy of the folder, as ``filterfarm run`` left it."""
    shutil.copytree(FOLDER, tmp_path / "data")
    return LocalStore(tmp_path / "data")


@pytest.mark.parametrize("job_id", JOBS)
def test_jobs_tiles_records_failures_and_status_load(local: LocalStore, job_id: str) -> None:
    # When
    job = load_job(job_id, local)
    # Then it has its id, and a worker understands all of it
    assert job.id == job_id
    assert decode_whole_job(local.get(keys.job(job_id)) or b"", job_id) == job
    stored, failed = inventory(job, local)
    assert (int(stored.sum()), len(failed), read_state(local, job_id)) == JOBS[job_id]
    for number in np.flatnonzero(stored).tolist():
        layer, filter_ = job.tiles[int(number)]
        pixels, record = decode_tile_of(job, layer, filter_, local.get(keys.tile(job_id, layer, filter_)) or b"")
        assert pixels.shape == (16, 16, 3)
        assert record.status in {"live", "rescued", "dead"}
        assert (record.filter, record.device) == (filter_, "cpu")
    for number, reason in failed.items():
        data = local.get(keys.failed(job_id, *job.tiles[number])) or b""
        assert decode(FailureRecord, data, "a failure").reason == reason
        assert "signal 6" in reason
    status = local_status(job, local)
    assert (status.stored, status.failed) == (stored.sum(), len(failed))


def test_the_same_options_resume_a_job_of_the_first_version(
    store: Store, ledger: Ledger, app: Celery, local: LocalStore
) -> None:
    # Given the unfinished job in a bucket
    job_id = "squeezenet1_1-fourier-c776cb41"
    for path in filter(Path.is_file, (FOLDER / "bucket" / job_id).rglob("*")):
        store.put(str(path.relative_to(FOLDER / "bucket")), path.read_bytes(), "application/octet-stream")
    # When the same options are submitted
    job, _ = make_job(Options.make(**OPTIONS))
    assert job.id != job_id
    resumed = stored_form(job, store)
    submitted = submit(resumed, None, store=store, ledger=ledger, app=app)
    # Then it is that job, and only what is missing is enqueued
    assert (submitted.job, submitted.planned, submitted.stored, submitted.enqueued) == (job_id, 10, 6, 4)
    assert {folder for folder in store.folders() if folder.startswith("squeezenet")} == {job_id}
    # And another recipe is another job
    other, _ = make_job(Options.make(**OPTIONS, seed=1))
    assert stored_form(other, store) == other


def test_another_content_under_the_same_id_is_corrupt(local: LocalStore) -> None:
    # Given a file that was edited by hand
    job_id = "squeezenet1_1-fourier-c776cb41"
    content = json.loads(local.get(keys.job(job_id)) or b"")
    content["recipe"]["seed"] = 5
    # When / Then
    with pytest.raises(CorruptJob, match="holds the content of"):
        decode_whole_job(json.dumps(content).encode(), job_id)
