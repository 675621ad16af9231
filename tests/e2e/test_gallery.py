"""``filterfarm gallery`` and ``filterfarm fetch`` as commands."""

import http.client
import os
import signal
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.e2e.fleet import COMMAND, ONE_THREAD, Fleet, run, wait_for
from tests.jobs import sample_job, sample_tile
from tests.servers import free_port
from workers.contract import keys
from workers.contract.errors import ExitCode

JOB = sample_job("features.0")
OBJECTS = {
    "index.html": b"jobs",
    keys.job(JOB.id): JOB.to_json(),
    keys.index(JOB.id): b"job",
    f"{JOB.id}/gallery.js": b"data",
    keys.tile(JOB.id, *JOB.tiles[0]): sample_tile(JOB, *JOB.tiles[0]),
}


@pytest.fixture
def started() -> "Iterator[list[subprocess.Popen[str]]]":
    """Processes to end after the test."""
    found: list[subprocess.Popen[str]] = []
    yield found
    for process in found:
        process.kill()
        process.communicate()


def start(*arguments: str, environ: dict[str, str], started: "list[subprocess.Popen[str]]") -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [COMMAND, "gallery", *arguments], env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    started.append(process)
    return process


def first_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def page(url: str) -> bytes:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    try:
        connection.request("GET", urlsplit(url).path)
        answer = connection.getresponse()
        assert answer.status == 200
        return answer.read()
    finally:
        connection.close()


def browser(folder: Path) -> tuple[str, Path]:
    """A value of BROWSER, and the file into which that browser writes the address that it is to open."""
    program, opened = folder / "browser", folder / "opened"
    program.write_text(f'#!/bin/sh\necho "$1" > {opened}.part; mv {opened}.part {opened}\n')
    program.chmod(0o755)
    return f"{program} %s", opened


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_gallery_of_a_bucket_is_shown_until_a_signal(
    farm: Fleet, number: signal.Signals, started: "list[subprocess.Popen[str]]"
) -> None:
    # Given a bucket with a job
    for key, body in OBJECTS.items():
        farm.put(key, body)
    command, opened = browser(farm.folder)
    port = free_port()
    # When its gallery is asked for
    process = start(JOB.id, "--port", str(port), environ={**farm.environ, "BROWSER": command}, started=started)
    # Then its address is printed, answers, and opens in the browser, and the page finds other jobs
    url = first_line(process)
    assert url == f"http://127.0.0.1:{port}/{JOB.id}/index.html"
    assert page(url) == b"job"
    assert page(f"http://127.0.0.1:{port}/index.html") == b"jobs"
    wait_for("the browser", opened.exists, 30)
    assert opened.read_text().strip() == url

    # And a second server on its port is refused in one line, with a way out
    other = farm.run("gallery", JOB.id, "--no-browser", "--port", str(port))
    assert other.returncode == ExitCode.SERVER_FAILED
    assert "--port" in other.stderr.strip().splitlines()[-1]
    assert "Traceback" not in other.stderr

    # And a signal ends it, with code 0 and nothing more to say, while a browser keeps its connection
    idle = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    idle.request("GET", "/index.html")
    idle.getresponse().read()
    process.send_signal(number)
    rest, errors = process.communicate(timeout=30)
    idle.close()
    assert (process.returncode, rest, errors) == (0, "", "Ctrl-C ends the server\n")


def test_the_list_of_jobs_of_a_data_folder_is_shown_without_a_browser(
    tmp_path: Path, started: "list[subprocess.Popen[str]]"
) -> None:
    # Given a data folder, in which an older version finished a job
    for key, body in OBJECTS.items():
        path = tmp_path / "filterfarm-data" / "bucket" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    folder = tmp_path / "filterfarm-data" / "bucket" / JOB.id
    (folder / "gallery.js").unlink()
    (folder / "status.json").write_text('{"state": "finished"}')
    command, opened = browser(tmp_path)
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "BROWSER": command, **ONE_THREAD}
    data = ("--data", str(tmp_path / "filterfarm-data"))

    # When the list is asked for
    process = start("--no-browser", *data, environ=environ, started=started)
    # Then it is there, and no browser
    url = first_line(process)
    assert urlsplit(url).path == "/index.html"
    assert page(url) == b"jobs"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert (process.returncode, opened.exists()) == (0, False)

    # And the old job's page is there, after a line that says how to get the new one
    process = start(JOB.id, "--no-browser", *data, environ=environ, started=started)
    assert page(first_line(process)) == b"job"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert errors.splitlines()[0] == f"{JOB.id} was made by an older version; submit it again to add the new gallery"

    # And an unknown job is refused in one line
    done = run("gallery", "vgg16-notebook-00000000", "--no-browser", *data, environ=environ)
    assert done.returncode == ExitCode.NO_JOB
    assert JOB.id in done.stderr
    assert done.stderr.count("\n") == 1


def test_fetch_says_what_it_copied_and_writes_a_zip(farm: Fleet) -> None:
    # Given a bucket with a job
    for key, body in OBJECTS.items():
        farm.put(key, body)
    folder = farm.folder / "pictures"
    # When it is fetched
    done = farm.run("fetch", JOB.id, str(folder))
    # Then the numbers are printed, and the folder
    assert (done.returncode, done.stdout) == (ExitCode.OK, f"{folder}\n")
    assert done.stderr == "4 files fetched, 0 unchanged\n"

    # And as a zip it is beside the folder, or where a name says
    for name in ("pictures", "other.zip"):
        done = farm.run("fetch", JOB.id, str(farm.folder / name), "--zip")
        path = farm.folder / f"{name.removesuffix('.zip')}.zip"
        assert (done.returncode, done.stdout, done.stderr) == (ExitCode.OK, f"{path}\n", "4 files fetched\n")
        with zipfile.ZipFile(path) as archive:
            assert set(archive.namelist()) == OBJECTS.keys() - {"index.html"}
