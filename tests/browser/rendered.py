"""Jobs with tiles of every kind, rendered once by real processes into a plain folder.

Three jobs of small pictures: two methods on the same layers of one checkpoint, whose file has a name that is HTML, and
one of a network whose layers have aliases. Of layer ``SHOWN``, filter ``DEAD`` has no weights, ``RESCUED`` is inactive
on the start image, and the renderer refuses ``FAILED`` for a reason that is HTML.
"""

import fcntl
import json
import shutil
import subprocess
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tests.e2e.fleet import Fleet, fleet, wait_for
from tests.e2e.whole import has_ended
from tests.injection import into_renderer
from workers.contract import keys
from workers.networks import registry

LAYERS = ("features.0", "features.3.squeeze")
SHOWN = LAYERS[0]

#: A filter of each status in ``SHOWN``. Most others are live.
DEAD, RESCUED, FAILED = 3, 4, 7

#: Filters of each layer; the second has 16.
FILTERS = 40

HARMFUL = "<img src=x onerror=alert(1)>"

#: The layer of the third job, and its alias.
ALIASED, ALIAS = "features.0", "block1_conv1"

_POISON = f"""
from workers.contract.errors import Unrenderable
if layer == "{SHOWN}" and {FAILED} in filters:
    raise Unrenderable("{HARMFUL}")
"""

_SIZE = ("--size", "64", "--steps", "4")


@dataclass(frozen=True)
class Rendered:
    """A folder of finished jobs, which has the form of ``filterfarm run``'s data folder."""

    data: Path
    #: two jobs of the same layers, the first with animations, and one with an alias
    notebook: str
    fourier: str
    aliased: str

    @property
    def bucket(self) -> Path:
        """The folder that holds the jobs."""
        return self.data / "bucket"

    def records(self, job: str, layer: str = SHOWN) -> list[dict[str, Any]]:
        """The records of a layer, ascending."""
        found: list[dict[str, Any]] = self._layer(job, layer)["filters"]
        return found

    def sorted(self, job: str, key: Callable[[dict[str, Any]], float], layer: str = SHOWN) -> list[int]:
        """The filters of a layer that have a picture, by descending ``key`` of their records."""
        shown = [record for record in self.records(job, layer) if record["status"] != "failed"]
        return [record["filter"] for record in sorted(shown, key=key, reverse=True)]

    def similarity(self, job: str, unit: int, layer: str = SHOWN) -> dict[int, float]:
        """Filter -> cosine of its descriptor and that of ``unit``, of those that have a picture."""
        content = self._layer(job, layer)
        size = content["descriptors"]["size"]
        rows = np.frombuffer(b64decode(content["descriptors"]["data"]), np.int8).reshape(-1, size).astype(float)
        filters = [record["filter"] for record in content["filters"]]
        norms = np.linalg.norm(rows, axis=1)
        one = filters.index(unit)
        return {
            filter_: float(row @ rows[one] / (norm * norms[one]))
            for filter_, row, norm in zip(filters, rows, norms, strict=True)
            if norm > 0
        }

    def tile(self, job: str, layer: str, unit: int) -> "NDArray[np.uint8]":
        """Pixels of a tile, (64, 64, 3) RGB."""
        return np.asarray(Image.open(self.bucket / keys.tile(job, layer, unit)).convert("RGB"))

    def atlas(self, job: str, layer: str = SHOWN) -> tuple[int, int]:
        """Numbers of columns and rows of a layer's atlas."""
        content = self._layer(job, layer)
        columns = int(content["atlas"]["columns"])
        return columns, -(-content["planned"] // columns)

    def _layer(self, job: str, layer: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.bucket / keys.records(job, layer)).read_text())
        return content


def rendered(shared: Path) -> Rendered:
    """The jobs below ``shared``. The first process that asks renders them, and others wait for it."""
    shared.mkdir(exist_ok=True)
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = shared / "jobs.json"
        if not done.exists():
            (shared / "farm").mkdir()
            with fleet(shared / "farm", "rclone") as farm:
                jobs = _render(farm)
                bucket = farm.folder / "store" / "data" / "pictures" / "of" / "filters"
                shutil.copytree(bucket, shared / "data" / "bucket")
            done.write_text(json.dumps(jobs))
        return Rendered(shared / "data", *json.loads(done.read_text()))


def checkpoint(folder: Path) -> Path:
    """A checkpoint of SqueezeNet with a dead filter and one that is inactive on the start image."""
    state = registry.build("squeezenet1_1", seed=3).state_dict()
    weight, bias = state[f"{SHOWN}.weight"], state[f"{SHOWN}.bias"]
    weight[DEAD], bias[DEAD] = 0.0, -1.0
    bias[RESCUED] = -0.9 * weight[RESCUED].abs().sum()
    path = folder / f"{HARMFUL}.pth"
    torch.save(state, path)
    return path


def start_worker(farm: Fleet) -> "subprocess.Popen[bytes]":
    """A worker that cannot render ``FAILED``."""
    return farm.start("worker", "--batch", "8", **into_renderer(farm.folder / "poison", _POISON))


def _render(farm: Fleet) -> list[str]:
    farm.start("collector")
    start_worker(farm)
    weights = str(checkpoint(farm.folder))
    two = ("squeezenet1_1", "--weights", weights, "--layers", ",".join(LAYERS), "--filters", f"0-{FILTERS - 1}", *_SIZE)
    one = ("vgg11", "--weights", "none", "--layers", ALIASED, "--filters", "0-3", *_SIZE)
    jobs = [
        farm.submit(*two, "--method", "notebook", "--frames", "3")["job"],
        farm.submit(*two, "--method", "fourier")["job"],
        farm.submit(*one, "--method", "notebook")["job"],
    ]
    wait_for("the jobs to end", lambda: all(has_ended(farm, job) for job in jobs), 200)
    return jobs
