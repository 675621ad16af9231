"""GPUs that fail: a fault of one tile is recorded as its failure, and the tiles of a lost GPU go to other workers.

The faults are injected into the renderers of CPU workers, as the exceptions that CUDA errors become.
"""

import re

from tests.e2e.fleet import Fleet, wait_for
from tests.e2e.whole import check_everything, has_ended
from tests.injection import into_python, into_renderer
from workers.contract.errors import ExitCode

RECIPE = ("--layers", "features.0", "--filters", "0-3", "--size", "32", "--steps", "2")
JOB = ("squeezenet1_1", "--weights", "none", *RECIPE)

#: every convolution of a renderer fails once the file exists
_BROKEN = """\
import os, sys

if "--multiprocessing-fork" in sys.orig_argv:
    import torch

    original = torch.nn.Conv2d._conv_forward

    def convolve(self, *arguments):
        if os.path.exists({path!r}):
            raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")
        return original(self, *arguments)

    torch.nn.Conv2d._conv_forward = convolve
"""

_REASON = "cpu does not compute: AcceleratorError: CUDA error: uncorrectable ECC error encountered"


def test_a_tile_on_which_every_gpu_fails_is_recorded_as_failed_by_the_third_worker(farm: Fleet) -> None:
    # Given three workers on whose devices one filter causes a fault, after which their process can compute nothing
    fault = """
        if 2 in filters or hasattr(torch, "broken"):
            torch.broken = True
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    """
    farm.start("collector")
    broken = into_renderer(farm.folder / "broken", fault)
    workers = [farm.start("worker", "--batch", "4", FILTERFARM_MACHINE=name, **broken) for name in ("a", "b", "c")]

    # When a job includes that filter
    job = farm.submit(*JOB)["job"]
    wait_for("the job to end", lambda: has_ended(farm, job), 240)

    # Then it alone has failed, after attempts on three machines, with the reason
    status = farm.status(job)
    reason = "AcceleratorError: CUDA error: an illegal memory access was encountered"
    assert set(status["reasons"]) == {"features.0/2"}
    assert re.fullmatch(rf"{reason} \(on cpu@[abc], cpu@[abc], cpu@[abc]\)", status["reasons"]["features.0/2"])
    assert (status["stored"], status["failed"]) == (3, 1)
    check_everything(farm, job, failed=[("features.0", 2)])
    logs = [farm.log(worker) for worker in workers]
    assert (
        sum(
            log.count(f"requeued job={job} layer=features.0 filter=2 reason=left to other machines: {reason}")
            for log in logs
        )
        >= 2
    )
    assert sum(log.count(f"failed job={job} layer=features.0 filter=2") for log in logs) == 1
    assert all(worker.poll() is None for worker in workers)


def test_a_worker_whose_gpu_stops_computing_requeues_its_messages_and_ends(farm: Fleet) -> None:
    # Given a worker that has rendered a job
    marker = farm.folder / "marker"
    broken = into_python(farm.folder / "broken", _BROKEN.format(path=str(marker)))
    farm.start("collector")
    worker = farm.start("worker", "--batch", "4", **broken)
    first = farm.submit(*JOB)["job"]
    wait_for("the first job to end", lambda: has_ended(farm, first), 120)

    # When its device stops computing, and another job is submitted
    marker.touch()
    second = farm.submit(*JOB, "--seed", "1")["job"]

    # Then it logs the reason and ends with an exit code of its own
    assert worker.wait(120) == ExitCode.DEVICE_LOST
    log = farm.log(worker)
    assert f"stopping reason={_REASON}" in log
    assert log.count(f"not starting reason={_REASON}") == 1
    assert log.rstrip().splitlines()[-1].startswith("filterfarm: cpu cannot render")
    assert log.count("Traceback") == 0

    # And another worker renders every tile, none of which has failed
    farm.start("worker", "--batch", "4")
    wait_for("the second job to end", lambda: has_ended(farm, second), 120)
    assert (farm.status(second)["stored"], farm.status(second)["failed"]) == (4, 0)
    assert "failed job=" not in log


def test_of_several_gpus_those_that_compute_render(farm: Fleet) -> None:
    # Given a machine that lists a GPU that cannot compute, and a device that can
    listing = (
        'import sys, os\nif "workers.networks.devices" in sys.orig_argv: os.write(1, b"cuda:0\\ncpu\\n"); os._exit(0)\n'
    )
    farm.start("collector")
    two = into_python(farm.folder / "two", listing)
    worker = farm.start("worker", "--batch", "4", "--all-gpus", **two, FILTERFARM_PROCESSES="1")

    # When a job is submitted
    job = farm.submit(*JOB)["job"]
    wait_for("the job to end", lambda: has_ended(farm, job), 120)
    wait_for(
        "the GPU to be given up", lambda: "no worker is started any more device=cuda:0 code=61" in farm.log(worker), 60
    )

    # Then the other device renders it
    assert (farm.status(job)["stored"], farm.status(job)["failed"]) == (4, 0)
    assert len(re.findall(r"not starting reason=cuda:0 does not compute: .+", farm.log(worker))) == 1
    assert worker.poll() is None


def test_several_processes_share_a_device_and_are_one_machine(farm: Fleet) -> None:
    # Given a worker of two processes, one of which cannot render one tile
    farm.start("collector")
    fault = "if 2 in filters: raise RuntimeError('no tile')"
    worker = farm.start(
        "worker", "--batch", "2", **into_renderer(farm.folder / "fault", fault), FILTERFARM_PROCESSES="2"
    )

    # When a job is submitted
    job = farm.submit(*JOB)["job"]
    wait_for("the job to end", lambda: has_ended(farm, job), 240)

    # Then both have started, and the failed tile was tried by one machine
    log = farm.log(worker)
    assert "starting worker device=cpu process=0 of 2 batch=2" in log
    assert "starting worker device=cpu process=1 of 2 batch=2" in log
    status = farm.status(job)
    assert (status["stored"], status["reasons"]) == (3, {"features.0/2": "RuntimeError: no tile"})


def test_a_run_on_a_device_that_cannot_compute_reports_it(farm: Fleet) -> None:
    # Given
    marker = farm.folder / "marker"
    marker.touch()
    broken = into_python(farm.folder / "broken", _BROKEN.format(path=str(marker)))
    # When
    done = farm.run("run", *JOB, "--data", str(farm.folder / "data"), **broken)
    # Then
    assert done.returncode == ExitCode.DEVICE_LOST
    log = farm.folder / "data" / "logs" / "worker.log"
    assert "device cannot render" in done.stderr.splitlines()[-1]
    assert str(log) in done.stderr.splitlines()[-1]
    assert f"not starting reason={_REASON}" in log.read_text()
