"""The Python API on a data folder: pictures, records and errors. The folder holds the jobs of filterfarm 0.1.0."""

import io
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from producer import Job, run, submit
from producer.local.credentials import new_credentials
from producer.notebook.layer import SHOWN_PX
from workers.contract import keys
from workers.contract.errors import (
    BadFilters,
    BadOption,
    BadSettings,
    CorruptTile,
    JobIncomplete,
    NoJob,
    ServerFailed,
    UnknownLayer,
)
from workers.contract.tile_png import decode_tile

ROOT = Path(__file__).parents[3]
FINISHED, STOPPED = "squeezenet1_1-notebook-69567ee0", "squeezenet1_1-fourier-c776cb41"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with a finished job, which has failed tiles, and an unfinished one."""
    return Path(shutil.copytree(ROOT / "tests" / "data" / "v0.1.0", tmp_path / "data"))


def png(width: int, height: int) -> bytes:
    """A grey RGB picture."""
    out = io.BytesIO()
    Image.new("RGB", (width, height), (90, 90, 90)).save(out, "PNG")
    return out.getvalue()


def failed_unit(job: Job) -> tuple[str, int]:
    """Layer and number of a unit that failed."""
    layer, unit = next(iter(job.status.reasons)).rsplit("/", 1)
    return layer, int(unit)


def test_importing_the_package_loads_none_of_the_api() -> None:
    # Given a fresh interpreter
    code = "import producer, sys; print({'redis', 'boto3', 'numpy', 'PIL', 'celery', 'torch'} & set(sys.modules))"
    # When it imports the package
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    # Then nothing of the API is loaded
    assert done.stdout == "set()\n"


def test_a_job_shows_layers_sheets_tiles_and_records(data: Path) -> None:
    # Given a finished job
    job = Job.open(FINISHED, data=data)
    # When its parts are read
    assert job.layers == ["features.0", "features.3.squeeze"]
    assert job.status.state == "finished"
    layer = job.layer(job.layers[0])
    # Then a layer is shown by its sheet as it is stored
    stored = (data / "bucket" / keys.grid(job.id, layer.name)).read_bytes()
    assert layer._repr_png_() == stored
    assert layer.sheet.size == Image.open(io.BytesIO(stored)).size
    assert layer.units == (0, 1, 2, 3, 4)
    # And a unit by its pixels, whatever kind of integer names it
    record = next(record for record in layer.records if record["status"] != "failed")
    pixels, _ = decode_tile((data / "bucket" / keys.tile(job.id, layer.name, record["filter"])).read_bytes(), (16, 16))
    assert np.array_equal(np.asarray(job.tile(layer.name, record["filter"])), pixels)
    assert np.array_equal(np.asarray(job.tile(layer, np.int64(record["filter"]))), pixels)
    # And representations name job and folder
    assert repr(job) == f"<job {FINISHED} in {data}: 2 layers, 10 tiles>"
    assert repr(layer) == f"<features.0 of {FINISHED}: 5 units>"
    assert job.gallery == str(data / "bucket" / FINISHED / "index.html")


def test_records_are_flat_and_include_failures(data: Path) -> None:
    job = Job.open(FINISHED, data=data)
    records = [record for layer in job.layers for record in job.records(layer)]
    assert len(records) == 10
    assert all(isinstance(value, str | int | float) for record in records for value in record.values())
    failed = [record for record in records if record["status"] == "failed"]
    assert len(failed) == 2
    assert "signal 6" in failed[0]["reason"]
    assert "versions.torch" in next(record for record in records if record["status"] != "failed")


def test_a_layer_is_found_by_its_alias(data: Path) -> None:
    # Given a job whose layer has an alias
    path = data / "bucket" / STOPPED / "job.json"
    content = json.loads(path.read_text())
    content["layers"][0]["aliases"] = ["stem"]
    path.write_text(json.dumps({**content, "id": STOPPED}))
    job = Job.open(STOPPED, data=data)
    # When / Then
    assert job.tile("stem", 0).size == job.tile("features.0", 0).size == (16, 16)


def test_a_large_sheet_is_shown_scaled_down_and_read_in_full(data: Path) -> None:
    # Given a sheet with more pixels than Image.open takes for harmless
    job = Job.open(FINISHED, data=data)
    (data / "bucket" / keys.grid(job.id, "features.0")).write_bytes(png(16_000, 12_000))
    layer = job.layer("features.0")
    # When it is shown
    shown = Image.open(io.BytesIO(layer._repr_png_()))
    # Then it is scaled down
    assert shown.size == (SHOWN_PX, SHOWN_PX * 3 // 4)
    assert layer.sheet.size == (16_000, 12_000)


@pytest.mark.parametrize(
    "content", [b"", b"no picture", png(16_001, 1), png(40, 40)[:60]], ids=["empty", "text", "wide", "cut"]
)
def test_an_object_that_is_no_sheet_is_reported_in_one_line(data: Path, content: bytes) -> None:
    job = Job.open(FINISHED, data=data)
    layer = job.layer("features.0")
    (data / "bucket" / keys.grid(job.id, "features.0")).write_bytes(content)
    with pytest.raises(CorruptTile, match=f"the sheet of features.0 of {FINISHED}"):
        _ = layer.sheet


def test_a_sheet_that_does_not_exist_yet_is_reported_with_counts(data: Path) -> None:
    # Given an unfinished job that no run is at work on
    job = Job.open(STOPPED, data=data)
    counts = job.status.layers[1]
    # When / Then
    with pytest.raises(JobIncomplete) as caught:
        job.layer("features.3.squeeze")
    assert str(caught.value) == (
        f"{STOPPED} has no sheet of features.3.squeeze yet: {counts.stored} of 5 tiles are stored; "
        "submit the job again to resume it"
    )
    with pytest.raises(JobIncomplete, match=f"no records of features.3.squeeze of {STOPPED}"):
        job.records("features.3.squeeze")
    with pytest.raises(JobIncomplete, match=f"{STOPPED} was stopped"):
        job.wait()


def test_waiting_for_a_job_with_failed_tiles_raises_as_the_command_line_does(data: Path) -> None:
    with pytest.raises(JobIncomplete, match="2 of 10 tiles"):
        Job.open(FINISHED, data=data).wait()


def test_tiles_that_are_absent_failed_or_foreign_are_reported(data: Path) -> None:
    job = Job.open(FINISHED, data=data)
    layer, unit = failed_unit(job)
    with pytest.raises(JobIncomplete, match=f"unit {unit} of {layer} of {FINISHED} failed: .*signal 6"):
        job.tile(layer, unit)
    with pytest.raises(BadFilters, match="renders no unit 99 of features.0; it renders 0-4"):
        job.tile("features.0", 99)
    good = next(record["filter"] for record in job.records("features.0") if record["status"] != "failed")
    path = data / "bucket" / keys.tile(job.id, "features.0", good)
    path.write_bytes(png(16, 16))
    with pytest.raises(CorruptTile, match=f"unit {good} of features.0"):
        job.tile("features.0", good)
    path.unlink()
    with pytest.raises(JobIncomplete, match="has no tile yet"):
        job.tile("features.0", good)
    (data / "bucket" / keys.records(job.id, "features.0")).write_text("[1]")
    with pytest.raises(CorruptTile, match="the records of features.0"):
        job.records("features.0")


def test_unknown_names_are_reported_with_the_nearest_ones(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job.open(FINISHED, data=data)
    with pytest.raises(UnknownLayer, match=r"no layer 'squeeze' in .*nearest: .*features\.3\.squeeze"):
        job.layer("squeeze")
    with pytest.raises(NoJob, match=STOPPED):
        Job.open("squeezenet1_1-fourier-c776cb42", data=data)
    # Without a farm in the environment, jobs are read from filterfarm-data of the current folder
    monkeypatch.chdir(data.parent)
    with pytest.raises(NoJob, match="no job 'a' in filterfarm-data"):
        Job.open("a")
    data.rename(data.parent / "filterfarm-data")
    assert Job.open(FINISHED).id == FINISHED


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 5}, "no option 'step'; nearest: steps"),
        ({"layer": "features.0"}, "no option 'layer'; nearest: layers"),
        ({"xyzzy": 1}, "no option 'xyzzy'; .'filterfarm run --help' lists all"),
        ({"grid": (8, 8)}, "cannot read --grid '8,8'"),
        ({"steps": "many"}, "--steps many"),
        ({"size": 3}, "--size 3 must lie in"),
        ({"preset": "fastest"}, "no preset 'fastest'"),
    ],
)
def test_bad_options_are_reported_before_anything_starts(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BadOption, match=message):
        run("squeezenet1_1", data=tmp_path / "data", **{"weights": "none", "layers": "features.0", **options})
    assert not (tmp_path / "data").exists()


def test_submit_without_a_farm_says_what_is_not_set() -> None:
    with pytest.raises(BadOption, match="no option 'device'"):
        submit("squeezenet1_1", device="cpu")
    with pytest.raises(BadSettings, match="FILTERFARM_BUCKET is not set"):
        submit("squeezenet1_1")


def test_credentials_of_a_local_farm_are_removed_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a person's own variables
    monkeypatch.setenv("AWS_PROFILE", "mine")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    before = dict(os.environ)
    # When a farm is at work, another one of this process is refused, in any thread
    refused: list[ServerFailed] = []

    def second() -> None:
        try:
            with new_credentials():
                pass
        except ServerFailed as error:
            refused.append(error)

    with new_credentials():
        assert "AWS_PROFILE" not in os.environ
        assert os.environ["AWS_ACCESS_KEY_ID"] != "mine"
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    # Then the variables are back at its end
    assert "this process runs a farm already" in str(refused[0])
    assert dict(os.environ) == before
