"""Exported networks: values, names and sizes are those of the network, and nothing in a file runs."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

from producer.planning import job_builder
from producer.planning.dead_units import with_dead_units
from producer.planning.layers import KINDS, layers
from producer.planning.options import Options
from tests.exported import Changes, changed, export, small
from tests.recipes import recipe_of
from workers.contract.errors import BadNetwork, BadOption, ExitCode
from workers.contract.job import decode_whole_job, file_sha256
from workers.networks import pt2_graph, tracing, weights
from workers.rendering.render import render

PROGRAM, WEIGHTS, CONSTANTS = (
    "models/model.json", "data/weights/model_weights_config.json", "data/constants/model_constants_config.json",
)  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network, exported with one picture of 32x32."""
    return export(small(), tmp_path_factory.mktemp("pt2") / "small.pt2")


class _Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def _saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _address(path: Path) -> str:
    return f"{pt2_graph.PREFIX}{path}"


def test_values_are_those_of_the_network_whatever_the_number_of_pictures(file: Path) -> None:
    # Given
    pictures = torch.rand(3, 3, 32, 32)
    # When
    network = pt2_graph.load(file)
    # Then
    with torch.no_grad():
        assert torch.allclose(network(pictures), small()(pictures), atol=1e-6)
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_layers_have_the_names_of_the_modules(file: Path) -> None:
    # Given / When
    found = {plan.name: (plan.kind, plan.channels, plan.output_px) for plan in layers(_address(file), (32, 32), KINDS)}
    # Then
    assert found["features.0"] == ("conv", 8, (16, 16))
    assert found["features.4"] == ("conv", 8, (16, 16))
    assert found["add"] == ("block", 8, (8, 8))
    assert found["logits"] == ("logits", 5, (1, 1))


def test_a_residual_network_has_the_layers_of_torchvisions(tmp_path: Path) -> None:
    # Given
    model = models.resnet18(weights=None).eval()
    path = export(model, tmp_path / "resnet.pt2", torch.rand(1, 3, 64, 64))
    pictures = torch.rand(2, 3, 64, 64)
    # When
    network = pt2_graph.load(path)
    # Then
    with torch.no_grad():
        assert torch.allclose(network(pictures), model(pictures), atol=1e-5)
    mine, published = (layers(name, (64, 64), KINDS) for name in (_address(path), "resnet18"))
    assert mine == published


def test_open_sizes_and_other_channels(tmp_path: Path) -> None:
    # Given
    batch, side = torch.export.Dim("batch"), torch.export.Dim("side", min=16, max=512)
    model = small(channels=1)
    path = export(model, tmp_path / "grey.pt2", torch.rand(2, 1, 32, 32), dynamic=({0: batch, 2: side},))
    pictures = torch.rand(5, 1, 48, 32)
    # When
    network = pt2_graph.load(path)
    # Then
    assert pt2_graph.picture(network) == (1, None)
    assert tracing.input_channels(tracing.trace(network)) == 1
    with torch.no_grad():
        assert torch.allclose(network(pictures), model(pictures), atol=1e-6)


def test_half_precision_and_training_mode_are_computed_in_float32_and_evaluation_mode(tmp_path: Path) -> None:
    # Given
    model = small()
    path = export(small().train().half(), tmp_path / "half.pt2", torch.rand(2, 3, 32, 32).half())
    pictures = torch.rand(2, 3, 32, 32)
    # When
    network = pt2_graph.load(path)
    # Then
    with torch.no_grad():
        assert torch.allclose(network(pictures), model(pictures), atol=5e-3)


def test_a_job_has_the_file_that_a_worker_renders_from(file: Path, tmp_path: Path) -> None:
    # Given
    options = Options.make(model=_address(file), layers="features.4,logits", filters="1,3")
    # When
    job, checkpoint = job_builder.make_job(options)
    # Then
    assert checkpoint == file
    assert (job.weights.source, job.weights.sha256) == ("file", file_sha256(file))
    assert (job.recipe.height_px, job.recipe.width_px) == (32, 32)
    assert job.id.startswith("small.pt2-fourier-")
    assert str(file.parent).encode() not in job.to_json()
    assert "preprocessing imagenet is a guess; --preprocess changes it" in job_builder.notes(options, job, checkpoint)
    assert len(job_builder.as_rendered(job, options.model)) == 2

    # Given a worker's copy, which is named by its SHA-256
    copy = tmp_path / f"{job.weights.sha256}.pt2"
    copy.write_bytes(file.read_bytes())
    stored = decode_whole_job(job.to_json(), job.id)
    # When
    model = weights.load(stored.address, stored.weights, copy, seed=0)
    recipe = recipe_of("fourier", size_px=32, steps=3, rescue=False)
    tiles = render(model, tracing.trace(model), "features.4", [1, 3], recipe, torch.device("cpu"))
    # Then
    assert len(tiles) == 2
    assert not any(tile.error for tile in tiles)


