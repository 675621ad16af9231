"""Reads a Keras weights file with h5py alone: its layers by name, and the tensors of each by their role.

Four formats: weights of Keras 1 and 2 (``save_weights``), whole models of theirs (``model.save("x.h5")``), and Keras
3's ``.weights.h5`` and ``.keras``, a zip archive. Nothing is unpickled, and no code or configuration in the file is
used. How the layers map to a network's modules is in keras_layout.py.
"""

import io
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workers.contract.errors import WeightsUnreadable, one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Largest size in bytes of all tensors of a file together. VGG19 with its classifier has 575 MB.
MAX_BYTES = 8 << 30

_HDF5 = b"\x89HDF\r\n\x1a\n"
_ZIP = b"PK\x03\x04"
#: the member of a ``.keras`` archive that contains the weights
_MEMBER = "model.weights.h5"

#: Role of a tensor at the end of its name: ``conv2d_17/kernel:0`` of Keras 2, ``block1_conv1_W_1:0`` of Keras 1.
_ROLE = re.compile(
    r"(?:^|[_/])(kernel|W|bias|b|gamma|beta|moving_mean|running_mean|moving_variance|running_std)(?:_\d+)?(?::\d+)?$"
)
#: Keras 1's names. It stored the variance as "running_std".
_ROLES = {"W": "kernel", "b": "bias", "running_mean": "moving_mean", "running_std": "moving_variance"}
#: Roles by the numbers of dimensions: Keras 3 numbers a layer's tensors. Without gamma: scale=False
_BY_DIMENSIONS = {
    (4,): ("kernel",),
    (4, 1): ("kernel", "bias"),
    (2,): ("kernel",),
    (2, 1): ("kernel", "bias"),
    (1, 1, 1): ("beta", "moving_mean", "moving_variance"),
    (1, 1, 1, 1): ("gamma", "beta", "moving_mean", "moving_variance"),
}
#: Groups of a Keras 3 file that hold no layers.
_NOT_LAYERS = {"optimizer", "optimizer_weights", "metrics", "compile_metrics", "seed_generator"}


@dataclass(frozen=True, kw_only=True)
class KerasLayer:
    """One layer of a file that has tensors."""

    #: the layer's name, such as ``block5_conv1``; where the file has none, that of its class with a number
    name: str
    #: False if the number in the name is the layer's place in the file and not in the order of creation
    named: bool = True
    #: role -> float32 array: kernel (H, W, in, out) or (in, out), bias, gamma, beta, moving_mean, moving_variance
    tensors: "dict[str, NDArray[np.float32]]"


def is_keras(path: Path) -> bool:
    """True if the file is HDF5, or a zip archive with Keras's weights. Raises OSError."""
    with path.open("rb") as file:
        start = file.read(8)
    if not start.startswith(_ZIP):
        return start == _HDF5
    try:
        with zipfile.ZipFile(path) as archive:
            return _MEMBER in archive.namelist()
    except zipfile.BadZipFile:
        return False


def read(path: Path) -> list[KerasLayer]:
    """The layers of a Keras file that have tensors, in the file's order. Raises WeightsUnreadable."""
    import h5py  # only Keras files need it

    name = repr(path.name)
    try:
        with h5py.File(_hdf5(path), "r") as file:
            layers = list(_layers(file))
    except WeightsUnreadable as error:
        raise WeightsUnreadable(f"weights {name} {error}") from error
    except Exception as error:  # h5py raises OSError, KeyError, RuntimeError and ValueError on corrupt files
        raise WeightsUnreadable(
            f"cannot read Keras weights {name} ({one_line(error, 160)}); copy the file again, or save it again with "
            "model.save_weights('x.weights.h5')"
        ) from error
    if not layers:
        raise WeightsUnreadable(
            f"weights {name} are HDF5 without layers of Keras; save them with model.save_weights('x.weights.h5')"
        )
    return layers


def _hdf5(path: Path) -> Any:
    """What h5py opens: the path, or the unpacked member of a ``.keras`` archive."""
    with path.open("rb") as file:
        if not file.read(4).startswith(_ZIP):
            return path
    with zipfile.ZipFile(path) as archive, archive.open(_MEMBER) as member:
        data = member.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise WeightsUnreadable(f"have more than {MAX_BYTES >> 30} GiB")
    return io.BytesIO(data)


