"""Networks as Keras computes them, and files as Keras writes them: references that share no code with filterfarm.

Kernels are (H, W, in, out), maps are (B, H, W, C), and convolutions are numbered as they are created.
"""

import io
import zipfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

Array = NDArray[np.float32]
#: layer -> role -> array, in the order of creation
Layers = dict[str, dict[str, Array]]

#: The order of Inception v3's first convolutions in a file, by their numbers: by distance from the output.
BY_DEPTH = (1, 2, 3, 4, 5, 9, 7, 10, 6, 8, 11, 12, 16, 14, 17, 13, 15, 18)


def conv(maps: Array, kernel: Array, bias: Array | None = None, *, stride: int = 1, padding: str = "same") -> Array:
    """Keras's Conv2D. With ``same``, the stride is 1 and the sides of the kernel are odd."""
    height, width = kernel.shape[:2]
    around = (height // 2, width // 2) if padding == "same" else (0, 0)
    weight = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
    made = F.conv2d(torch.from_numpy(maps.transpose(0, 3, 1, 2).copy()), weight, stride=stride, padding=around)
    channels_last: Array = np.asarray(made).transpose(0, 2, 3, 1)
    return channels_last if bias is None else channels_last + bias


def relu(maps: Array) -> Array:
    return np.maximum(maps, 0)


def max_pool(maps: Array, size: int, stride: int) -> Array:
    """Keras's MaxPooling2D with padding "valid"."""
    windows = np.lib.stride_tricks.sliding_window_view(maps, (size, size), axis=(1, 2))
    largest: Array = windows[:, ::stride, ::stride].max(axis=(-2, -1))
    return largest


def mean_pool_same(maps: Array) -> Array:
    """Keras's AveragePooling2D of 3 x 3, strides 1 and padding "same": of the pixels that exist."""

    def sums(values: Array) -> Array:
        padded = np.pad(values, ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
        total: Array = windows.sum(axis=(-2, -1))
        return total

    return sums(maps) / sums(np.ones_like(maps[:1, :, :, :1]))


def vgg(convolutions: Iterable[int], seed: int) -> Layers:
    """Random parameters of a VGG network with that number of convolutions in each block."""
    rng, layers, channels = np.random.default_rng(seed), {}, 3
    for block, (count, filters) in enumerate(zip(convolutions, (64, 128, 256, 512, 512), strict=True), 1):
        for place in range(1, count + 1):
            layers[f"block{block}_conv{place}"] = {
                "kernel": _normal(rng, (3, 3, channels, filters)),
                "bias": rng.normal(size=filters).astype(np.float32) * 0.1,
            }
            channels = filters
    return layers


def vgg_map(layers: Layers, bgr: Array) -> Array:
    """Output of VGG's last block, for pictures (B, H, W, 3) in BGR."""
    maps, block = bgr, "1"
    for name, layer in layers.items():
        if name[5] != block:
            maps, block = max_pool(maps, 2, 2), name[5]
        maps = relu(conv(maps, layer["kernel"], layer["bias"]))
    return max_pool(maps, 2, 2)


class InceptionV3:
    """Keras's Inception v3 with random parameters, which are created as the network is applied to pictures."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        #: convolutions and batch-norms, numbered from 0
        self.layers: Layers = {}

    def __call__(self, rgb: Array) -> Array:
        """Output of the last block, (B, H, W, 2048), for pictures (B, H, W, 3)."""
        cell, valid = self._cell, partial(self._cell, padding="valid")
        x = valid(rgb, 32, 3, 3, stride=2)
        x = cell(valid(x, 32, 3, 3), 64, 3, 3)
        x = valid(max_pool(x, 3, 2), 80, 1, 1)
        x = max_pool(valid(x, 192, 3, 3), 3, 2)
        for pooled in (32, 64, 64):
            ones = cell(x, 64, 1, 1)
            fives = cell(cell(x, 48, 1, 1), 64, 5, 5)
            threes = cell(cell(cell(x, 64, 1, 1), 96, 3, 3), 96, 3, 3)
            x = np.concatenate([ones, fives, threes, cell(mean_pool_same(x), pooled, 1, 1)], -1)
        threes = valid(x, 384, 3, 3, stride=2)
        doubles = valid(cell(cell(x, 64, 1, 1), 96, 3, 3), 96, 3, 3, stride=2)
        x = np.concatenate([threes, doubles, max_pool(x, 3, 2)], -1)
        for inner in (128, 160, 160, 192):
            ones = cell(x, 192, 1, 1)
            sevens = cell(cell(cell(x, inner, 1, 1), inner, 1, 7), 192, 7, 1)
            doubles = cell(cell(cell(x, inner, 1, 1), inner, 7, 1), inner, 1, 7)
            doubles = cell(cell(doubles, inner, 7, 1), 192, 1, 7)
            x = np.concatenate([ones, sevens, doubles, cell(mean_pool_same(x), 192, 1, 1)], -1)
        threes = valid(cell(x, 192, 1, 1), 320, 3, 3, stride=2)
        sevens = cell(cell(cell(x, 192, 1, 1), 192, 1, 7), 192, 7, 1)
        x = np.concatenate([threes, valid(sevens, 192, 3, 3, stride=2), max_pool(x, 3, 2)], -1)
        for _ in range(2):
            ones, inner3 = cell(x, 320, 1, 1), cell(x, 384, 1, 1)
            threes = np.concatenate([cell(inner3, 384, 1, 3), cell(inner3, 384, 3, 1)], -1)
            inner3 = cell(cell(x, 448, 1, 1), 384, 3, 3)
            doubles = np.concatenate([cell(inner3, 384, 1, 3), cell(inner3, 384, 3, 1)], -1)
            x = np.concatenate([ones, threes, doubles, cell(mean_pool_same(x), 192, 1, 1)], -1)
        return x

    def _cell(
        self, maps: Array, filters: int, height: int, width: int, *, stride: int = 1, padding: str = "same"
    ) -> Array:
        """Convolution without bias, batch-norm without gamma, ReLU."""
        number = len(self.layers) // 2
        kernel = _normal(self._rng, (height, width, maps.shape[-1], filters))
        beta, mean = (self._rng.normal(size=filters).astype(np.float32) * 0.1 for _ in range(2))
        variance = self._rng.uniform(0.5, 1.5, filters).astype(np.float32)
        self.layers[_numbered("conv2d", number)] = {"kernel": kernel}
        norm = {"beta": beta, "moving_mean": mean, "moving_variance": variance}
        self.layers[_numbered("batch_normalization", number)] = norm
        return relu((conv(maps, kernel, stride=stride, padding=padding) - mean) / np.sqrt(variance + 1e-3) + beta)


def in_file_order(layers: Layers, *, first: int = 0) -> Layers:
    """Inception v3's layers in the order of a file, numbered from ``first``; 0 has no number."""
    convs = [name for name in layers if name.startswith("conv2d")]
    rest = np.random.default_rng(0).permutation(np.arange(len(BY_DEPTH) + 1, len(convs) + 1)).tolist()
    ordered = {}
    for number in (*BY_DEPTH, *rest):
        for kind in ("conv2d", "batch_normalization"):
            ordered[_numbered(kind, first + number - 1)] = layers[_numbered(kind, number - 1)]
    return ordered


def write_first(path: Path, layers: Layers, *, root: str = "", keras1: bool = False, group: str = "") -> None:
    """Weights of Keras 1 or 2, below ``root`` as in ``model.save``; below ``group`` if they are a layer of a model."""
    with h5py.File(path, "w") as file:
        top = file.require_group(root) if root else file
        named = {**{"input_1": {}}, **layers, "block1_pool": {}}
        top.attrs["layer_names"] = [name.encode() for name in ([group] if group else named)]
        kinds, written = {"kernel": "W", "bias": "b"}, list[str]()
        for name, tensors in named.items():
            into = top.require_group(group or name)
            paths = [f"{name}_{kinds[kind]}_1:0" if keras1 else f"{name}/{kind}:0" for kind in tensors]
            for place, array in zip(paths, tensors.values(), strict=True):
                into[place] = array
            written = [*written, *paths] if group else paths
            into.attrs["weight_names"] = [place.encode() for place in written]


def write_third(path: Path, layers: Layers, *, names: bool = True) -> None:
    """Keras 3's ``.weights.h5``, or ``.keras``: groups have the names of classes, numbered by place in the file."""
    buffer = io.BytesIO()
    counts: dict[str, int] = {}
    with h5py.File(buffer, "w") as file:
        for name, tensors in layers.items():
            kind = "batch_normalization" if "beta" in tensors else "conv2d"
            number = counts.setdefault(kind, 0)
            counts[kind] += 1
            group = file.create_group(f"layers/{_numbered(kind, number)}/vars")
            if names:
                group.attrs["name"] = name
            for place, array in enumerate(tensors.values()):
                group[str(place)] = array
        file["optimizer/vars/0"] = np.zeros(3, np.int64)
    if path.suffix == ".keras":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", "{}")
            archive.writestr("model.weights.h5", buffer.getvalue())
    else:
        path.write_bytes(buffer.getvalue())


def squeezenet_logits(path: Path, bgr: Array) -> Array:
    """Logits (B, 1000) of SqueezeNet 1.1 from its Keras file, for pictures (B, H, W, 3) in BGR minus the mean."""
    with h5py.File(path) as file:

        def layer(name: str, maps: Array, **options: Any) -> Array:
            kernel, bias = (np.asarray(file[f"{name}/{name}_{kind}:0"]) for kind in "Wb")
            return relu(conv(maps, kernel, bias, **options))

        def fire(number: int, maps: Array) -> Array:
            squeezed = layer(f"fire{number}/squeeze1x1", maps)
            return np.concatenate([layer(f"fire{number}/expand{side}", squeezed) for side in ("1x1", "3x3")], -1)

        x = max_pool(layer("conv1", bgr, stride=2, padding="valid"), 3, 2)
        x = max_pool(fire(3, fire(2, x)), 3, 2)
        x = max_pool(fire(5, fire(4, x)), 3, 2)
        for number in range(6, 10):
            x = fire(number, x)
        maps = layer("conv10", x)
    logits: Array = maps.mean(axis=(1, 2))
    return logits


def _numbered(kind: str, number: int) -> str:
    return f"{kind}_{number}" if number else kind


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    scale = np.float32(np.sqrt(2 / np.prod(shape[:-1])))
    return rng.standard_normal(shape, dtype=np.float32) * scale
