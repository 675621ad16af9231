"""Mistakes of a user: each gives one line on standard error, an exit code of its own, and no traceback."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from producer.cli.main import main
from tests.e2e.fleet import COMMAND, Fleet, fleet, run
from workers.contract.errors import ExitCode
from workers.networks import registry

JOB = ("squeezenet1_1", "--weights", "none", "--layers", "features.0", "--size", "32", "--steps", "1")


@pytest.fixture(scope="module")
def shared_farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("farm"), "seaweedfs") as made:
        yield made


def _alone(folder: Path, *arguments: str, **environ: str) -> tuple[int, str]:
    """Run a command without a fleet. Returns its exit code and its one line on standard error."""
    done = run(*arguments, environ={"HOME": str(folder), "PATH": str(Path(COMMAND).parent), **environ})
    return done.returncode, _one_line(done.stderr, done.stdout)


def _one_line(stderr: str, stdout: str) -> str:
    assert stdout == ""
    assert "Traceback" not in stderr
    lines = stderr.strip().splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("filterfarm: ")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["vgg61"], ExitCode.UNKNOWN_MODEL, ["vgg61", "vgg16"]),
        (["vgg16", "--layers", "block5_conv9"], ExitCode.UNKNOWN_LAYER, ["block5_conv9", "block5_conv3"]),
        (["vgg16", "--layers", "nothing.*"], ExitCode.UNKNOWN_LAYER, ["nothing.*", "filterfarm layers vgg16"]),
        (["vgg16", "--filters", "0-512"], ExitCode.BAD_FILTERS, ["512", "features.17", "0-511"]),
        (["vgg16", "--filters", "64"], ExitCode.BAD_FILTERS, ["64", "features.0", "0-63"]),
        (["vgg16", "--filters", "a-b"], ExitCode.BAD_FILTERS, ["a-b", "0-63"]),
        (["vgg16", "--filters", "9-3"], ExitCode.BAD_FILTERS, ["9-3", "3-9"]),
        (["vgg16", "--size", "3"], ExitCode.BAD_OPTION, ["--size"]),
        (["vgg16", "--size", "999999"], ExitCode.BAD_OPTION, ["--size", "4096"]),
        (["inception_v3", "--size", "48"], ExitCode.BAD_OPTION, ["48 px", "--size"]),
        (["vgg16", "--steps", "-1"], ExitCode.BAD_OPTION, ["--steps"]),
        (["vgg16", "--step-size", "nan"], ExitCode.BAD_OPTION, ["--step-size"]),
        (["vgg16", "--seed", "-5"], ExitCode.BAD_OPTION, ["--seed"]),
        (["vgg16", "--grid", "8by8"], ExitCode.BAD_OPTION, ["8by8", "8x8"]),
        (["vgg16", "--grid", "8x8"], ExitCode.BAD_OPTION, ["8x8", "64", "--filters 0-63"]),
        (["vgg16", "--margin", "-1"], ExitCode.BAD_OPTION, ["--margin"]),
        (["vgg16", "--weights", "IMAGENET9"], ExitCode.WEIGHTS_MISSING, ["IMAGENET9", "IMAGENET1K_FEATURES", "none"]),
        (["vgg16", "--weights", "nowhere/mine.pth"], ExitCode.WEIGHTS_MISSING, ["nowhere/mine.pth"]),
    ],
)
def test_an_invalid_job_is_refused_with_the_value_and_the_way_out(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: ExitCode,
    parts: list[str],
) -> None:
    # When such a job is planned, in this process: eighteen that import torch would take a minute and a half
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["filterfarm", "plan", *arguments])
    got = main()

    # Then it has its own exit code, and the line names the value and the way out
    said = capsys.readouterr()
    line = _one_line(said.err, said.out)
    assert got == code
    assert all(part in line for part in parts), line


def test_a_run_on_a_device_that_does_not_exist_is_refused_before_anything_starts(tmp_path: Path) -> None:
    # When a run names a device that the machine does not have
    got, line = _alone(tmp_path, "run", *JOB, "--device", "cuda:63", "--data", str(tmp_path / "data"))

    # Then one line names it, and no server was started
    assert got == ExitCode.BAD_SETTINGS
    assert "cuda:63" in line
    assert not (tmp_path / "data").exists()


def test_weights_that_do_not_fit_or_are_unreadable_are_refused_before_anything_is_stored(
    shared_farm: Fleet, tmp_path: Path
) -> None:
    # Given a checkpoint of another network, a file of garbage, and one of an unknown type
    other, garbage, unknown = tmp_path / "other.pth", tmp_path / "garbage.pth", tmp_path / "weights.h5"
    torch.save(registry.build("alexnet").state_dict(), other)
    garbage.write_bytes(b"\x80\x04 no checkpoint")
    unknown.write_bytes(b"HDF")
    before = shared_farm.objects()

    for path, code, part in (
        (other, ExitCode.WEIGHTS_DO_NOT_FIT, "features.0.weight"),
        (garbage, ExitCode.WEIGHTS_UNREADABLE, "garbage.pth"),
        (unknown, ExitCode.WEIGHTS_UNREADABLE, ".safetensors"),
    ):
        # When a job names it
        done = shared_farm.run("submit", "squeezenet1_1", "--weights", str(path), "--layers", "features.0")

        # Then it is refused, and nothing was stored or enqueued
        assert done.returncode == code
        assert part in _one_line(done.stderr, done.stdout)
    assert shared_farm.objects() == before
    assert shared_farm.outstanding() == 0


def test_weights_that_cannot_be_downloaded_are_reported_with_file_folder_and_alternatives(tmp_path: Path) -> None:
    # Given a machine without internet access
    nowhere = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}

    # When a job needs torchvision's weights
    done = run(
        *("run", "vgg16", "--layers", "block1_conv1", "--data", str(tmp_path / "data")),
        environ={"HOME": str(tmp_path), "PATH": str(Path(COMMAND).parent), **nowhere},
    )

    # Then one line names the file, the folder and the alternatives
    assert done.returncode == ExitCode.WEIGHTS_MISSING
    line = done.stderr.strip().splitlines()[-1]
    for part in ("vgg16_features-amdegroot-88682ab5.pth", ".cache/torch/hub/checkpoints", "--weights PATH", "none"):
        assert part in line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()


def test_a_command_reports_which_part_of_the_farm_is_unreachable(shared_farm: Fleet) -> None:
    cases = [
        ({"FILTERFARM_BROKER_URL": "redis://:secret@127.0.0.1:9/0"}, ExitCode.BROKER_UNREACHABLE, "127.0.0.1:9"),
        (
            {"FILTERFARM_BROKER_URL": shared_farm.environ["FILTERFARM_BROKER_URL"].replace("://:", "://:secret")},
            ExitCode.BROKER_DENIED,
            "credentials",
        ),
        ({"FILTERFARM_BROKER_URL": "redis//:secret@127.0.0.1"}, ExitCode.BAD_SETTINGS, "FILTERFARM_BROKER_URL"),
        ({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}, ExitCode.STORAGE_UNREACHABLE, "127.0.0.1:9"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, ExitCode.STORAGE_DENIED, "AWS_SECRET_ACCESS_KEY"),
        ({"FILTERFARM_BUCKET": "s3://no-such-bucket"}, ExitCode.NO_BUCKET, "no-such-bucket"),
        ({"FILTERFARM_BUCKET": ""}, ExitCode.BAD_SETTINGS, "FILTERFARM_BUCKET"),
        ({"FILTERFARM_BUCKET": "s3://UPPER"}, ExitCode.BAD_SETTINGS, "s3://UPPER"),
    ]
    for environ, code, part in cases:
        # When one setting is wrong
        done = shared_farm.run("status", **environ)

        # Then the line names it and holds no password
        assert done.returncode == code, (environ, done.stderr)
        line = _one_line(done.stderr, done.stdout)
        assert part in line
        assert "secret" not in line


@pytest.mark.parametrize(
    "command",
    [
        ["submit", *JOB],
        ["worker"],
        ["collector"],
        ["watch", "a-job"],
        ["cancel", "a-job"],
        ["fetch", "a", "b"],
        ["gallery"],
    ],
)
def test_every_command_of_a_fleet_checks_it_first(shared_farm: Fleet, command: list[str]) -> None:
    # When the bucket does not exist
    done = shared_farm.run(*command, FILTERFARM_BUCKET="s3://no-such-bucket")

    # Then each command reports that
    assert done.returncode == ExitCode.NO_BUCKET
    assert "no-such-bucket" in _one_line(done.stderr, done.stdout)


@pytest.mark.parametrize("command", [["status"], ["watch"], ["cancel"], ["fetch"], ["gallery"]])
def test_a_job_that_does_not_exist_is_refused(shared_farm: Fleet, tmp_path: Path, command: list[str]) -> None:
    for name in ("vgg16-notebook-00000000", "../escape", "x" * 10_000):
        # When it is asked for
        target = [str(tmp_path / "out")] if command == ["fetch"] else []
        done = shared_farm.run(*command, name, *target)

        # Then one line reports that
        assert done.returncode == ExitCode.NO_JOB
        assert "filterfarm status" in _one_line(done.stderr, done.stdout)
    assert not (tmp_path / "out").exists()


def test_a_job_with_a_malformed_description_is_refused_and_the_others_are_listed(shared_farm: Fleet) -> None:
    # Given a malformed job.json
    shared_farm.put("broken-job/job.json", b'{"format": 1')

    # When its status is requested
    done = shared_farm.run("status", "broken-job")

    # Then one line reports that, and the status of the other jobs is still listed
    assert done.returncode == ExitCode.CORRUPT_JOB
    assert "broken-job" in _one_line(done.stderr, done.stdout)
    assert shared_farm.run("status").returncode == ExitCode.OK


def test_a_worker_on_a_device_that_does_not_exist_is_refused(shared_farm: Fleet) -> None:
    # When a worker names a GPU that no machine has
    done = shared_farm.run("worker", "--device", "cuda:63")

    # Then one line names it
    assert done.returncode == ExitCode.BAD_SETTINGS
    assert "cuda:63" in _one_line(done.stderr, done.stdout)


def test_a_data_folder_that_cannot_be_created_is_refused(tmp_path: Path) -> None:
    # Given a file in the place of the folder's parent
    (tmp_path / "file").write_text("")

    # When a run names a data folder below it
    got, line = _alone(tmp_path, "run", *JOB, "--data", str(tmp_path / "file" / "data"))

    # Then one line reports that
    assert got == ExitCode.SERVER_FAILED
    assert "--data" in line


def test_an_unknown_option_is_a_usage_error(tmp_path: Path) -> None:
    done = run("run", "vgg16", "--colour", environ={"HOME": str(tmp_path), "PATH": "/usr/bin"})
    assert done.returncode == ExitCode.USAGE
    assert "--colour" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_doctor_lists_its_findings_and_names_each_problem(shared_farm: Fleet, tmp_path: Path) -> None:
    # When there is no problem
    well = shared_farm.run("doctor", "--json")

    # Then every check is listed
    findings = {finding["what"]: finding for finding in json.loads(well.stdout)}
    assert well.returncode == ExitCode.OK, well.stdout
    assert set(findings) == {"packages", "devices", "embedded servers", "folders", "bucket", "broker"}

    # And when the bucket does not exist, it reports that and exits with the code of this problem
    missing = shared_farm.run("doctor", FILTERFARM_BUCKET="s3://no-such-bucket")
    assert missing.returncode == ExitCode.NO_BUCKET
    assert "PROBLEM bucket: no bucket 'no-such-bucket'" in missing.stdout
    assert "Traceback" not in missing.stderr

    # And when checkpoints cannot be kept, it names the variable
    (tmp_path / "file").touch()
    for variable in ("FILTERFARM_CACHE", "TORCH_HOME"):
        unwritable = shared_farm.run("doctor", **{variable: str(tmp_path / "file" / "cache")})
        assert unwritable.returncode == ExitCode.BAD_SETTINGS
        assert f"set {variable} to a folder that can be written" in unwritable.stdout
