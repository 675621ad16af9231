"""Checkpoints as training scripts leave them: wrappers, prefixes, extra tensors, file names and formats."""

import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.models import get_model_weights

from workers.contract.errors import WeightsDoNotFit, WeightsUnreadable
from workers.contract.job import Weights
from workers.networks import registry, weights

SMALL = "shufflenet_v2_x0_5"

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    return registry.build(SMALL, seed=1).state_dict()


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def chosen(text: str | Path, model: str = SMALL) -> tuple[Weights, Path]:
    given, path = weights.choose(model, str(text))
    assert path is not None
    return given, path


def assert_loads(text: str | Path, state: State, *notes: str) -> None:
    """The first and a late convolution of the file are in the network, and each note is said."""
    given, path = chosen(text)
    said = "; ".join(weights.check(SMALL, given, path))
    loaded = weights.load(SMALL, given, path, seed=0).state_dict()
    for name in ("conv1.0.weight", "stage4.3.branch2.0.weight", "conv5.1.running_var"):
        assert torch.equal(loaded[name], state[name]), name
    for note in notes:
        assert note in said


WRAPPED: dict[str, tuple[Callable[[State], Any], tuple[str, ...]]] = {
    "Keras-like attribute": (lambda s: under("backbone.encoder.", s), ("removed the prefix 'backbone.encoder.'",)),
    "compiled and distributed": (
        lambda s: {"model": under("_orig_mod.module.", s)}, ("took 'model'", "'_orig_mod.module.'"),
    ),
    "two levels": (lambda s: {"checkpoint": {"params": s}, "step": 7}, ("took 'checkpoint.params'",)),
    "best accuracy as a tensor": (
        lambda s: {"state_dict": under("module.", s), "best_acc1": torch.tensor(76.1)}, ("took 'state_dict'",),
    ),
    "optimiser": (
        lambda s: {"weights": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1}]}},
        ("took 'weights'",),
    ),
    "another head": (lambda s: {**s, "projector.0.weight": torch.ones(4, 4)}, ("ignored projector.0.weight",)),
    "loss of a Lightning module": (
        lambda s: {**under("net.", s), "loss.weight": torch.ones(10)}, ("removed the prefix 'net.'",),
    ),
    "mmcv": (lambda s: {"meta": {"epoch": 3}, "state_dict": under("backbone.", s)}, ("'backbone.'",)),
    "Lightning, compiled": (
        lambda s: {"state_dict": under("model._orig_mod.", s), "pytorch-lightning_version": "2.4.0"},
        ("removed the prefix 'model._orig_mod.'",),
    ),
    "model_state": (lambda s: {"model_state": s, "opt": {"p": torch.ones(2)}}, ("took 'model_state'",)),
    "net and the best accuracy": (lambda s: {"net": under("module.", s), "acc": 91.2, "epoch": 4}, ("took 'net'",)),
    "averaged parameters alone": (lambda s: {"ema": s, "step": 5}, ("took 'ema'",)),
    "averaged parameters beside others": (
        lambda s: {"model": s, "model_ema": {name: torch.zeros_like(value) for name, value in s.items()}},
        ("took 'model'", "mine.pth#model_ema is there too"),
    ),
    "double precision": (lambda s: {name: value.double() for name, value in s.items()}, ()),
    "counters inside a block": (
        lambda s: {**s, "stage2.0.branch2.3.total_ops": torch.zeros(1)}, ("ignored stage2.0.branch2.3.total_ops",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_checkpoint_loads_as_scripts_save_it(tmp_path: Path, state: State, kind: str) -> None:
    # Given
    make, notes = WRAPPED[kind]
    path = tmp_path / "mine.pth"
    torch.save(make(state), path)
    # When / Then
    assert_loads(path, state, *notes)


@pytest.mark.parametrize("name", ["last.ckpt", "model_best.pth.tar", "weights.bin.old", "été #1.pt", "a\tb\x7f", "-"])
@pytest.mark.parametrize("save", [torch.save, save_file])
def test_the_format_is_found_in_the_file_and_not_in_its_name(
    tmp_path: Path, state: State, save: Callable[[Any, Path], None], name: str
) -> None:
    # Given
    path = tmp_path / name
    save(state, path)
    # When / Then
    assert_loads(path, state)


def test_one_of_several_dictionaries_is_chosen_by_its_key(tmp_path: Path, state: State) -> None:
    # Given
    path = tmp_path / "both.pth"
    other = registry.build(SMALL, seed=2).state_dict()
    torch.save({"online": other, "target": under("net.", state)}, path)
    # When none is chosen, then the line lists them
    with pytest.raises(WeightsDoNotFit, match=r"'online', 'target'; choose one with --weights 'both\.pth#online'"):
        weights.check(SMALL, *chosen(path))
    # When
    assert_loads(f"{path}#target", state, "took 'target'")
    assert_loads(f"{path}#online", other)


def test_one_of_two_networks_in_a_dictionary_is_chosen_by_its_prefix(tmp_path: Path, state: State) -> None:
    # Given
    path = tmp_path / "distilled.pth"
    torch.save({**under("student.", registry.build(SMALL, seed=2).state_dict()), **under("teacher.", state)}, path)
    # When none is chosen, then the line names them
    with pytest.raises(WeightsDoNotFit, match=r"under 'student\.' and 'teacher\.'; choose one .*#student'"):
        weights.check(SMALL, *chosen(path))
    # When
    assert_loads(f"{path}#teacher", state, "removed the prefix 'teacher.'")


def test_a_key_that_is_not_there_is_answered_by_those_that_are(tmp_path: Path, state: State) -> None:
    # Given
    path = tmp_path / "mine.pth"
    torch.save({"online": state, "target": state}, path)
    # When / Then
    with pytest.raises(WeightsDoNotFit, match=r"no 'emma'; there is 'online', 'target'"):
        weights.check(SMALL, *chosen(f"{path}#emma"))


def test_a_deeper_network_of_the_family_does_not_fit(tmp_path: Path) -> None:
    # Given ResNet-34's file, in which every tensor of ResNet-18 has its name
    path = tmp_path / "resnet34.pth"
    torch.save(registry.build("resnet34").state_dict(), path)
    # When / Then
    with pytest.raises(WeightsDoNotFit, match=r"layer1\.2\.conv1\.weight is unknown.*architecture"):
        weights.check("resnet18", *chosen(path, "resnet18"))


def test_a_network_of_pictures_without_colour_is_said_to_be_one(tmp_path: Path, state: State) -> None:
    # Given
    path = tmp_path / "grey.pth"
    torch.save({**state, "conv1.0.weight": torch.ones(24, 1, 3, 3)}, path)
    # When / Then
    with pytest.raises(WeightsDoNotFit, match=r"pictures of 1 channels .*RGB"):
        weights.check(SMALL, *chosen(path))


# One network of each family of torchvision, as it publishes them.
FAMILIES = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
    "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "resnext50_32x4d",
    "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "vgg11_bn", "wide_resnet50_2", "maxvit_t", "vit_b_32",
)  # fmt: skip


def as_published(name: str) -> OrderedDict[str, torch.Tensor]:
    """A state_dict with random parameters, named as in torchvision's published file."""
    state = OrderedDict(registry.build(name, seed=1).state_dict())
    if name.startswith("densenet"):
        for key in list(state):
            state[re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key)] = state.pop(key)
    return state


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_loads_in_the_form_in_which_it_is_published(tmp_path: Path, name: str) -> None:
    # Given
    path = tmp_path / "own.pth"
    torch.save(as_published(name), path)
    # When
    loaded = weights.load(name, *chosen(path, name), seed=0)
    # Then every convolution has the file's parameters
    expected = registry.build(name, seed=1)
    for convolution, module in expected.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            assert torch.equal(loaded.get_parameter(f"{convolution}.weight"), module.weight), convolution


