"""The classes of a network: their names, and their number where a checkpoint has another than the network."""

import re
from collections.abc import Mapping

import torch
from torch import nn
from torchvision.models import get_model_weights
from torchvision.models._meta import _IMAGENET_CATEGORIES

from workers.contract.job import Weights
from workers.networks import timm_models, tracing


def class_names(model: str, weights: Weights) -> tuple[str, ...]:
    """The names of the classes of published weights; () if they are not known, as those of a file of one's own.

    A file with the SHA-256 of published weights has the names of those. The packaged weights were trained on ImageNet,
    whose classes have one order everywhere.
    """
    if weights.source == "none":
        return ()
    if weights.source == "package":
        return tuple(_IMAGENET_CATEGORIES)
    if weights.source == "timm":
        return timm_models.class_names(timm_models.description(model))
    try:
        published = list(get_model_weights(model))
    except ValueError:  # a network that is not torchvision's
        return ()
    if weights.source == "torchvision":
        entries = [entry for entry in published if entry.name == weights.name]
    else:
        entries = [entry for entry in published if _is_file_of(entry.url, weights)]
    return tuple(entries[0].meta.get("categories") or ()) if entries else ()


def has_classifier(weights: Weights) -> bool:
    """False for torchvision's weights of a network without its classifier, which are not finite there."""
    return weights.source != "torchvision" or not weights.name.endswith("_FEATURES")


def fit_classifier(model: nn.Module, parameters: Mapping[str, torch.Tensor]) -> int | None:
    """Give the network's last linear layer as many outputs as ``parameters`` have for it, if they have others.

    Returns their number, or None if nothing was changed.
    """
    linear = [str(node.target) for node in tracing.trace(model).nodes if tracing.is_module(model, node, (nn.Linear,))]
    if not linear:
        return None
    last, found = model.get_submodule(linear[-1]), parameters.get(f"{linear[-1]}.weight")
    assert isinstance(last, nn.Linear)  # noqa: S101  # as selected
    if found is None or found.ndim != 2 or found.shape[1] != last.in_features or len(found) == last.out_features:
        return None
    last.out_features = len(found)
    device = last.weight.device
    last.weight = nn.Parameter(torch.zeros(found.shape, device=device), requires_grad=False)
    last.bias = None if last.bias is None else nn.Parameter(torch.zeros(len(found), device=device), False)
    return len(found)


def _is_file_of(url: str, weights: Weights) -> bool:
    """True if the weights' SHA-256 begins with the digits in the name of a published file."""
    digits = published_digest(url)
    return weights.source == "file" and (weights.sha256 or "").startswith(digits)


def published_digest(url_or_name: str) -> str:
    """The first digits of the SHA-256, which torchvision and the package put into a checkpoint's file name."""
    return str(re.findall(r"-([0-9a-f]{8,})\.pth$", url_or_name)[0])
