"""Environments, folders and rights that belong to someone else: commands work, or say in one line what is wrong."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.e2e.fleet import COMMAND, ONE_THREAD, Fleet, run, wait_for
from workers.contract.errors import ExitCode

JOB = (
    "squeezenet1_1",
    "--weights",
    "none",
    "--layers",
    "features.0",
    "--filters",
    "0-3",
    "--size",
    "32",
    "--steps",
    "2",
)

#: Variables of other programs and of other farms, each of which ends something that reads it.
FOREIGN = {
    "CELERY_BROKER_URL": "amqp://guest@localhost//",
    "CELERY_CONFIG_MODULE": "no_such_module",
    "CELERY_LOADER": "no.such.Loader",
    "CELERY_APP": "no_such_app",
    "BROKER_URL": "amqp://nowhere",
    "APP": "no_such_app",
    "AWS_PROFILE": "nosuch",
    "AWS_DEFAULT_REGION": "us east 1",
    "AWS_RETRY_MODE": "wild",
    "AWS_DEFAULTS_MODE": "fast",
    "AWS_SESSION_TOKEN": "of-another-account",
    "AWS_ENDPOINT_URL": "ftp://nowhere",
    "AWS_ENDPOINT_URL_S3": "ftp://nowhere",
    "AWS_CONFIG_FILE": "/dev/full",
    "FILTERFARM_BROKER_URL": "amqp://nowhere",
    "FILTERFARM_BUCKET": "nowhere",
    "RCLONE_CONFIG": "/nosuch/rclone.conf",
    "RCLONE_READ_ONLY": "true",
    "RCLONE_EXCLUDE": "*",
    "RCLONE_AUTH_KEY": "a,b",
    "JPY_PARENT_PID": "1",
}

#: Modules that other projects have, as files or packages of the current folder.
MODULES = ("celery.py", "redis.py", "boto3.py", "kombu/__init__.py", "producer/__init__.py", "workers/__init__.py")


def write_modules(folder: Path, *names: str) -> None:
    """Modules that raise an error when they are imported."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"raise RuntimeError('{name} of another project was imported')\n")


@pytest.mark.parametrize("name", ["d 'a' \"b\" [1-9] \\ é %41 #;*?", "-rf", "a\tb", "$(x) `y` {z}"])
def test_a_run_works_among_foreign_modules_and_variables_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    # Given
    here = tmp_path / name
    here.mkdir()
    write_modules(here, *MODULES)
    own = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], **ONE_THREAD}
    # When
    done = run("run", *JOB, "--json", cwd=here, environ={**own, **FOREIGN})
    # Then
    assert done.returncode == ExitCode.OK, done.stderr
    result = json.loads(done.stdout)
    assert (result["stored"], result["failed"]) == (4, 0)
    assert all(Path(path).is_file() for path in result["grids"])
    assert "Traceback" not in done.stderr
    # And the secrets of its servers are in no file
    password = "requirepass"  # noqa: S105  # the word before it
    kept = [path for path in (here / "filterfarm-data").rglob("*") if path.is_file() and path.stat().st_size < 1 << 20]
    assert kept
    assert not [path for path in kept if password.encode() in path.read_bytes()]


@pytest.mark.parametrize("module", ["celery.py", "redis.py", "producer/__init__.py", "kombu/__init__.py"])
def test_a_foreign_module_in_pythonpath_is_named(tmp_path: Path, module: str) -> None:
    # Given
    write_modules(tmp_path, module)
    environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)}
    # When
    done = run("status", environ=environ)
    # Then
    assert done.returncode == ExitCode.BAD_SETTINGS
    assert done.stderr.startswith(f"filterfarm: Python finds {tmp_path / module} where it needs ")
    assert len(done.stderr.splitlines()) == 1
    assert "unset PYTHONPATH" in done.stderr


def test_a_run_follows_a_bucket_that_is_a_link_and_serves_nothing_else(tmp_path: Path) -> None:
    # Given a data folder whose bucket lies on another disk
    data, disk = tmp_path / "data", tmp_path / "disk"
    data.mkdir()
    disk.mkdir()
    (data / "bucket").symlink_to(disk)
    environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], **ONE_THREAD}
    # When
    done = run("run", *JOB, "--data", str(data), "--json", environ=environ)
    # Then the pictures are there
    assert done.returncode == ExitCode.OK, done.stderr
    assert len(list(disk.glob("*/tiles/*/*.png"))) == 4
    # And of the data folder the store sees the bucket alone
    assert sorted(path.name for path in (data / "store").iterdir()) == ["bucket"]


