"""Reads a checkpoint file: its format, the dictionary of parameters in it, and the prefix of their names.

Files are read with ``torch.load(weights_only=True)`` or safetensors, never with plain pickle.
"""

import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from workers.contract.errors import WeightsDoNotFit, WeightsUnreadable, one_line

#: Keys under which training scripts keep the parameters beside optimiser state and epoch, the preferred first. Averaged
#: parameters are chosen only where there are no others.
_WRAPPERS = (
    "state_dict", "model_state_dict", "model_state", "model", "net",
    "ema_state_dict", "state_dict_ema", "model_ema", "ema",
)  # fmt: skip

#: How deep below the file's top the dictionary of parameters may lie. An optimiser's state lies deeper.
_MOST_LEVELS = 2

#: Types of weights in which models are quantised.
_SMALL = {torch.int8, torch.uint8}

#: Published DenseNet files have ``norm.1`` where torchvision's modules are called ``norm1``.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")

#: Published files of Inception v1 name each convolution by the TensorFlow operation before its activation.
_OF_LUCID = re.compile(r"_pre_relu_conv(?=\.)|_pre_activation_matmul(?=\.)")


#: Characters that a file's name may contain and the name of a job's weights may not.
_NOT_IN_NAMES = re.compile(r"[/#\x00-\x1f\x7f]")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The parameters of a file by the names that the network gives them."""

    parameters: dict[str, torch.Tensor]
    #: module -> what its class stored beside its parameters, such as the version of their layout
    metadata: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: sentences about what was chosen, removed or renamed
    notes: tuple[str, ...] = ()


def stored_name(path: Path) -> str:
    """A file's name as that of a job's weights."""
    return _NOT_IN_NAMES.sub("_", path.name)


def read(path: Path) -> Any:
    """What a file contains, as tensors, numbers, strings and containers. Raises WeightsUnreadable."""
    if _is_script(path):
        raise WeightsUnreadable(
            f"{path.name!r} is a TorchScript program; save its parameters: "
            "torch.save(torch.jit.load(PATH).state_dict(), 'weights.pth')"
        )
    try:
        with path.open("rb") as file:
            start = file.read(9)
        if start[8:9] == b"{":  # a length of 8 bytes, then JSON
            return load_file(path)
        with warnings.catch_warnings():
            # Warnings about pickle protocols. Errors are reported below.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError) as error:
        raise WeightsUnreadable(f"cannot read weights {path.name!r}: {one_line(error, 160)}") from error
    except Exception as error:  # torch.load raises nearly any error on a file that is no checkpoint
        if _is_module(path):
            raise WeightsUnreadable(
                f"{path.name!r} is no checkpoint that loads safely: it is a whole pickled module, which may run any "
                "code; where you trust it, save its parameters: torch.save(module.state_dict(), 'weights.pth')"
            ) from error
        raise WeightsUnreadable(
            f"{path.name!r} is no checkpoint that loads safely, as tensors only ({type(error).__name__}); "
            "save the model's state_dict() with torch.save or as .safetensors"
        ) from error


def parameters_of(loaded: Any, wanted: Iterable[str], *, file: str, choice: str = "") -> Checkpoint:
    """The parameters in what ``read`` returned, without the prefix under which most names in ``wanted`` are found.

    ``file`` is the file's name, for errors. ``choice`` is a key of a dictionary in it, such as ``ema``, or a prefix of
    names, such as ``teacher``. Raises WeightsUnreadable if there are no parameters, and WeightsDoNotFit if there are
    several candidates and none is chosen.
    """
    if (quantised := _quantised(loaded)) is not None:
        raise WeightsUnreadable(
            f"{file!r} is quantised ({quantised}); filterfarm renders in floating point: use the weights from before"
        )
    found = _dictionaries(loaded)
    notes = []
    if not found:
        raise WeightsUnreadable(f"{file!r} contains no named tensors; save the model's state_dict()")
    key, prefix = _chosen(found, choice, file)
    if key:
        others = [name for name in _WRAPPERS if name in found and name != key and not choice]
        also = f"; {file}#{others[0]} is there too" if others else ""
        notes.append(f"took {key!r}{also}")
    state = found[key]
    names = {_OF_LUCID.sub("", _OLD_DENSENET.sub(r"\1\2", str(name))): str(name) for name in state}
    if prefix is None:
        prefix = _prefix(names, list(wanted), file)
    if prefix:
        notes.append(f"removed the prefix {prefix!r} of the names")
    parameters = {new.removeprefix(prefix): state[old] for new, old in names.items() if new.startswith(prefix)}
    metadata = {
        module.removeprefix(prefix): value
        for module, value in getattr(state, "_metadata", {}).items()
        if f"{module}.".startswith(prefix)
    }
    # The metadata of the network as a whole stands under the prefix without its dot.
    if prefix.rstrip(".") in metadata:
        metadata[""] = metadata.pop(prefix.rstrip("."))
    return Checkpoint(parameters=parameters, metadata=metadata, notes=tuple(notes))


def _is_script(path: Path) -> bool:
    """True if the file is a TorchScript program: a zip archive with code."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name or name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _is_module(path: Path) -> bool:
    """True if the file, which did not load, is a module as ``torch.save(module)`` writes it. Unpickles nothing."""
    try:
        classes = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # what is no zip archive of torch.save
        return False
    return any(name.startswith("torch.nn.modules.") for name in classes)


