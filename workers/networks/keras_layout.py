"""Maps a Keras file to torchvision's network of the same architecture: names, layouts, colours and pooling.

Kernels (H, W, in, out) become (out, in, H, W). The first dense layer of VGG reads a map that Keras flattens as
(H, W, C) and PyTorch as (C, H, W). Networks that Keras trained on BGR pictures get the input channels of their first
convolution reversed, and then read RGB. Inception v3 has unnamed layers, which Keras numbers as they are created; a
file lists them by their distance from the output, so that only the numbers tell which is which.
"""

import re
from collections.abc import Mapping
from itertools import product

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F
from torchvision.models import inception

from workers.contract.errors import WeightsDoNotFit
from workers.networks.checkpoint import Checkpoint
from workers.networks.keras_files import KerasLayer

#: network -> torch module of its dense layers -> Keras's name
_VGG_DENSE = {"classifier.0": "fc1", "classifier.3": "fc2", "classifier.6": "predictions"}
_DENSE = {"vgg16": _VGG_DENSE, "vgg19": _VGG_DENSE, "inception_v3": {"fc": "predictions"}, "squeezenet1_1": {}}

#: Networks of Keras whose training read BGR pictures minus ImageNet's mean.
_BGR = {"vgg16", "vgg19", "squeezenet1_1"}

#: Channels, rows and columns of the map that the first dense layer of VGG reads.
_VGG_MAP = (512, 7, 7)

#: SqueezeNet's modules in torchvision: features.3 is fire2.
_FIRES = {3: 2, 4: 3, 6: 4, 7: 5, 9: 6, 10: 7, 11: 8, 12: 9}

#: concatenation at the end of each block of Inception v3 -> its name in Keras
MIXED = {
    f"Mixed_{block}.cat{'_2' if block in ('7b', '7c') else ''}": f"mixed{number}"
    for number, block in enumerate(("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"))
}

#: A layer to which Keras gave its class's name and a number. The first has no number, or 1 before Keras 2.3.
_NUMBERED = re.compile(r"(conv2d|convolution2d|batch_normalization|batchnormalization)(?:_(\d+))?")


def is_known(model_name: str) -> bool:
    """True if Keras's files of that network load."""
    return model_name in _DENSE


def reads_bgr(model_name: str) -> bool:
    """True if Keras trained the network on BGR pictures minus ImageNet's mean, False if on RGB in -1..1."""
    return model_name in _BGR