def test_mnasnets_published_file_is_taken_from_the_download_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a file that carries the version of its layout, under the published name
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    given, _ = weights.choose("mnasnet0_5", None)
    path = tmp_path / "hub" / "checkpoints" / Path(get_model_weights("mnasnet0_5")[given.name].url).name
    path.parent.mkdir(parents=True)
    torch.save(as_published("mnasnet0_5"), path)
    # When
    loaded = weights.load("mnasnet0_5", given, None, seed=0)
    # Then
    assert torch.equal(loaded.state_dict()["layers.0.weight"], as_published("mnasnet0_5")["layers.0.weight"])


def test_mnasnet_loads_from_a_format_without_versions(tmp_path: Path) -> None:
    # Given
    path = tmp_path / "mine.safetensors"
    save_file(as_published("mnasnet0_5"), path)
    # When / Then
    weights.load("mnasnet0_5", *chosen(path, "mnasnet0_5"), seed=0)


# Files that hold no plain parameters


def quantised(path: Path) -> None:
    """One tensor as torch's quantisation stores it, without the warnings of making one."""
    torch.save({"conv1.0.weight": torch.zeros(24, 3, 3, 3, dtype=torch.int8)}, path)


def packed(path: Path) -> None:
    torch.save({"fc.scale": torch.tensor(1.0), "fc._packed_params._packed_params": (torch.zeros(2, 2), None)}, path)