def test_its_dead_units_are_known(file: Path) -> None:
    # Given / When
    plans, notes = with_dead_units(layers(_address(file), (32, 32)), _address(file), "DEFAULT")
    # Then
    assert [plan.dead for plan in plans] == [0, 0]
    assert notes == []


def test_other_weights_are_refused(file: Path) -> None:
    # Given / When / Then
    with pytest.raises(BadOption, match=r"small.pt2 has its own weights; leave out --weights none"):
        weights.choose(_address(file), "none")


def test_example_inputs_are_not_unpickled(file: Path, tmp_path: Path) -> None:
    # Given
    marker = tmp_path / "ran"
    path = changed(file, {"data/sample_inputs/model.pt": _saved(_Touch(marker)), "extra/x": b"\x80"})
    # When
    pt2_graph.load(path)
    # Then
    assert not marker.exists()
    torch.load(io.BytesIO(_saved(_Touch(marker))), weights_only=False)
    assert marker.exists()


def _pickled_weight(config: dict[str, Any]) -> None:
    config["config"]["head.bias"]["use_pickle"] = True


def _object(config: dict[str, Any]) -> None:
    config["config"]["x"] = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}


def _huge(config: dict[str, Any]) -> None:
    meta = config["config"]["head.bias"]["tensor_meta"]
    meta["sizes"], meta["strides"] = [{"as_int": 1 << 40}], [{"as_int": 0}]


def _target(name: str) -> Callable[[dict[str, Any]], None]:
    def change(program: dict[str, Any]) -> None:
        program["graph_module"]["graph"]["nodes"][0]["target"] = name

    return change


def _names_code(program: dict[str, Any]) -> None:
    program["graph_module"]["signature"]["input_specs"][0]["parameter"]["parameter_name"] = 'a"); import os; ("'


def _expression(program: dict[str, Any]) -> None:
    for node in program["graph_module"]["graph"]["nodes"]:
        if "view" in node["target"]:
            node["inputs"][1]["arg"] = {"as_sym_ints": [{"as_expr": {"expr_str": "__import__('os').getpid()"}}]}


def _two_inputs(program: dict[str, Any]) -> None:
    specs = program["graph_module"]["signature"]["input_specs"]
    specs.append(specs[-1])


def _version(program: dict[str, Any]) -> None:
    program["schema_version"]["major"] = 9


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data/aotinductor/model/a.so": b""}, "contains compiled code, data/aotinductor/model/a.so, which is never"),
        ({"data/constants/opaque_obj_0": b""}, "contains a pickled object, data/constants/opaque_obj_0"),
        ({"data/constants/custom_obj_0": b""}, "contains a pickled object, data/constants/custom_obj_0"),
        ({CONSTANTS: _object}, "has a pickled tensor, x, which is never loaded"),
        ({WEIGHTS: _pickled_weight}, "has a pickled tensor, head.bias, which is never loaded"),
        ({"data/weights/model.pt": b""}, "has pickled weights, as earlier versions of torch wrote them"),
        ({"data/constants/model.pt": b""}, "has pickled constants, as earlier versions of torch wrote them"),
        ({WEIGHTS: _huge}, "is damaged .* is shorter than its tensor"),
        ({"data/weights/weight_0": b"12"}, "is damaged .* is shorter than its tensor"),
        ({"data/weights/weight_0": None}, "is damaged .*weight_0 is missing"),
        ({PROGRAM: b"{"}, "is damaged .JSONDecodeError"),
        ({PROGRAM: b"[]"}, "is damaged .TypeError"),
        ({PROGRAM: b"[" * 100_000}, "is damaged .RecursionError"),
        ({PROGRAM: None}, "has 0 programs instead of one"),
        ({"models/other.json": b"{}"}, "has 2 programs instead of one"),
        ({PROGRAM: _version}, "has version 9 of the graph instead of 8"),
        (
            {PROGRAM: _target("torch.ops.aten.from_file.default")},
            "calls aten.from_file, which is not known",
        ),
        ({PROGRAM: _target("torch.ops.aten.add.out")}, "calls aten.add, which is not known"),
        ({PROGRAM: _target("torch.ops.mine.conv.default")}, "calls torch.ops.mine.conv.default, and torch's aten"),
        ({PROGRAM: _target("os.system")}, "calls os.system, and torch's aten operators are read"),
        ({PROGRAM: _names_code}, "has a tensor of the name"),
        ({PROGRAM: _expression}, "cannot be built"),
        ({PROGRAM: _two_inputs}, "takes 2 inputs; export a network that takes one tensor of pictures"),
        ({"archive_format": b"xx"}, "is another kind of zip archive"),
        ({"byteorder": b"big"}, "was written on a big-endian machine"),
    ],
)
def test_a_file_that_is_not_read_is_one_line(file: Path, changes: Changes, told: str) -> None:
    # Given
    path = changed(file, changes)
    # When / Then
    with pytest.raises(BadNetwork, match=f"^--network changed.pt2 {told}") as caught:
        pt2_graph.load(path)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == ExitCode.BAD_NETWORK