def limited(farm: Fleet, *rights: str) -> str:
    """URL of the farm's Redis for a user with these rights."""
    command = ("ACL", "SETUSER", "limited", "reset", "on", ">pw", "&*", *rights)
    farm.redis.execute_command(*command)  # type: ignore[no-untyped-call]
    host = farm.environ["FILTERFARM_BROKER_URL"].rpartition("@")[2]
    return f"redis://limited:pw@{host}"


@pytest.mark.parametrize("command", ["submit", "worker", "collector", "doctor"])
@pytest.mark.parametrize("rights", [("~filterfarm*", "+@all"), ("~*", "+@read", "+@connection")])
def test_a_user_of_redis_with_too_few_rights_is_refused_before_anything_is_stored(
    farm: Fleet, command: str, rights: tuple[str, ...]
) -> None:
    # Given
    url = limited(farm, *rights)
    # When
    done = farm.run(command, *(JOB if command == "submit" else ()), FILTERFARM_BROKER_URL=url)
    # Then
    assert done.returncode == ExitCode.BROKER_DENIED
    text = done.stdout if command == "doctor" else done.stderr
    assert "filterfarm*, unacked* and _kombu*" in text
    assert "Traceback" not in done.stderr
    assert farm.objects() == {}
    assert farm.redis.keys() == []


def test_a_worker_that_loses_its_rights_ends_once_and_says_so(farm: Fleet) -> None:
    # Given a worker whose user may do all it needs
    url = limited(farm, "~*", "+@all")
    worker = farm.start("worker", FILTERFARM_BROKER_URL=url)
    wait_for("a worker", lambda: farm.is_ready(worker), 60)
    # When the user may read only
    limited(farm, "~filterfarm*", "+@read", "+@connection")
    farm.redis.client_kill_filter(user="limited")
    # Then it ends with the exit code for that, and does not start for ever
    assert worker.wait(60) == ExitCode.BROKER_DENIED
    assert farm.log(worker).rstrip().splitlines()[-1].startswith("filterfarm: cpu")


def test_an_endpoint_that_contains_the_bucket_is_refused_by_every_command(farm: Fleet) -> None:
    # Given an address as providers show it
    endpoint = f"{farm.endpoint}/pictures"
    for command in (("submit", *JOB), ("worker",), ("collector",), ("status",)):
        # When
        done = farm.run(*command, AWS_ENDPOINT_URL_S3=endpoint)
        # Then
        assert done.returncode == ExitCode.NO_BUCKET
        assert "if AWS_ENDPOINT_URL_S3 contains the bucket's name or another path, leave it out" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert farm.objects() == {}


_FULL_DISK = """
mount -t tmpfs -o size=1m tmpfs "$1" && FILTERFARM_STORAGE_PATIENCE_S=5 timeout 60 "${@:2}" --data "$1/data"
umount "$1"
"""


def test_a_run_on_a_full_disk_says_so(tmp_path: Path) -> None:
    # Given a disk of 1 MiB
    small = tmp_path / "small"
    small.mkdir()
    if os.geteuid() != 0:
        pytest.skip("a small disk can be mounted by root only")
    job = ("squeezenet1_1", "--weights", "none", "--layers", "features.0", "--size", "150", "--steps", "1")
    environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], **ONE_THREAD}
    # When
    done = subprocess.run(
        ["bash", "-c", _FULL_DISK, "bash", str(small), COMMAND, "run", *job],
        env=environ, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    # Then
    assert f"waiting for space on the disk of {small / 'data' / 'bucket'}" in done.stderr
    assert "Traceback" not in done.stderr


def test_commands_that_read_a_data_folder_need_no_farm(tmp_path: Path) -> None:
    # Given a folder without jobs, and the variables of other programs
    (tmp_path / "data" / "bucket").mkdir(parents=True)
    environ = {"HOME": str(tmp_path), "PATH": str(Path(COMMAND).parent), **FOREIGN}
    # When
    done = run("status", "--data", str(tmp_path / "data"), environ=environ)
    # Then
    assert done.returncode == ExitCode.OK, done.stderr
    assert done.stderr == f"no jobs in {tmp_path / 'data'}\n"