def module(path: Path) -> None:
    torch.save(registry.build(SMALL), path)


def script(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/constants.pkl", b"")
        archive.writestr("net/code/__torch__.py", "class Net(Module): pass")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (quantised, r"quantised \(conv1\.0\.weight is int8\).*use the weights from before"),
        (packed, r"quantised \(fc\._packed_params\._packed_params is packed\)"),
        (module, r"whole pickled module.*torch\.save\(module\.state_dict\(\), 'weights\.pth'\)"),
        (script, r"TorchScript program.*torch\.save\(torch\.jit\.load\(PATH\)\.state_dict\(\), 'weights\.pth'\)"),
    ],
)
def test_a_file_without_plain_parameters_is_refused_with_the_way_out(
    tmp_path: Path, write: Callable[[Path], None], message: str
) -> None:
    # Given
    path = tmp_path / "odd.pth"
    write(path)
    # When / Then
    with pytest.raises(WeightsUnreadable, match=rf"odd\.pth.*{message}") as caught:
        weights.check(SMALL, *chosen(path))
    assert "\n" not in str(caught.value)


def test_safetensors_with_metadata_load(tmp_path: Path, state: State) -> None:
    # Given
    path = tmp_path / "model.safetensors"
    save_file(state, path, metadata={"format": "pt", "architecture": SMALL})
    # When / Then
    assert_loads(path, state)


# timm's names of torchvision's architectures


@pytest.mark.parametrize(
    ("model", "theirs"),
    [
        ("efficientnet_b0", "efficientnet_b0"),
        ("mobilenet_v2", "mobilenetv2_100"),
        ("mnasnet1_0", "mnasnet_100"),
        ("resnet18", "resnet18"),
        ("vgg11", "vgg11"),
    ],
)
def test_timms_names_load_and_the_networks_agree(tmp_path: Path, model: str, theirs: str) -> None:
    # Given
    torch.manual_seed(5)
    source = timm.create_model(theirs, pretrained=False).eval()
    path = tmp_path / "timm.pth"
    torch.save({"state_dict": source.state_dict()}, path)
    # When
    weights.check(model, *chosen(path, model))
    loaded = weights.load(model, *chosen(path, model), seed=0)
    # Then
    pictures = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(loaded(pictures), source(pictures), rtol=1e-4, atol=1e-4)


def test_names_that_are_sorted_have_lost_the_order(tmp_path: Path) -> None:
    # Given a file that lists timm's names alphabetically, so that a swap of equal shapes would not be seen
    path = tmp_path / "sorted.pth"
    source = timm.create_model("mobilenetv2_100", pretrained=False).state_dict()
    torch.save(dict(sorted(source.items())), path)
    # When / Then
    with pytest.raises(WeightsDoNotFit, match=r"sorted\.pth.*features\.0\.0\.weight is missing"):
        weights.check("mobilenet_v2", *chosen(path, "mobilenet_v2"))


def test_names_of_another_architecture_do_not_fit_by_order(tmp_path: Path) -> None:
    # Given
    path = tmp_path / "other.pth"
    torch.save(timm.create_model("mobilenetv2_110d", pretrained=False).state_dict(), path)
    # When / Then
    with pytest.raises(WeightsDoNotFit, match=r"other\.pth.*missing.*and \d+ more"):
        weights.check("mobilenet_v2", *chosen(path, "mobilenet_v2"))