def test_pickled_members_do_not_run_before_they_are_refused(file: Path, tmp_path: Path) -> None:
    # Given payloads in every place that torch unpickles
    marker = tmp_path / "ran"
    saved, plain = _saved(_Touch(marker)), pickle.dumps(_Touch(marker))
    doctored: list[Changes] = [
        {CONSTANTS: _object, "data/constants/opaque_obj_0": plain},
        {"data/constants/custom_obj_0": saved},
        {WEIGHTS: _pickled_weight, "data/weights/weight_6": saved},
        {"data/weights/model.pt": saved},
        {"data/constants/model.pt": saved},
    ]
    # When
    for changes in doctored:
        with pytest.raises(BadNetwork):
            pt2_graph.load(changed(file, changes))
    # Then
    assert not marker.exists()


def test_other_files_are_one_line(file: Path, tmp_path: Path) -> None:
    # Given
    text, old, script = tmp_path / "text.pt2", tmp_path / "old.pt2", tmp_path / "saved.pt2"
    text.write_text("no archive")
    with zipfile.ZipFile(old, "w") as archive:
        archive.writestr("serialized_exported_program.json", json.dumps({}))
        archive.writestr("serialized_state_dict.pt", _saved(_Touch(tmp_path / "ran")))
        archive.writestr("version", "5.1")
    script.write_bytes(_saved(nn.Conv2d(3, 3, 3)))
    told = {
        text: "text.pt2 is no zip archive",
        old: "old.pt2 has the format of torch 2.7 and earlier",
        script: "saved.pt2 is another kind of zip archive",
        tmp_path / "none.pt2": "none.pt2 cannot be read: No such file",
        changed(file, {}, "packed.pt2", zipfile.ZIP_DEFLATED): "packed.pt2 has a compressed member",
    }
    # When / Then
    for path, line in told.items():
        with pytest.raises(BadNetwork, match=line):
            job_builder.make_job(Options.make(model=_address(path), filters="0"))
    assert not (tmp_path / "ran").exists()


class _Baked(nn.Module):
    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return pictures.permute(2, 0, 1, 3).reshape(32, 1, 96)


@pytest.mark.parametrize(
    ("model", "shape", "told"),
    [
        (nn.Linear(4, 2), (1, 4), "takes float32 tensors of 1x4; export a network that takes floating-point pictures"),
        (nn.Embedding(4, 2), None, "takes int64 tensors of 1x3x4x4"),
        (_Baked(), (1, 3, 32, 32), r"does not compute two pictures at once .*dynamic_shapes="),
    ],
)
def test_a_network_of_something_else_is_one_line(
    model: nn.Module, shape: tuple[int, ...] | None, told: str, tmp_path: Path
) -> None:
    # Given
    inputs = torch.zeros(1, 3, 4, 4, dtype=torch.int64) if shape is None else torch.rand(shape)
    path = export(model.eval(), tmp_path / "odd.pt2", inputs)
    # When / Then
    with pytest.raises(BadNetwork, match=f"^--network odd.pt2 {told}"):
        pt2_graph.load(path)