def _quantised(loaded: Any, level: int = 0) -> str | None:
    """The first quantised tensor in a file, and its type."""
    if not isinstance(loaded, Mapping) or level > _MOST_LEVELS:
        return None
    for name, value in loaded.items():
        if str(name).endswith("_packed_params"):
            return f"{name} is packed"
        if isinstance(value, torch.Tensor) and (value.is_quantized or (value.dtype in _SMALL and value.ndim > 1)):
            return f"{name} is {str(value.dtype).removeprefix('torch.')}"
        if (found := _quantised(value, level + 1)) is not None:
            return found
    return None


def _dictionaries(loaded: Any, key: str = "", level: int = 0) -> dict[str, Mapping[str, torch.Tensor]]:
    """Dotted key -> dictionary, for all that hold tensors. Numbers, such as the best accuracy, are no parameters."""
    if not isinstance(loaded, Mapping):
        return {}
    found: dict[str, Mapping[str, torch.Tensor]] = {}
    tensors = {str(name): value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    if any(value.ndim for value in tensors.values()):
        kept = _State(tensors)
        kept._metadata = getattr(loaded, "_metadata", {})
        found[key] = kept
    if level < _MOST_LEVELS:
        for name, value in loaded.items():
            found |= _dictionaries(value, f"{key}.{name}" if key else str(name), level + 1)
    return found


class _State(dict[str, torch.Tensor]):
    """A state_dict: PyTorch keeps the versions of its modules in an attribute."""

    _metadata: dict[str, dict[str, Any]]


def _chosen(found: Mapping[str, Mapping[str, torch.Tensor]], choice: str, file: str) -> tuple[str, str | None]:
    """The key of a dictionary, and the prefix if ``choice`` names one."""
    if choice in found and choice:
        return choice, None
    keys = [key for key in _WRAPPERS if key in found] or list(found)
    if choice:
        prefix = f"{choice.rstrip('.')}."
        keys = [key for key in found if any(name.startswith(prefix) for name in found[key])]
        if not keys:
            raise WeightsDoNotFit(
                f"weights {file!r} have no {choice[:80]!r}; there is {', '.join(map(repr, list(found)[:8]))}"
            )
        return keys[0], prefix
    if len(keys) > 1 and keys[0] not in _WRAPPERS:
        raise WeightsDoNotFit(
            f"weights {file!r} contain several dictionaries of tensors: {', '.join(map(repr, keys[:8]))}; "
            f"choose one with --weights '{file}#{keys[0] or keys[1]}'"
        )
    return keys[0], None


def _prefix(names: Iterable[str], wanted: list[str], file: str) -> str:
    """The prefix under which the most of ``wanted`` stand in ``names``: "" or one that ends with a dot.

    Raises WeightsDoNotFit if two prefixes are equally good, as in a file of a student and its teacher.
    """
    there = set(names)
    first = next((name for name in wanted if any(other.endswith(name) for other in there)), None)
    if first is None:
        return ""
    candidates = {name.removesuffix(first) for name in there if name.endswith(first)}
    counts = {
        prefix: sum(prefix + name in there for name in wanted)
        for prefix in candidates
        if not prefix or prefix.endswith(".")
    }
    best = [prefix for prefix, count in sorted(counts.items()) if count == max(counts.values())]
    if len(best) > 1 and "" not in best:
        raise WeightsDoNotFit(
            f"weights {file!r} contain the network under {' and '.join(map(repr, best[:4]))}; "
            f"choose one with --weights '{file}#{best[0].rstrip('.')}'"
        )
    return best[0] if best else ""
