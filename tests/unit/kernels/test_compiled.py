"""The compiled code is installed and up to date. Installation succeeds without it, and other tests then skip it."""

import importlib.util
import platform
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]

_SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
MODULES: list[dict[str, Any]] = _SETUPTOOLS["ext-modules"]

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="compiled for x86-64 only"
)

each = pytest.mark.parametrize("module", MODULES, ids=lambda module: module["name"])


@each
def test_source_has_no_errors_and_no_warnings(module: dict[str, Any]) -> None:
    sources = [str(ROOT / source) for source in module["sources"]]
    command = ["cc", *module["extra-compile-args"], "-Wall", "-Wextra", "-Werror", "-fsyntax-only", *sources]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@each
def test_module_is_installed_and_no_older_than_its_source(module: dict[str, Any]) -> None:
    found = importlib.util.find_spec(module["name"])
    assert found is not None
    assert found.origin is not None
    sources = [ROOT / source for source in (*module["sources"], *module.get("depends", []))]
    assert Path(found.origin).stat().st_mtime >= max(source.stat().st_mtime for source in sources)
