"""The Python API with real servers: the notebook, "Interrupt kernel", and jobs of a farm."""

import base64
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager, start_new_kernel
from nbclient import NotebookClient
from PIL import Image

import producer
from producer import Job, submit
from tests.e2e.fleet import ONE_THREAD, Fleet, descendants, is_running, wait_for
from workers.contract.errors import JobIncomplete

NOTEBOOK = Path(producer.__file__).parent / "notebook" / "filters.ipynb"

#: A layer of few operations, and few steps: what the pictures show is the subject of other tests.
PARAMETERS = """model, layer = "efficientnet_lite0", "blocks.1.0.conv_pw"
options = {"preset": "notebook", "steps": 2}"""

JOB: dict[str, Any] = {"weights": "none", "layers": "features.0", "size": 48, "method": "notebook"}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the kernels, and with them of the farms that they start."""
    for name, text in ONE_THREAD.items():
        monkeypatch.setenv(name, text)


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    """A Jupyter kernel whose current folder is ``tmp_path``."""
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(tmp_path))
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def pictures(cell: Any) -> list[Image.Image]:
    """The PNGs that a cell shows."""
    shown = [output["data"].get("image/png") for output in cell.outputs if "data" in output]
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in shown if data]


@pytest.mark.filterwarnings("default")
def test_the_notebook_shows_one_filter_and_the_sheet_of_64(tmp_path: Path) -> None:
    # Given the notebook as it is in the repository, with cheap parameters
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    assert not [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")]
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    parameters.source = PARAMETERS
    # When a Jupyter kernel executes it
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    # Then it shows one filter of 150 px, and the sheet of 8 x 8 tiles of 64 px with margins of 5 px
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown = [picture for cell in cells for picture in pictures(cell)]
    assert [picture.size for picture in shown] == [(150, 150), (8 * 64 + 7 * 5,) * 2]
    assert all(low < high for low, high in shown[0].getextrema())  # type: ignore[misc]
    # And the progress of a run is one display, which was replaced, besides the lines of submission and gallery
    runs = [cell for cell in cells if "run(" in cell.source and "import" not in cell.source]
    for cell in runs:
        texts = [output["data"]["text/plain"] for output in cell.outputs if output.output_type == "display_data"]
        assert len(texts) == 3, texts
        assert "finished" in texts[-1]


@pytest.mark.filterwarnings("default")
def test_interrupt_kernel_stops_a_run_and_the_same_call_resumes(
    tmp_path: Path, kernel: tuple[KernelManager, BlockingKernelClient]
) -> None:
    # Given a run in a kernel's cell
    manager, client = kernel
    code = f"import producer; job = producer.run('squeezenet1_1', filters='0-15', steps=60, batch=4, **{JOB})"
    sent = client.execute(code)
    wait_for("the first tiles", lambda: len(list(tmp_path.glob("filterfarm-data/bucket/*/tiles/*/*.png"))) >= 1, 90)
    assert manager.provisioner is not None
    children = descendants(manager.provisioner.pid)  # type: ignore[attr-defined]
    assert len(children) >= 8
    # When the kernel is interrupted
    manager.interrupt_kernel()
    # Then the cell ends with KeyboardInterrupt, and none of the farm's processes remains
    reply = reply_to(client, sent)
    assert (reply["status"], reply["ename"]) == ("error", "KeyboardInterrupt")
    assert not [pid for pid in children if is_running(pid)]
    # And the same call renders what is missing
    reply = reply_to(client, client.execute(f"{code}\nassert job.status.stored == 16"))
    assert reply["status"] == "ok", reply


def reply_to(client: BlockingKernelClient, sent: str) -> dict[str, Any]:
    """The content of the reply to one request."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        message = client.get_shell_msg(timeout=180)
        if message["parent_header"]["msg_id"] == sent:
            content: dict[str, Any] = message["content"]
            return content
    raise AssertionError("no reply")


def test_a_job_of_a_farm_is_submitted_waited_for_and_looked_at(
    strict_farm: Fleet, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # Given a farm in the environment, without a worker yet
    for name, text in strict_farm.environ.items():
        if name.startswith(("FILTERFARM_", "AWS_")):
            monkeypatch.setenv(name, text)
    # When a job is submitted
    job = submit("squeezenet1_1", filters=[0, 3], steps=2, **JOB)
    # Then it is known at once, and its sheet is not there yet
    assert job.status.state == "running"
    with pytest.raises(JobIncomplete, match=r"no sheet of features\.0 yet: 0 of 2 tiles are stored; job\.wait\(\)"):
        job.layer("features.0")
    with pytest.raises(JobIncomplete, match="unit 3 of features.0 of .* has no tile yet"):
        job.tile("features.0", 3)
    # And once worker and collector are at work, it is waited for and looked at
    strict_farm.start("collector")
    strict_farm.start("worker")
    assert job.wait() is job
    assert "finished, 2 of 2 tiles" in capfd.readouterr().err
    opened = Job.open(job.id)
    assert opened.layer("features.0").sheet.size == (2 * 48 + 5, 48)
    assert opened.tile("features.0", 3).size == (48, 48)
    assert [record["filter"] for record in opened.records("features.0")] == [0, 3]
    assert opened.gallery == f"s3://pictures/of/filters/{job.id}/index.html"
