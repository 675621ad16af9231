"""The arrows between modules, read from their source."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: A module longer than this holds more than one noun.
MOST_LINES = 260

#: What makes pictures; it knows no queue, no ledger and no object store.
RENDERING = {
    f"workers.{name}"
    for name in (
        "models",
        "graph",
        "tap",
        "trunk",
        "convolutions",
        "convolutions.amx",
        "convolutions.depthwise",
        "convolutions.frozen",
        "convolutions.library",
        "convolutions.pool",
        "convolutions.winograd",
        "streams",
        "images",
        "canvas",
        "views",
        "objectives",
        "ascent",
        "methods",
        "render",
        "weights",
        "measure",
    )  # fmt: skip
}
REMOTE = {"celery", "kombu", "redis", "boto3", "botocore"}

#: What the control plane may take from the data plane beside the contract; all but png need torch.
SHARED = {f"workers.{name}" for name in ("models", "graph", "weights", "png", "measure", "tuning", "devices")}


@dataclass(frozen=True)
class Import:
    """One import of a module; ``lazy`` where it runs only when some function is called."""

    name: str
    lazy: bool


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for package in ("producer", "workers") for path in (ROOT / package).rglob("*.py")}


def statements(tree: ast.AST, *, lazy: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import that ever runs: those for type checkers alone do not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node, lazy
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        else:
            yield from statements(node, lazy=lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def imports(module: str) -> Iterator[Import]:
    """What a module imports: "from workers import models" is workers.networks.registry."""
    for node, lazy in statements(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert node.level == 0, f"{module} has a relative import"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else str(node.module) for name in inner]
        yield from (Import(name=name, lazy=lazy) for name in dict.fromkeys(names))


def reached(module: str, *, lazily: bool) -> set[str]:
    """All that is imported with a module, by it or by what it imports of ours."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        if current in MODULES:
            waiting += [entry.name for entry in imports(current) if lazily or not entry.lazy]
    return seen


def is_below(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_there_is_something_to_check() -> None:
    # Given the modules that were found
    # Then those that the rules below name are among them
    assert {*RENDERING, *SHARED, "producer.cli.main", "workers.contract.job", "workers.runtime.tasks"} <= set(MODULES)


@pytest.mark.parametrize("module", sorted(name for name in MODULES if is_below(name, "producer")))
def test_the_control_plane_takes_only_the_contract_and_little_else_from_the_data_plane(module: str) -> None:
    # Given what a module of the control plane imports of ours
    ours = {entry.name for entry in imports(module) if is_below(entry.name, "workers")}
    # Then it is the contract, or what a plan needs of a model, or what reads tiles
    foreign = {name for name in ours if not is_below(name, "workers.contract")} - {"workers"} - SHARED
    assert not foreign


@pytest.mark.parametrize("module", sorted(name for name in MODULES if is_below(name, "producer")))
def test_the_control_plane_loads_torch_only_inside_functions(module: str) -> None:
    # Given what comes with a module as soon as it is imported
    loaded = reached(module, lazily=False)
    # Then torch is not in it
    assert not {name for name in loaded if name.partition(".")[0] in {"torch", "torchvision", "timm"}}


@pytest.mark.parametrize("module", sorted(name for name in MODULES if is_below(name, "workers")))
def test_the_data_plane_does_not_know_the_control_plane(module: str) -> None:
    # Given what a module of the data plane imports
    # Then none of it is the control plane's
    assert not [entry.name for entry in imports(module) if is_below(entry.name, "producer")]


@pytest.mark.parametrize("module", sorted(name for name in MODULES if is_below(name, "workers.contract")))
def test_the_contract_imports_nothing_of_ours_but_itself_and_never_torch(module: str) -> None:
    # Given all that ever comes with a module of the contract
    everything = reached(module, lazily=True)
    # Then what is ours is the contract
    ours = {name for name in everything if is_below(name, "workers") or is_below(name, "producer")}
    assert not {name for name in ours if not is_below(name, "workers.contract")}
    # And torch is not in it
    assert not {name for name in everything if name.partition(".")[0] in {"torch", "torchvision", "timm"}}


@pytest.mark.parametrize("module", sorted(RENDERING))
def test_what_renders_knows_no_queue_and_no_store(module: str) -> None:
    # Given all that ever comes with a module that renders
    everything = reached(module, lazily=True)
    # Then Celery, Redis and S3 are not in it
    assert not {name for name in everything if name.partition(".")[0] in REMOTE}


@pytest.mark.parametrize(
    "module",
    [
        "producer.cli.main",
        "producer.collector.collector",
        "workers.runtime.supervisor",
        "workers.runtime.tasks",
        "workers.rendering.tile",
    ],
)
def test_a_process_that_renders_nothing_does_not_load_torch(module: str) -> None:
    # Given a fresh interpreter
    code = f"import sys, {module}; print(sorted({{'torch', 'torchvision', 'timm'}} & set(sys.modules)))"
    # When the module is imported
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    # Then torch is not loaded: it takes seconds and 300 MB
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_module_is_short_enough_to_be_read(module: str) -> None:
    # Given a module's lines
    lines = MODULES[module].read_text().count("\n")
    # Then they are few
    assert lines < MOST_LINES


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_module_says_what_it_is_for(module: str) -> None:
    # Given a module
    # Then its docstring says so
    assert ast.get_docstring(ast.parse(MODULES[module].read_text()))