def _layers(file: Any) -> Iterator[KerasLayer]:
    reader = _Reader()
    root = reader.follow(file, "model_weights" if "model_weights" in file else "")
    if any(name.startswith("layer_names") for name in root.attrs):
        for name in _names(root, "layer_names"):
            yield from _first_format(reader, root, name)
    else:
        yield from _third_format(reader, file)


def _first_format(reader: "_Reader", root: Any, group_name: str) -> Iterator[KerasLayer]:
    """Layers of a group of Keras 1 or 2. A model that is used as a layer has the tensors of several."""
    group = reader.follow(root, group_name)
    found: dict[str, dict[str, NDArray[np.float32]]] = {}
    names = _names(group, "weight_names")
    roles = [_ROLE.search(name) for name in names]
    nested = len({match[1] for match in roles if match}) < len(names)
    for name, match in zip(names, roles, strict=True):
        layer = group_name
        if nested:
            stem = name[: match.start()] if match else name
            layer = stem.rpartition("/")[2] if match and name[match.start()] == "/" else stem
        role = _ROLES.get(match[1], match[1]) if match else name
        found.setdefault(layer, {})[role] = reader.tensor(group, name)
    for layer, tensors in found.items():
        yield KerasLayer(name=layer, tensors=tensors)


def _third_format(reader: "_Reader", group: Any, name: str = "") -> Iterator[KerasLayer]:
    """Layers of a Keras 3 file: every group ``vars`` with numbered tensors, at any depth."""
    for key in group:
        if key in _NOT_LAYERS:
            continue
        child = reader.follow(group, key)
        if key != "vars":
            if hasattr(child, "keys"):
                yield from _third_format(reader, child, key)
            continue
        tensors = [reader.tensor(child, number) for number in sorted(child, key=int)]
        own = _text(child.attrs["name"]) if "name" in child.attrs else ""
        if tensors:
            roles = _BY_DIMENSIONS.get(tuple(tensor.ndim for tensor in tensors), tuple(map(str, range(len(tensors)))))
            named = dict(zip(roles, tensors, strict=True))
            yield KerasLayer(name=own or name, named=bool(own), tensors=named)


class _Reader:
    """Reads tensors out of one file: no other file, and no more than MAX_BYTES."""

    def __init__(self) -> None:
        self._bytes = 0

    def follow(self, group: Any, path: str) -> Any:
        """The object at ``path``. Raises WeightsUnreadable at a link, which may lead to another file."""
        import h5py

        for part in filter(None, path.split("/")):
            found = group.get(part, getlink=True)
            if found is None:
                raise WeightsUnreadable(f"have no {part[:80]!r}, which they list; save them again")
            if not isinstance(found, h5py.HardLink):
                raise WeightsUnreadable(f"have a link {part[:80]!r} in place of an object; save them as one file")
            group = group[part]
        return group

    def tensor(self, group: Any, path: str) -> "NDArray[np.float32]":
        """The floating-point data at ``path``, as float32."""
        data = self.follow(group, path)
        if not hasattr(data, "dtype"):
            raise WeightsUnreadable(f"have no tensor {path[:80]!r}")
        if data.is_virtual or data.external:
            raise WeightsUnreadable(f"keep {path[:80]!r} in another file; save them as one file")
        if data.dtype.kind != "f":
            raise WeightsUnreadable(
                f"have {path[:80]!r} as {data.dtype}, as quantised models do; save the weights in floating point"
            )
        self._bytes += 4 * data.size
        if self._bytes > MAX_BYTES:
            raise WeightsUnreadable(f"have more than {MAX_BYTES >> 30} GiB")
        return np.asarray(data[()], dtype=np.float32)


def _names(group: Any, attribute: str) -> list[str]:
    """A list of names in the attributes of a group. Keras splits a long one: ``layer_names0``, ``layer_names1`` ..."""
    if attribute in group.attrs:
        return [_text(name) for name in group.attrs[attribute]]
    names: list[str] = []
    for number in range(len(group.attrs)):
        names += [_text(name) for name in group.attrs.get(f"{attribute}{number}", ())]
    return names


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
