"""What ``status``, ``watch`` and ``fetch`` find in the data folder of ``filterfarm run``, where no farm is set."""

import fcntl
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from producer.cli.main import cli
from producer.jobs.local_store import BUCKET, LocalStore
from tests.jobs import sample_job
from workers.contract import keys
from workers.contract.errors import BadSettings, JobIncomplete, NoJob, StorageDenied

JOB = sample_job("features.0")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder in the working directory: all tiles of JOB but the last, which failed. No farm is set."""
    for name in ("FILTERFARM_BUCKET", "FILTERFARM_BROKER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "filterfarm-data"
    put(folder, keys.job(JOB.id), JOB.to_json())
    for layer, filter_ in JOB.tiles[:-1]:
        put(folder, keys.tile(JOB.id, layer, filter_), b"png")
    put(folder, keys.failed(JOB.id, *JOB.tiles[-1]), json.dumps({"reason": "out of paint"}).encode())
    return folder


def put(data: Path, key: str, content: bytes) -> None:
    path = data / BUCKET / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def end(data: Path) -> None:
    put(data, keys.status(JOB.id), b'{"state": "finished"}')


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def test_status_of_a_job_counts_its_files(data: Path) -> None:
    # Given an unfinished job in a folder without a run in progress
    # When
    result = call("status", JOB.id, "--json")
    # Then
    found = json.loads(result.stdout)
    planned = len(JOB.tiles)
    assert (found["state"], found["planned"], found["stored"], found["failed"]) == ("stopped", planned, planned - 1, 1)
    assert found["layers"] == [{"layer": "features.0", "planned": planned, "stored": planned - 1, "failed": 1}]
    assert list(found["reasons"].values()) == ["out of paint"]


def test_status_reports_a_run_in_progress(data: Path) -> None:
    # Given the lock that a run holds
    with (data / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # When / Then
        assert json.loads(call("status", JOB.id, "--json").stdout)["state"] == "running"
    # And the lock file without a lock is no run in progress
    assert json.loads(call("status", JOB.id, "--json").stdout)["state"] == "stopped"


def test_status_as_text_omits_queue_and_workers(data: Path) -> None:
    # Given / When
    result = call("status", JOB.id)
    # Then
    assert f"{len(JOB.tiles) - 1} of {len(JOB.tiles)} tiles" in result.stdout
    assert "out of paint" in result.stdout
    assert "workers" not in result.stdout


def test_status_without_a_job_lists_the_folders_jobs(data: Path) -> None:
    # Given a second job, and a folder that is no job
    other = sample_job("features.2")
    put(data, keys.job(other.id), other.to_json())
    put(data, "notes/readme.txt", b"")
    # When
    result = call("status", "--json")
    # Then
    assert {entry["job"] for entry in json.loads(result.stdout)} == {JOB.id, other.id}


def test_data_names_another_folder(data: Path) -> None:
    # Given
    moved = data.rename(data.parent / "elsewhere")
    # When / Then
    assert isinstance(call("status", JOB.id).exception, NoJob)
    assert json.loads(call("status", JOB.id, "--data", str(moved), "--json").stdout)["job"] == JOB.id


def test_the_error_of_an_unknown_job_names_the_nearest(data: Path) -> None:
    # Given / When
    error = call("status", JOB.id[:-1]).exception
    # Then
    assert isinstance(error, NoJob)
    assert JOB.id in str(error)


def test_watch_ends_with_the_job(data: Path) -> None:
    # Given a job that has ended with a failed tile
    end(data)
    # When
    result = call("watch", JOB.id)
    # Then
    assert f"{len(JOB.tiles) - 1} of {len(JOB.tiles)} tiles, 1 failed" in result.stderr
    assert isinstance(result.exception, JobIncomplete)


def test_watch_of_a_job_that_is_not_being_rendered_returns_at_once(data: Path) -> None:
    # Given / When / Then
    error = call("watch", JOB.id).exception
    assert isinstance(error, JobIncomplete)
    assert "stopped" in str(error)


def test_fetch_copies_the_job(data: Path, tmp_path: Path) -> None:
    # Given / When
    result = call("fetch", JOB.id, str(tmp_path / "out"))
    # Then job.json and every stored tile are there
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "job.json").read_bytes() == JOB.to_json()
    assert len(list((tmp_path / "out" / "tiles" / "features.0").glob("*.png"))) == len(JOB.tiles) - 1


def test_the_error_without_a_job_names_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given neither a farm nor a data folder
    for name in ("FILTERFARM_BUCKET", "FILTERFARM_BROKER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    # When
    result = call("status")
    # Then
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "no jobs in filterfarm-data\n")


def test_a_broker_without_a_bucket_is_half_a_farm_and_no_data_folder_is_read(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    monkeypatch.setenv("FILTERFARM_BROKER_URL", "redis://127.0.0.1:9/0")
    # When
    result = call("status", JOB.id)
    # Then
    assert isinstance(result.exception, BadSettings)
    assert "FILTERFARM_BUCKET" in str(result.exception)


def test_a_file_is_copied_out_of_the_folder_and_an_absent_one_is_not(data: Path, tmp_path: Path) -> None:
    # Given
    put(data, keys.weights(JOB.id, "ab" * 32), b"parameters")
    store, copy = LocalStore(data), tmp_path / "copy.pth"
    # When / Then
    assert not store.get_file(keys.weights(JOB.id, "cd" * 32), copy)
    assert not copy.exists()
    assert store.get_file(keys.weights(JOB.id, "ab" * 32), copy)
    assert copy.read_bytes() == b"parameters"


def test_an_object_that_cannot_be_opened_is_denied(data: Path, tmp_path: Path) -> None:
    # Given a folder in place of the object, which root cannot open either
    (data / BUCKET / keys.weights(JOB.id, "ab" * 32)).mkdir(parents=True)
    # When / Then
    with pytest.raises(StorageDenied, match="cannot read"):
        LocalStore(data).get_file(keys.weights(JOB.id, "ab" * 32), tmp_path / "copy.pth")
