"""The networks of the package timm, as ``timm:NAME``: construction, preprocessing and trained weights.

NAME is any name that ``timm.create_model`` builds, with or without the tag of its weights (``resnet50.a1_in1k``), or
``hf-hub:ORGANISATION/NAME`` for a network on Hugging Face's hub, whose description is read from there.
"""

import difflib
import fnmatch
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torchvision.models._meta import _IMAGENET_CATEGORIES

from workers.contract.errors import UnknownModel, WeightsMissing
from workers.contract.job import is_unit_name
from workers.contract.recipe import Preprocess

#: How names of timm's networks begin on the command line.
PREFIX = "timm:"

_HUB = "hf-hub:"

#: Name of the weights of a network of which timm has one set without a tag.
_UNTAGGED = "default"


def names(pattern: str) -> list[str]:
    """The names that match a glob such as ``timm:*resnet*``, with their prefix, sorted."""
    import timm

    known = {*timm.list_models(), *timm.list_pretrained()}
    return sorted(PREFIX + name for name in fnmatch.filter(known, pattern.removeprefix(PREFIX)))


def create(address: str, *, trained: bool = False) -> nn.Module:
    """The network of that name with random or trained parameters.

    Raises UnknownModel, and WeightsMissing if what is needed is neither in Hugging Face's cache nor can be downloaded.
    """
    import timm  # takes a second

    name = _checked(address)
    try:
        with _quiet():
            model: nn.Module = timm.create_model(name, pretrained=trained)
    except OSError as error:  # the hub's errors, whose texts do not name the network
        what = f"the weights of {address}" if trained else f"the description of {address}"
        raise WeightsMissing(
            f"{what} {'are' if trained else 'is'} not in Hugging Face's cache and cannot be downloaded "
            f"({type(error).__name__}); copy the folder of the cache (~/.cache/huggingface/hub) from a machine that can"
            + (", or use --weights PATH or --weights none" if trained else "")
        ) from error
    return model


def description(address: str) -> dict[str, Any]:
    """What timm knows of the network and its weights. Raises UnknownModel, and WeightsMissing for those of the hub."""
    import timm

    name = _checked(address)
    if name.startswith(_HUB):
        with _meta():
            return dict(create(address).pretrained_cfg)  # type: ignore[arg-type]  # timm's own
    found = timm.get_pretrained_cfg(name)
    return {} if found is None else found.to_dict()  # type: ignore[no-untyped-call]  # timm's


def preprocess(known: dict[str, Any]) -> Preprocess:
    """The preprocessing of a network with that description, as ``timm.data`` resolves it."""
    from timm.data.config import resolve_data_config

    resolved: dict[str, Any] = resolve_data_config(pretrained_cfg=known)  # type: ignore[no-untyped-call]  # timm's
    mean, std = (tuple(map(float, resolved[name])) for name in ("mean", "std"))
    return Preprocess(name="model", mean=mean, std=std)


def fixed_size_px(known: dict[str, Any]) -> tuple[int, int] | None:
    """Height and width of the only pictures that the network takes, such as a vision transformer's; None for others."""
    size = known.get("input_size")
    return (int(size[1]), int(size[2])) if known.get("fixed_input_size") and size else None


def input_px(known: dict[str, Any]) -> int | None:
    """Side in pixels of the square pictures for which the network was trained; None if that is not known."""
    size = known.get("input_size")
    return int(size[1]) if size else None


def class_names(known: dict[str, Any]) -> tuple[str, ...]:
    """Names of the classes of the trained weights; () if they are not known.

    A description on the hub may hold them. Otherwise timm tells which set of ImageNet's classes has their number.
    """
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    labels = known.get("label_names")
    subset = None if labels else infer_imagenet_subset(known)
    if subset == "imagenet-1k":  # by the names that torchvision has for the same classes in the same order
        return tuple(_IMAGENET_CATEGORIES)
    if subset is not None:
        return tuple(ImageNetInfo(subset).label_descriptions())
    described = known.get("label_descriptions") or {}
    names = [str(described.get(label, label)) for label in labels] if isinstance(labels, list) else []
    return tuple(names) if all(is_unit_name(name) for name in names) else ()


def weights(known: dict[str, Any]) -> tuple[str, ...]:
    """Name of the trained weights: the tag; () if timm has none for the network."""
    if not any(known.get(source) for source in ("hf_hub_id", "url", "file")):
        return ()
    return (str(known.get("tag") or _UNTAGGED),)


def _checked(address: str) -> str:
    """The name that timm is asked for. Raises UnknownModel."""
    import timm

    name = address.removeprefix(PREFIX)
    if name.startswith(_HUB):
        if name.count("/") == 1 and not name.endswith("/"):
            return name
        raise UnknownModel(f"no model {address[:120]!r}; write timm:hf-hub:ORGANISATION/NAME")
    known = {*timm.list_models(), *timm.list_pretrained()}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"nearest: {', '.join(PREFIX + one for one in near)}" if near else "'filterfarm layers timm:*' lists all"
        raise UnknownModel(f"no model {address[:120]!r} in timm; {hint}")
    return name


@contextmanager
def _quiet() -> Iterator[None]:
    """Context without the lines that the hub's client logs for each of its attempts."""
    client = logging.getLogger("huggingface_hub")
    before = client.level
    client.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        client.setLevel(before)


@contextmanager
def _meta() -> Iterator[None]:
    import torch

    with torch.device("meta"):
        yield