def layer_names(model_name: str, model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Convolution -> its names in Keras, in the order of creation. {} for networks that Keras's files do not have.

    ``block5_conv1`` for the VGG family, ``conv2d_17`` and ``activation_17`` for Inception v3, ``fire2.squeeze1x1`` for
    SqueezeNet.
    """
    if model_name.startswith("vgg"):
        return _vgg_names(model.get_submodule("features"))
    if model_name == "inception_v3":
        convs = [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Conv2d) and not name.startswith("AuxLogits.")
        ]
        return {name: (f"conv2d_{number}", f"activation_{number}") for number, name in enumerate(convs, 1)}
    if model_name == "squeezenet1_1":
        parts = product(_FIRES.items(), ("squeeze1x1", "expand1x1", "expand3x3"))
        # torchvision calls the first "squeeze"
        fires = {
            f"features.{at}.{part.replace('squeeze1x1', 'squeeze')}": (f"fire{n}.{part}",) for (at, n), part in parts
        }
        return {"features.0": ("conv1",), **fires, "classifier.1": ("conv10",)}
    return {}


def _vgg_names(features: nn.Module) -> dict[str, tuple[str, ...]]:
    result: dict[str, tuple[str, ...]] = {}
    block = conv = 1
    for child, module in features.named_children():
        if isinstance(module, nn.Conv2d):
            result[f"features.{child}"] = (f"block{block}_conv{conv}",)
            conv += 1
        elif isinstance(module, nn.MaxPool2d):
            block, conv = block + 1, 1
    return result


def checkpoint(layers: list[KerasLayer], model_name: str, model: nn.Module, *, file: str) -> Checkpoint:
    """The parameters of a Keras file by torchvision's names and in its layouts; raises WeightsDoNotFit."""
    if not is_known(model_name):
        raise WeightsDoNotFit(
            f"weights {file!r} are Keras's, which load into {', '.join(sorted(_DENSE))} and not into {model_name}"
        )
    convs = _convolutions(layers, model_name, model, file)
    state: dict[str, torch.Tensor] = {}
    for module, layer in convs.items():
        kernel = layer.tensors["kernel"]
        expected = tuple(model.get_submodule(module).weight.shape)  # type: ignore[arg-type]
        if kernel.shape == expected and kernel.transpose(3, 2, 0, 1).shape != expected:
            raise WeightsDoNotFit(
                f"weights {file!r} have kernels in Theano's order (out, in, H, W); use the file with 'tf_kernels' in "
                "its name"
            )
        state[f"{module}.weight"] = _torch(kernel.transpose(3, 2, 0, 1))
        if "bias" in layer.tensors:
            state[f"{module}.bias"] = _torch(layer.tensors["bias"])
    notes: tuple[str, ...] = ()
    if reads_bgr(model_name) and convs:
        first = f"{next(iter(layer_names(model_name, model)))}.weight"
        if first in state:
            state[first] = state[first].flip(1)
            notes = ("reversed the input channels of the first convolution from BGR to RGB",)
    if model_name == "inception_v3":
        state |= _batch_norms(layers, list(convs), file)
    state |= _dense(layers, _DENSE[model_name], is_vgg=model_name.startswith("vgg"))
    return Checkpoint(parameters=state, notes=notes)


def pool_as_keras(model: nn.Module) -> None:
    """Set the network's pools to Keras's: no partial windows, and averages that do not count the padding."""
    for module in model.modules():
        if isinstance(module, nn.MaxPool2d):
            module.ceil_mode = False
    for name, block in list(model.named_children()):
        if isinstance(block, (inception.InceptionA, inception.InceptionC, inception.InceptionE)):
            graph = _BlockTracer().trace(block)
            for node in graph.nodes:
                if node.target is F.avg_pool2d:
                    node.update_kwarg("count_include_pad", False)
            setattr(model, name, fx.GraphModule(block, graph, type(block).__name__))


class _BlockTracer(fx.Tracer):
    """Traces a block of Inception v3 and leaves its convolutions whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _convolutions(layers: list[KerasLayer], model_name: str, model: nn.Module, file: str) -> dict[str, KerasLayer]:
    """Torch module -> the convolution of the file, by name, or by number if the file has only numbers."""
    wanted = {names[0]: module for module, names in layer_names(model_name, model).items()}
    found = [layer for layer in layers if "kernel" in layer.tensors and layer.tensors["kernel"].ndim == 4]
    if found and all(_NUMBERED.fullmatch(layer.name) for layer in found):
        by_name = dict(zip(wanted, _in_order(found, model_name, file), strict=False))
        unknown = [layer.name for layer in found][len(wanted) :]
    else:
        by_name = {_plain(layer.name, wanted): layer for layer in found}
        unknown = [name for name in by_name if name not in wanted]
    missing = [name for name in wanted if name not in by_name and name != "conv10"]
    if unknown or missing:
        first = f"{unknown[0]!r} is unknown" if unknown else f"{missing[0]!r} is missing"
        raise WeightsDoNotFit(
            f"weights {file!r} do not fit {model_name}: {first} ({len(found)} convolutions in the file, {len(wanted)} "
            "in the network); choose the network they were trained with"
        )
    return {wanted[name]: layer for name, layer in by_name.items()}


def _plain(name: str, wanted: Mapping[str, str]) -> str:
    """A valid name: ``fire2/squeeze1x1`` with a dot for the slash, ``block1_conv1_1`` without TensorFlow's number."""
    name = name.replace("/", ".")
    stem, _, number = name.rpartition("_")
    return stem if name not in wanted and stem in wanted and number.isdigit() else name


def _in_order(layers: list[KerasLayer], model_name: str, file: str) -> list[KerasLayer]:
    """The layers in the order in which Keras created them, by the numbers in their names."""
    if model_name == "inception_v3" and not all(layer.named for layer in layers):
        raise WeightsDoNotFit(
            f"weights {file!r} number the layers by their place and do not contain their names, which decide between "
            "layers of one shape; save them with a later Keras 3, or with model.save('x.h5')"
        )
    return sorted(layers, key=lambda layer: int((_NUMBERED.fullmatch(layer.name) or [0, 0, 0])[2] or 0))


def _batch_norms(layers: list[KerasLayer], convs: list[str], file: str) -> dict[str, torch.Tensor]:
    """Inception v3's batch-norms: one after each convolution, created with it. Keras's have no gamma."""
    found = _in_order([layer for layer in layers if "moving_mean" in layer.tensors], "inception_v3", file)
    if len(found) != len(convs) or not all(_NUMBERED.fullmatch(layer.name) for layer in found):
        raise WeightsDoNotFit(
            f"weights {file!r} do not fit inception_v3: {len(found)} numbered batch_normalization layers instead of "
            f"{len(convs)}; choose the network they were trained with"
        )
    state = {}
    for conv, layer in zip(convs, found, strict=True):
        norm, tensors = conv.removesuffix("conv") + "bn", layer.tensors
        ones = np.ones_like(tensors["moving_variance"])
        state[f"{norm}.weight"] = _torch(tensors.get("gamma", ones))
        state[f"{norm}.bias"] = _torch(tensors.get("beta", 0 * ones))
        state[f"{norm}.running_mean"] = _torch(tensors["moving_mean"])
        state[f"{norm}.running_var"] = _torch(tensors["moving_variance"])
    return state


def _dense(layers: list[KerasLayer], names: Mapping[str, str], *, is_vgg: bool) -> dict[str, torch.Tensor]:
    """Dense layers by their torch names; those that the network does not have keep Keras's."""
    modules = {keras: module for module, keras in names.items()}
    state = {}
    for layer in layers:
        kernel = layer.tensors.get("kernel")
        if kernel is None or kernel.ndim != 2:
            continue
        module = modules.get(layer.name, layer.name)
        channels, height, width = _VGG_MAP
        if is_vgg and module == "classifier.0" and len(kernel) == channels * height * width:
            kernel = kernel.reshape(height, width, channels, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
        state[f"{module}.weight"] = _torch(kernel.T)
        if "bias" in layer.tensors:
            state[f"{module}.bias"] = _torch(layer.tensors["bias"])
    return state


def _torch(array: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]") -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
