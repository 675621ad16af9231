"""Machines that run and cannot render: they fail no tile that another machine can render, and they stop."""

import os
import re
import signal
from contextlib import suppress

import pytest
import torch

from tests.e2e.fleet import Fleet, descendants, wait_for
from tests.e2e.whole import check_everything, has_ended, stored
from tests.injection import into_renderer
from workers.contract.errors import ExitCode
from workers.networks import registry

RECIPE = ("--layers", "features.0", "--size", "32", "--steps", "2", "--method", "notebook")


def test_a_machine_that_cannot_keep_checkpoints_stops_and_leaves_its_tiles_to_others(farm: Fleet) -> None:
    # Given a worker whose cache cannot be written, because its path leads through a file
    blocked, checkpoint = farm.folder / "blocked", farm.folder / "mine.pth"
    blocked.touch()
    torch.save(registry.build("squeezenet1_1", seed=1).state_dict(), checkpoint)
    farm.start("collector")
    sick = farm.start("worker", "--batch", "4", FILTERFARM_CACHE=str(blocked / "cache"), FILTERFARM_MACHINE="sick")

    # When it is alone with a job that has a checkpoint
    job = farm.submit("squeezenet1_1", "--weights", str(checkpoint), *RECIPE, "--filters", "0-15")["job"]

    # Then it ends with an exit code of its own, and status says why, and where
    assert sick.wait(60) == ExitCode.MACHINE_UNFIT
    assert "Traceback" not in farm.log(sick)
    reason = f"cannot keep checkpoints in {blocked}/cache/weights (Not a directory); set FILTERFARM_CACHE"
    status = farm.status(job)
    assert reason in status["troubles"]["cpu@sick"]
    assert status["waiting_for"].startswith(f"a worker that can render: on cpu@sick, {reason}")
    assert (status["state"], status["failed"]) == ("running", 0)
    assert f"trouble on cpu@sick: {reason}" in farm.run("status", job).stdout

    # And another worker renders every tile
    farm.start("worker", "--batch", "4", FILTERFARM_MACHINE="well")
    wait_for("the job to end", lambda: has_ended(farm, job), 120)
    check_everything(farm, job)


def test_a_machine_on_which_every_batch_fails_stops_and_fails_no_tile(farm: Fleet) -> None:
    # Given a worker with a broken installation, beside one that works
    broken = into_renderer(farm.folder / "broken", "raise RuntimeError('no kernel image is available')")
    farm.start("collector")
    farm.start_slow_worker(batch_s=2.0, FILTERFARM_MACHINE="well")
    job = farm.submit("squeezenet1_1", "--weights", "none", *RECIPE, "--filters", "0-63")["job"]
    wait_for("the first tiles", lambda: stored(farm, job) >= 4, 60)
    sick = farm.start("worker", "--batch", "2", FILTERFARM_MACHINE="sick", **broken)

    # When both are at work
    wait_for("the job to end", lambda: has_ended(farm, job), 180)

    # Then every tile is there, and the broken worker has stopped
    check_everything(farm, job)
    assert sick.wait(30) == ExitCode.MACHINE_UNFIT
    assert "no kernel image is available" in farm.status(job)["troubles"]["cpu@sick"]


def test_a_tile_that_no_machine_can_render_fails_after_all_have_tried_and_affects_no_other(farm: Fleet) -> None:
    # Given two machines on which one filter raises an error that nobody expected
    bad = into_renderer(farm.folder / "bad", "if 3 in filters: raise OverflowError('filter three')")
    farm.start("collector")
    workers = [farm.start("worker", "--batch", "4", FILTERFARM_MACHINE=name, **bad) for name in ("one", "two")]
    for worker in workers:
        wait_for("a worker", lambda worker=worker: farm.is_ready(worker), 60)  # type: ignore[misc]

    # When a job contains it
    job = farm.submit("squeezenet1_1", "--weights", "none", *RECIPE, "--filters", "0-15")["job"]
    wait_for("the job to end", lambda: has_ended(farm, job), 180)

    # Then it alone has failed, and the record names both machines
    status = farm.status(job)
    assert (status["stored"], status["failed"], status["requeued"]) == (15, 1, 0)
    reason = status["reasons"]["features.0/3"]
    assert re.fullmatch(r"OverflowError: filter three \(on cpu@(one|two), cpu@(one|two)\)", reason), reason
    check_everything(farm, job, failed=[("features.0", 3)])
    for worker in workers:
        assert len(re.findall(r"left to other machines: OverflowError", farm.log(worker))) >= 1
        assert worker.poll() is None


#: In a Celery process, the renderer's child can neither be killed nor awaited, as one that is stuck in a GPU's driver.
_UNKILLABLE = """
import sys
if "workers.runtime" in sys.orig_argv:
    import threading, pebble
    pebble.ProcessPool.stop = lambda self: None
    pebble.ProcessPool.join = lambda self, timeout=None: threading.Event().wait()
"""


@pytest.mark.timeout(300)
def test_a_worker_whose_renderer_cannot_be_killed_ends_and_its_tiles_are_rendered_by_others(farm: Fleet) -> None:
    # Given a worker whose renderer hangs at its first batch, and holds the interpreter's lock meanwhile
    hanging = into_renderer(farm.folder / "hanging", "ctypes.PyDLL(None).sleep(90)", everywhere=_UNKILLABLE)
    farm.start("collector")
    stuck = farm.start("worker", "--batch", "4", FILTERFARM_HANG_S="20", FILTERFARM_MACHINE="stuck", **hanging)
    wait_for("the worker", lambda: farm.is_ready(stuck), 60)
    job = farm.submit("squeezenet1_1", "--weights", "none", *RECIPE, "--filters", "0-3")["job"]
    wait_for("it to take the job", lambda: farm.redis.hlen(farm.names.unacked) == 4, 60)
    children = descendants(stuck.pid)

    # When another worker starts
    farm.start("worker", "--batch", "4", FILTERFARM_MACHINE="well")

    # Then the first ends its Celery process, and the tiles are rendered by the other
    try:
        wait_for("the end of the first", lambda: "cannot be killed" in farm.log(stuck), 120)
        wait_for("the job to end", lambda: has_ended(farm, job), 120)
        check_everything(farm, job)
        assert farm.status(job)["failed"] == 0
    finally:  # the renderer outlives its parent until it wakes
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
