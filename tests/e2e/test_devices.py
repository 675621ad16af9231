"""GPUs that fail: a fault of one tile ends as that tile's failure, and a sick GPU's tiles go to others.

There is none here, so the faults are put into the renderers of CPU workers, as the errors that CUDA's become.
"""

import re

from tests.e2e.fleet import Fleet, wait_for
from tests.e2e.whole import check_everything, has_ended
from tests.injection import into_python, into_renderer
from workers.contract.errors import ExitCode

RECIPE = ("--layers", "features.0", "--filters", "0-3", "--size", "32", "--steps", "2")
JOB = ("squeezenet1_1", "--weights", "none", *RECIPE)

#: a renderer's every convolution fails once the file is there
_SICK = """\
import os, sys

if "--multiprocessing-fork" in sys.orig_argv:
    import torch

    right = torch.nn.Conv2d._conv_forward

    def convolve(self, *arguments):
        if os.path.exists({path!r}):
            raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")
        return right(self, *arguments)

    torch.nn.Conv2d._conv_forward = convolve
"""

_REASON = "cpu does not compute: AcceleratorError: CUDA error: uncorrectable ECC error encountered"


def test_a_tile_on_which_every_gpu_fails_is_given_up_by_the_third_worker(farm: Fleet) -> None:
    # Given three workers on whose devices one filter causes a fault, after which their process computes nothing more
    fault = """
        if 2 in filters or hasattr(torch, "sick"):
            torch.sick = True
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    """
    farm.start("collector")
    sick = into_renderer(farm.folder / "sick", fault)
    workers = [farm.start("worker", "--batch", "4", **sick) for _ in range(3)]

    # When a job has that filter
    job = farm.submit(*JOB)["job"]
    wait_for("the job to end", lambda: has_ended(farm, job), 240)

    # Then it alone has failed, after three attempts, and says why
    status = farm.status(job)
    reason = "AcceleratorError: CUDA error: an illegal memory access was encountered"
    assert status["reasons"] == {"features.0/2": reason}
    assert (status["stored"], status["failed"]) == (3, 1)
    check_everything(farm, job, failed=[("features.0", 2)])
    logs = [farm.log(worker) for worker in workers]
    assert sum(log.count(f"requeued job={job} layer=features.0 filter=2 reason={reason}") for log in logs) == 2
    assert sum(log.count(f"failed job={job} layer=features.0 filter=2") for log in logs) == 1
    assert all(worker.poll() is None for worker in workers)


def test_a_worker_whose_gpu_falls_ill_hands_everything_back_and_ends(farm: Fleet) -> None:
    # Given a worker, and a job under way
    ill = farm.folder / "ill"
    sick = into_python(farm.folder / "sick", _SICK.format(path=str(ill)))
    farm.start("collector")
    worker = farm.start("worker", "--batch", "4", **sick)
    first = farm.submit(*JOB)["job"]
    wait_for("the first job to end", lambda: has_ended(farm, first), 120)

    # When its device computes nothing any more, and there is more to do
    ill.touch()
    second = farm.submit(*JOB, "--seed", "1")["job"]

    # Then it says so and ends with a code of its own, for whoever started it
    assert worker.wait(120) == ExitCode.DEVICE_LOST
    log = farm.log(worker)
    assert f"stopping reason={_REASON}" in log
    assert log.count(f"not starting reason={_REASON}") == 1
    assert log.rstrip().endswith("filterfarm: cpu cannot render; the log above says why")
    assert log.count("Traceback") == 0

    # And another renders every tile, as if nothing had been
    farm.start("worker", "--batch", "4")
    wait_for("the second job to end", lambda: has_ended(farm, second), 120)
    assert (farm.status(second)["stored"], farm.status(second)["failed"]) == (4, 0)
    assert "failed job=" not in log


def test_of_several_gpus_the_well_ones_work(farm: Fleet) -> None:
    # Given a machine that lists a GPU on which nothing can be computed, and a device that is well
    listing = (
        'import sys, os\nif "workers.networks.devices" in sys.orig_argv: os.write(1, b"cuda:0\\ncpu\\n"); os._exit(0)\n'
    )
    farm.start("collector")
    worker = farm.start("worker", "--batch", "4", "--all-gpus", **into_python(farm.folder / "two", listing))

    # When it has work to do
    job = farm.submit(*JOB)["job"]
    wait_for("the job to end", lambda: has_ended(farm, job), 120)
    wait_for("the other to be given up", lambda: "device=cuda:0 is lost" in farm.log(worker), 60)

    # Then the one does it
    assert (farm.status(job)["stored"], farm.status(job)["failed"]) == (4, 0)
    assert len(re.findall(r"not starting reason=cuda:0 does not compute: .+", farm.log(worker))) == 1
    assert worker.poll() is None


def test_a_run_on_a_device_that_computes_nothing_says_so(farm: Fleet) -> None:
    # Given
    ill = farm.folder / "ill"
    ill.touch()
    sick = into_python(farm.folder / "sick", _SICK.format(path=str(ill)))
    # When
    done = farm.run("run", *JOB, "--data", str(farm.folder / "data"), **sick)
    # Then
    assert done.returncode == ExitCode.DEVICE_LOST
    log = farm.folder / "data" / "logs" / "worker.log"
    assert done.stderr.splitlines()[-1] == f"filterfarm: this machine's device cannot render; {log} says why"
    assert f"not starting reason={_REASON}" in log.read_text()
