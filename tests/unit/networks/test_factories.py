"""One's own networks: imported from the current folder, and each way in which that fails."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from producer.planning.job_builder import make_job
from producer.planning.options import Options
from workers.contract.errors import BadNetwork, ExitCode
from workers.contract.job import Weights
from workers.networks import registry, weights

SOURCE = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3))

def make():
    return Net()

def needs(path):
    return Net()

def fails():
    raise FileNotFoundError("no file\\nweights.pt")

def returns():
    return {}

number = 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a module ``ownnets`` in it."""
    (tmp_path / "ownnets.py").write_text(SOURCE)
    (tmp_path / "broken.py").write_text("import nothing_of_that_name")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("ownnets", "broken", "json_"):
        sys.modules.pop(name, None)


def test_a_network_of_the_current_folder_is_built_from_seeded_parameters() -> None:
    # Given / When
    chosen, checkpoint = weights.choose("factory:ownnets:make", None)
    one, other = (weights.load("factory:ownnets:make", chosen, checkpoint, seed=seed) for seed in (1, 2))
    # Then every machine builds the same network, whatever the recipe's seed
    assert chosen == Weights(source="factory", name="as built")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not any(module.training for module in one.modules())
    assert not any(parameter.requires_grad for parameter in one.parameters())


def test_its_own_weights_load_from_a_file(folder: Path) -> None:
    # Given
    trained = registry.build("factory:ownnets:make", seed=5)
    torch.save(trained.state_dict(), folder / "mine.pth")
    # When
    job, checkpoint = make_job(Options.make(model="factory:ownnets:make", weights="mine.pth", filters="0-3", size=32))
    loaded = weights.load(job.address, job.weights, checkpoint, seed=0)
    # Then
    assert job.id.startswith("ownnets-make-fourier-")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), trained.parameters(), strict=True))


def test_a_module_of_the_current_folder_does_not_precede_an_installed_one(folder: Path) -> None:
    # Given a file with the name of a module that everything uses
    (folder / "fractions.py").write_text("raise SystemExit")
    sys.modules.pop("fractions", None)
    # When
    registry.build("factory:ownnets:make")
    import fractions

    # Then
    assert hasattr(fractions, "Fraction")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("ownnets", "cannot read --network 'ownnets'; write package.module:function"),
        ("own nets:make", "cannot read --network"),
        ("ownnets:", "cannot read --network"),
        ("no.such:make", r"cannot import 'no.such' .*No module named 'no'.*in the folder of the module"),
        ("broken:make", r"cannot import 'broken' .*No module named 'nothing_of_that_name'"),
        ("ownnets:mak", "'ownnets' has no function 'mak'; nearest: make"),
        ("ownnets:number", "'ownnets' has no function 'number'"),
        ("ownnets:needs", "ownnets:needs raised TypeError: .*it is called without arguments"),
        ("ownnets:fails", "ownnets:fails raised FileNotFoundError: no file weights.pt"),
        ("ownnets:returns", "ownnets:returns returned dict, no torch.nn.Module"),
    ],
)
def test_a_network_that_cannot_be_made_is_one_line(text: str, told: str) -> None:
    # Given / When / Then
    with pytest.raises(BadNetwork, match=told) as caught:
        make_job(Options.make(model=f"factory:{text}", filters="0"))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == ExitCode.BAD_NETWORK


def test_a_factory_may_be_a_class() -> None:
    # Given / When / Then
    assert isinstance(registry.build("factory:ownnets:Net"), nn.Sequential)
