"""The column of ``filterfarm layers --weights``: units that no picture can excite because of their weights."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from producer.cli.main import cli
from producer.planning.dead_units import with_dead_units
from producer.planning.layers import KINDS, layers
from workers.contract.errors import WeightsDoNotFit
from workers.contract.job import Kind
from workers.networks import registry

LOGITS: tuple[Kind, ...] = ("logits",)


def listed(*arguments: str) -> Result:
    result = CliRunner().invoke(cli, ["layers", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def saved(model: nn.Module, path: Path) -> str:
    torch.save(model.state_dict(), path)
    return str(path)


def damaged() -> nn.Module:
    """ResNet-18 with four dead filters in its first layer, two in its second, and two dead classes."""
    model = registry.build("resnet18", seed=3)
    state = model.state_dict()
    state["bn1.weight"][[3, 5]] = 0.0
    state["bn1.running_var"][[6]] = 0.0
    state["conv1.weight"][7] = 0.0
    state["layer1.0.conv1.weight"][[0, 63]] = 0.0
    state["fc.weight"][[1, 999]] = 0.0
    return model


def test_filters_without_gain_variance_or_weights_are_dead_and_so_are_classes_without_weights(tmp_path: Path) -> None:
    # Given
    file = saved(damaged(), tmp_path / "damaged.pth")
    # When
    plans, notes = with_dead_units(layers("resnet18", (64, 64), KINDS), "resnet18", file)
    # Then those are found and no others, and of a sum nothing is known
    assert notes == []
    found = {plan.name: (plan.dead, plan.dead_filters) for plan in plans}
    assert found["conv1"] == (4, "3,5-7")
    assert found["layer1.0.conv1"] == (2, "0,63")
    assert found["logits"] == (2, "1,999")
    assert found["layer1.0.add"] == (None, None)
    assert sum(dead or 0 for dead, _ in found.values()) == 8


def test_a_file_of_fewer_classes_has_as_many_logits(tmp_path: Path) -> None:
    # Given the weights of a network of five classes, of which one has no weights
    model = damaged()
    model.fc = nn.Linear(512, 5)
    model.fc.weight.data[4] = 0.0
    # When
    plans, _ = with_dead_units(layers("resnet18", (64, 64), LOGITS), "resnet18", saved(model, tmp_path / "5.pth"))
    # Then
    assert [(plan.channels, plan.dead, plan.dead_filters) for plan in plans] == [(5, 1, "4")]


def test_weights_without_the_classifier_are_refused_where_its_units_are_listed(tmp_path: Path) -> None:
    # Given a file without a classifier
    state = {name: tensor for name, tensor in damaged().state_dict().items() if not name.startswith("fc.")}
    file = tmp_path / "headless.pth"
    torch.save(state, file)
    # Then its convolutions are listed
    plans, _ = with_dead_units(layers("resnet18", (64, 64)), "resnet18", str(file))
    assert plans[0].dead == 4
    # And its logits, whose weights nobody knows, are not
    with pytest.raises(WeightsDoNotFit, match=r"fc\.weight is missing"):
        with_dead_units(layers("resnet18", (64, 64), LOGITS), "resnet18", str(file))


def test_the_trained_efficientnet_lite0_has_130_dead_filters_in_a_table_of_100_columns() -> None:
    # When
    lines = listed("efficientnet_lite0", "--kind", "all", "--weights", "DEFAULT").stdout.splitlines()
    # Then
    assert lines[0].split() == ["layer", "alias", "kind", "filters", "dead", "output", "stride", "field", "GFLOP"]
    assert lines[1].split()[:5] == ["conv_stem", "-", "conv", "32", "4"]
    assert lines[-1].startswith("249 layers, 107,560 filters, 130 dead by their weights")
    assert max(map(len, lines)) <= 100


def test_json_has_the_numbers_of_dead_filters_and_which_they_are() -> None:
    entries = json.loads(listed("efficientnet_lite0", "--weights", "DEFAULT", "--json").stdout)
    assert [(entry["dead"], entry["dead_filters"]) for entry in entries[:3]] == [
        (4, "11,16,28,31"), (4, "11,16,28,31"), (0, ""),
    ]  # fmt: skip


def test_without_weights_nothing_is_loaded_and_no_filter_is_called_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    monkeypatch.setattr("workers.networks.weights.load", lambda *_, **__: pytest.fail("weights were loaded"))
    # When
    text, entries = listed("efficientnet_lite0").stdout, json.loads(listed("efficientnet_lite0", "--json").stdout)
    # Then
    assert "dead" not in text
    assert {(entry["dead"], entry["dead_filters"]) for entry in entries} == {(None, None)}


@pytest.mark.parametrize("model", [(), ("timm:*resnet*",)])
def test_weights_of_no_network_are_refused(model: tuple[str, ...]) -> None:
    result = listed(*model, "--weights", "DEFAULT")
    assert result.exit_code == 2
    assert "--weights are those of one network" in result.stderr


def test_long_aliases_leave_room_in_a_table_of_100_columns() -> None:
    lines = listed("inception_v3", "--size", "299").stdout.splitlines()
    assert "conv2d_94,..." in lines[-2]
    assert max(map(len, lines)) <= 100
