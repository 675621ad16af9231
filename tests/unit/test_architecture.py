"""Rules for the tree that import-linter cannot check. Who may import whom stands in pyproject.toml ("make lint")."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: Longer modules are to be split.
MAX_LINES = 260


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for package in ("producer", "workers") for path in (ROOT / package).rglob("*.py")}

#: The folders that render without a queue or an object store.
ENGINE = ("workers.contract", "workers.networks", "workers.kernels", "workers.rendering")

_ENGINE_ALONE = """
import importlib, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"celery", "kombu", "redis", "boto3", "botocore", "s3transfer", "pebble"}:
            raise ModuleNotFoundError(f"{name} is not installed", name=name)

sys.meta_path.insert(0, Refuse())
for name in sys.argv[1:]:
    importlib.import_module(name)

import torch
from workers.contract.recipe import Recipe
from workers.networks import registry, tracing
from workers.rendering.render import render

model = registry.build("squeezenet1_1", seed=1)
recipe = Recipe.model_validate(
    {"method": "fourier", "preprocess": registry.HALVES, "height_px": 32, "width_px": 32, "steps": 2, "step_size": 0.05}
)
tile, = render(model, tracing.trace(model), "features.0", [3], recipe, torch.device("cpu"))
print(tile.pixels.shape, tile.pixels.dtype)
"""


_FIRST_TO_LOAD_TORCH = """
import importlib
import sys

for name in sys.argv[1:]:
    importlib.import_module(name)
    loaded = sorted({"torch", "torchvision", "timm"} & set(sys.modules))
    if loaded:
        print(name, "loads", *loaded)
        break
"""


def test_the_engine_renders_where_neither_queue_nor_object_store_is_installed() -> None:
    # Given a fresh interpreter in which their packages cannot be imported, and every module of the engine
    modules = sorted(name for name in MODULES if name.startswith(ENGINE))
    assert {"workers.contract.settings", "workers.kernels.loader", "workers.rendering.render"} <= set(modules)
    # When all are imported and a tile is rendered
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _ENGINE_ALONE, *modules], cwd=ROOT, capture_output=True, text=True
    )
    # Then its pixels have the recipe's size
    assert (done.stdout, done.stderr) == ("(32, 32, 3) uint8\n", "")


def test_processes_that_render_nothing_do_not_load_torch() -> None:
    # Given every module of the producer, and those that the worker's main process imports
    modules = sorted(name for name in MODULES if name.startswith("producer"))
    modules += ["workers.runtime.supervisor", "workers.runtime.tasks", "workers.rendering.tile"]
    # When a fresh interpreter imports one after the other
    done = subprocess.run(
        [sys.executable, "-c", _FIRST_TO_LOAD_TORCH, *modules], cwd=ROOT, capture_output=True, text=True, check=True
    )
    # Then none loads torch, which takes seconds and 300 MB
    assert done.stdout == ""


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_module_is_short(module: str) -> None:
    # Given a module
    # When its lines are counted
    lines = MODULES[module].read_text().count("\n")
    # Then there are few
    assert lines < MAX_LINES


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_module_has_a_docstring(module: str) -> None:
    assert ast.get_docstring(ast.parse(MODULES[module].read_text()))
