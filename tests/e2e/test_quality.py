"""``filterfarm quality`` on the data folder of ``filterfarm run``, with the trained network of the ``local`` extra."""

import json
import os
from pathlib import Path

import pytest

from tests.e2e.fleet import run
from workers.contract.errors import ExitCode

LAYERS = ("--layers", "conv_stem,blocks.2.0.conv_pw")
JOB = ("efficientnet_lite0", *LAYERS, "--filters", "0-7", "--size", "48", "--steps", "16")


def _environ(folder: Path, **more: str) -> dict[str, str]:
    return {"HOME": str(folder), "PATH": os.environ["PATH"], **more}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which two jobs were run that differ in their seeds."""
    folder: Path = tmp_path_factory.mktemp("quality")
    for seed in ("0", "1"):
        done = run("run", *JOB, "--seed", seed, cwd=folder, environ=_environ(folder))
        assert done.returncode == ExitCode.OK, done.stderr
    return folder


def _job(data: Path, seed: int) -> str:
    """Id of the job with that seed."""
    for path in (data / "filterfarm-data" / "bucket").glob("*/job.json"):
        if json.loads(path.read_text())["recipe"]["seed"] == seed:
            return path.parent.name
    raise AssertionError(f"no job with seed {seed}")


def test_the_tiles_of_a_run_are_measured_without_a_server(data: Path) -> None:
    # Given two jobs that differ in their seeds
    arguments = ("quality", _job(data, 0), "--against", _job(data, 1))
    # When the first is measured against the second
    done = run(*arguments, "--json", cwd=data, environ=_environ(data))
    # Then the stored tiles activate their filters, and most of them their own filter most of all
    assert done.returncode == ExitCode.OK, done.stderr
    report = json.loads(done.stdout)
    assert (report["whole"]["planned"], report["whole"]["measured"], report["whole"]["broken"]) == (16, 16, 0)
    deep = report["layers"][1]
    assert deep["layer"] == "blocks.2.0.conv_pw"
    assert deep["gain"] > 1.5
    assert deep["self_identification"] > 0.5
    assert deep["selectivity"] > 1.0
    # And the activation of each tile is the one that its worker recorded
    for layer in report["layers"]:
        records = json.loads(
            (data / "filterfarm-data" / "bucket" / report["job"] / "layers" / f"{layer['layer']}.json").read_text()
        )
        recorded = {record["filter"]: record["stored_activation"] for record in records["filters"]}
        for tile in layer["tiles"]:
            assert tile["activation"] == pytest.approx(recorded[tile["filter"]], rel=1e-3, abs=1e-4)
    # And tiles of one filter with two seeds are more alike than tiles of two filters
    assert deep["similarity"] > 0.3


def test_missing_and_broken_tiles_are_reported_in_one_line_after_the_figures(data: Path) -> None:
    # Given a job that lacks a tile
    tiles = data / "filterfarm-data" / "bucket" / _job(data, 1) / "tiles" / "conv_stem"
    (tiles / "3.png").unlink()
    # When it is measured
    done = run("quality", _job(data, 1), cwd=data, environ=_environ(data))
    # Then the figures of the other tiles are printed, and the exit code is that of an incomplete job
    assert done.returncode == ExitCode.JOB_INCOMPLETE
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows[:4]] == ["layer", "conv_stem", "blocks.2.0.conv_pw", "all"]
    assert rows[1][1:4] == ["7", "of", "8"]
    assert "1 of 16 tiles" in done.stderr
    # And when another tile is broken, that one is named
    (tiles / "4.png").write_bytes(b"no picture")
    done = run("quality", _job(data, 1), cwd=data, environ=_environ(data))
    assert done.returncode == ExitCode.CORRUPT_TILE
    assert "conv_stem/4" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (("no-such-job",), ExitCode.NO_JOB, "there is efficientnet_lite0-"),
        (("no-such-job", "--data", "nowhere"), ExitCode.NO_JOB, "set FILTERFARM_BUCKET"),
        (("../escape",), ExitCode.NO_JOB, "no job"),
    ],
)
def test_a_job_that_does_not_exist_is_refused(
    data: Path, arguments: tuple[str, ...], code: ExitCode, part: str
) -> None:
    done = run("quality", *arguments, cwd=data, environ=_environ(data))
    assert (done.returncode, done.stdout) == (code, "")
    assert part in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_job_against_itself_or_against_nothing_is_refused(data: Path) -> None:
    job = _job(data, 0)
    done = run("quality", job, "--against", job, cwd=data, environ=_environ(data))
    assert (done.returncode, "the job itself" in done.stderr) == (ExitCode.BAD_OPTION, True)
    done = run("quality", job, "--against", "other", cwd=data, environ=_environ(data))
    assert (done.returncode, "no job 'other'" in done.stderr) == (ExitCode.NO_JOB, True)
