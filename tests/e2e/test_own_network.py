"""One's own network: a run in the folder of its module, and a fleet whose workers may not import it, and then may."""

import json
from pathlib import Path

import pytest

from tests.e2e.fleet import Fleet, run, wait_for
from workers.contract.errors import ExitCode

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        maps = torch.relu(self.conv(x))
        if maps.sum() < 0:  # values decide: it cannot be traced
            return maps
        return self.head(maps.mean((2, 3)))
"""
JOB = ("--network", "ownnets:Net", "--layers", "conv,head", "--filters", "0-1", "--input", "1x28x28", "--steps", "2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a module of a network."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "ownnets.py").write_text(SOURCE)
    return tmp_path / "mine"


def test_a_run_renders_a_network_of_the_current_folder(folder: Path, tmp_path: Path) -> None:
    # Given / When
    environ = {"HOME": str(tmp_path)}
    done = run("run", *JOB, "--json", environ=environ, cwd=folder)
    # Then
    assert done.returncode == ExitCode.OK, done.stderr
    result = json.loads(done.stdout)
    assert (result["state"], result["stored"], result["failed"]) == ("finished", 4, 0)
    # And what reads the job later imports the module by the setting alone
    refused = run("quality", result["job"], environ=environ, cwd=folder)
    assert refused.returncode == ExitCode.BAD_NETWORK
    assert "set FILTERFARM_ALLOW_FACTORIES=ownnets to import it" in refused.stderr
    allowed = run("quality", result["job"], environ={**environ, "FILTERFARM_ALLOW_FACTORIES": "ownnets"}, cwd=folder)
    assert allowed.returncode == ExitCode.OK, allowed.stderr


def test_a_worker_renders_a_network_only_where_its_settings_permit_it(farm: Fleet, folder: Path) -> None:
    # Given a worker without the setting, and a job of a network that the person could import
    worker = farm.start("worker", "--batch", "4", FILTERFARM_MACHINE="careful", PYTHONPATH=str(folder))
    farm.start("collector")
    wait_for("the worker", lambda: farm.is_ready(worker), 60)
    job = farm.submit(*JOB, PYTHONPATH=str(folder))["job"]
    # Then status says what to set, and no attempt is counted
    wait_for("the reason", lambda: "careful" in farm.run("status", job).stdout, 60)
    shown = farm.run("status", job).stdout
    assert "ownnets:Net, which this worker may not import; set FILTERFARM_ALLOW_FACTORIES=ownnets" in shown
    assert farm.status(job)["failed"] == 0
    assert "failed/" not in "".join(farm.objects())
    # And a worker with the setting renders it
    farm.start("worker", "--batch", "4", PYTHONPATH=str(folder), FILTERFARM_ALLOW_FACTORIES="other,ownnets")
    wait_for("all tiles", lambda: farm.status(job)["stored"] == 4, 120)
