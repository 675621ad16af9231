"""``filterfarm run``: its data folder, and its processes when it is stopped or killed."""

import json
import os
import signal
import subprocess
from pathlib import Path

from producer.gallery import site
from tests.e2e.fleet import COMMAND, ONE_THREAD, descendants, is_running, run, wait_for
from workers.contract.errors import ExitCode
from workers.contract.tile_png import decode_tile

JOB = ("squeezenet1_1", "--weights", "none", "--layers", "features.0", "--filters", "0-31", "--size", "48")
ARGUMENTS = ("run", *JOB, "--method", "notebook", "--steps", "60", "--batch", "4")


def _environ(folder: Path) -> dict[str, str]:
    # Settings of a fleet, which a run must not use.
    elsewhere = {"FILTERFARM_BROKER_URL": "redis://127.0.0.1:9/0", "FILTERFARM_BUCKET": "s3://elsewhere"}
    own = {"HOME": str(folder), "PATH": os.environ["PATH"], **ONE_THREAD}
    return {**own, "AWS_ACCESS_KEY_ID": "theirs", **elsewhere}


def _start(folder: Path) -> "subprocess.Popen[bytes]":
    with (folder / "run.log").open("ab") as log:
        return subprocess.Popen(
            [COMMAND, *ARGUMENTS], cwd=folder, env=_environ(folder), stdout=log, stderr=log, start_new_session=True,
            # A shell starts background processes with SIGINT ignored; a terminal does not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip


def _tiles(folder: Path) -> list[Path]:
    return sorted((folder / "filterfarm-data" / "bucket").glob("*/tiles/*/*.png"))


def test_a_run_renders_into_a_plain_folder_and_reports_it(tmp_path: Path) -> None:
    # When a job is run with the notebook's sheet
    arguments = ("run", *JOB, "--steps", "2", "--grid", "8x8", "--data", str(tmp_path / "here"), "--json")
    done = run(*arguments, environ=_environ(tmp_path))

    # Then it succeeds, and the bucket is a folder with the same keys as that of a fleet
    assert done.returncode == ExitCode.OK, done.stderr
    result = json.loads(done.stdout)
    folder = Path(result["folder"])
    assert folder.parent == tmp_path / "here" / "bucket"
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    others = {"job.json", "status.json", "index.html", "gallery.json", "gallery.js", "grids/features.0.png"}
    others |= {"layers/features.0.json", "layers/features.0.js", "atlas/features.0.webp", "strips/features.0.webp"}
    others |= {f"assets/{name}" for name in site.assets()}
    assert names == others | {f"tiles/features.0/{filter_}.png" for filter_ in range(32)}
    assert result["grids"] == [str(folder / "grids" / "features.0.png")]
    assert (result["state"], result["stored"], result["failed"]) == ("finished", 32, 0)
    # And the list of jobs beside it knows that it has ended
    (listed,) = json.loads((folder.parent / "index.json").read_text())["jobs"]
    assert (listed["id"], listed["state"], listed["done"]) == (folder.name, "finished", 32)

    # And the queue.s password is in no file
    assert not (tmp_path / "here" / "queue" / "valkey.conf").exists()


def test_ctrl_c_stops_cleanly_and_the_same_command_resumes(tmp_path: Path) -> None:
    # Given a run in progress
    process = _start(tmp_path)
    wait_for("the first tiles", lambda: len(_tiles(tmp_path)) >= 4, 90)
    children = descendants(process.pid)

    # When it gets Ctrl-C
    process.send_signal(signal.SIGINT)

    # Then it has said where the gallery is
    (folder,) = (path.parent for path in (tmp_path / "filterfarm-data" / "bucket").glob("*/job.json"))
    page = folder.relative_to(tmp_path) / "index.html"
    assert f"{page}, fills while it runs" in (tmp_path / "run.log").read_text()

    # And it ends with its exit code and one line, and none of its processes remains
    assert process.wait(60) == ExitCode.INTERRUPTED
    log = (tmp_path / "run.log").read_text()
    assert "Traceback" not in log
    assert "the same command resumes" in log.strip().splitlines()[-1]
    assert not [pid for pid in children if is_running(pid)]
    before = {path: path.stat().st_mtime_ns for path in _tiles(tmp_path)}
    assert 4 <= len(before) < 32

    # And the same command renders the missing tiles and no others
    assert _start(tmp_path).wait(180) == ExitCode.OK
    assert len(_tiles(tmp_path)) == 32
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for path in _tiles(tmp_path):
        decode_tile(path.read_bytes(), (48, 48))


def test_a_run_that_is_killed_leaves_no_orphans_and_the_same_command_resumes(tmp_path: Path) -> None:
    # Given a run in progress
    process = _start(tmp_path)
    wait_for("the first tiles", lambda: len(_tiles(tmp_path)) >= 4, 90)
    children = descendants(process.pid)
    assert len(children) >= 8  # queue, store, collector, worker, each with a process guard; Celery and renderer

    # When it gets SIGKILL, so that it cannot stop its processes
    process.send_signal(signal.SIGKILL)
    process.wait()

    # Then every process it started ends
    wait_for("all descendants to end", lambda: not [pid for pid in children if is_running(pid)], 60)
    before = {path: path.stat().st_mtime_ns for path in _tiles(tmp_path)}

    # And the same command resumes
    assert _start(tmp_path).wait(180) == ExitCode.OK, (tmp_path / "run.log").read_text()
    assert len(_tiles(tmp_path)) == 32
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    # Given a run in progress whose main process is suspended: it cannot end, and so holds the folder's lock
    process = _start(tmp_path)
    wait_for("the first tiles", lambda: len(_tiles(tmp_path)) >= 1, 90)
    command = [*ARGUMENTS, "--seed", "1", "--steps", "2"]
    jobs = sorted((tmp_path / "filterfarm-data" / "bucket").iterdir())
    process.send_signal(signal.SIGSTOP)

    # When another is started in the same folder
    try:
        refused = run(*command, cwd=tmp_path, environ=_environ(tmp_path))
    finally:
        process.send_signal(signal.SIGCONT)

    # Then it is refused, names the folder, and has stored nothing
    assert refused.returncode == ExitCode.SERVER_FAILED, refused.stderr
    assert f"another filterfarm uses the data folder {tmp_path / 'filterfarm-data'}" in refused.stderr
    assert sorted((tmp_path / "filterfarm-data" / "bucket").iterdir()) == jobs

    # And the first one ends well, after which the folder is free for the same command
    assert process.wait(120) == ExitCode.OK, (tmp_path / "run.log").read_text()
    done = run(*command, cwd=tmp_path, environ=_environ(tmp_path))
    assert done.returncode == ExitCode.OK, done.stderr
    assert len(_tiles(tmp_path)) == 64
