"""Recognises another library's names for the same architecture, by the order, shapes and kinds of all tensors.

A state dict lists modules as the class defines them, and timm defines an architecture in the order of torchvision.
Names are given up only where nothing else differs: the same number of tensors, each of the same kind and shape, with
those of a module side by side. A file that sorts its tensors by name has lost the order and is not recognised.
"""

from collections.abc import Mapping

import torch

#: Kinds of tensors in the order in which PyTorch's modules list them.
_KINDS = ("weight", "bias", "running_mean", "running_var")
_COUNTER = "num_batches_tracked"

#: dense layers of timm's VGG -> torchvision's
_VGG_HEAD = {"pre_logits.fc1": "classifier.0", "pre_logits.fc2": "classifier.3", "head.fc": "classifier.6"}


def by_order(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    """``found`` by the names of ``expected``; None unless order, kinds and shapes agree for all of ``expected``.

    ``expected``: tensors in the network's order. ``found`` may have more at its end: a classifier.
    """
    theirs = [name for name in found if not name.endswith(_COUNTER)]
    ours = [name for name in expected if not name.endswith(_COUNTER)]
    if len(theirs) < len(ours) or not _as_defined(theirs):
        return None
    modules: dict[str, str] = {}
    for name, other in zip(ours, theirs, strict=False):
        (module, kind), (other_module, other_kind) = _split(name), _split(other)
        if kind != other_kind or found[other].shape != expected[name].shape:
            return None
        if modules.setdefault(other_module, module) != module:
            return None
    if len(set(modules.values())) != len(modules):
        return None
    if any(found[name].ndim == 4 for name in theirs[len(ours) :]):  # a network with more convolutions
        return None
    renamed = dict(zip(ours, theirs, strict=False))
    return {name: found[other] for name, other in renamed.items()}


def with_vgg_head(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Parameters of timm's VGG, whose dense layers are convolutions over the whole map, by torchvision's names."""
    return {
        f"{_VGG_HEAD[module]}.{kind}" if module in _VGG_HEAD else name: tensor.flatten(1)
        if module in _VGG_HEAD and kind == "weight"
        else tensor
        for name, tensor in found.items()
        for module, kind in [_split(name)]
    }


def _as_defined(names: list[str]) -> bool:
    """True if the tensors of each module stand together, in the order of PyTorch's modules."""
    seen: set[str] = set()
    last, place = "", -1
    for name in names:
        module, kind = _split(name)
        number = _KINDS.index(kind) if kind in _KINDS else len(_KINDS)
        if module != last and module in seen or module == last and number < place:
            return False
        seen.add(module)
        last, place = module, number
    return True


def _split(name: str) -> tuple[str, str]:
    module, _, kind = name.rpartition(".")
    return module, kind
