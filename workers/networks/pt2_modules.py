"""torch.nn's modules for the operators of an exported graph, under the paths of the modules that called them."""

from typing import Any

import torch
from torch import nn

_PLAIN: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "relu6": nn.ReLU6, "silu": nn.SiLU, "hardswish": nn.Hardswish, "hardsigmoid": nn.Hardsigmoid,
    "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "mish": nn.Mish,
    # Evaluation mode.
    "dropout": nn.Identity, "dropout2d": nn.Identity, "feature_dropout": nn.Identity,
}  # fmt: skip

#: Parameter of an operator -> of its module.
Stored = dict[str, tuple[str, torch.Tensor]]


class Modules:
    """The modules of a network that is being built."""

    def __init__(self) -> None:
        self.root = nn.Module()
        #: path -> what tells the module there from others
        self._known: dict[str, tuple[str, ...]] = {}

    def make(self, name: str, arguments: dict[str, Any], path: str, stored: Stored) -> str | None:
        """Path of a module that computes the operator from its first argument; None if no module does."""
        module = _module(name, arguments, stored)
        if module is None:
            return None
        key = (repr(module), *(entry[0] for entry in stored.values()))
        weight = stored.get("weight", ("", None))[0]
        if weight.endswith(".weight"):
            path = weight.removesuffix(".weight")
        elif not path or not (self._is_free(path) or self._known.get(path) == key):
            path = ".".join(filter(None, (path, name)))
        wanted, number = path, 0
        while not (self._is_free(path) or self._known.get(path) == key):
            number += 1
            path = f"{wanted}_{number}"
        if path not in self._known:
            parent, _, own = path.rpartition(".")
            self._container(parent).add_module(own, module)
            self._known[path] = key
        return path

    def _is_free(self, path: str) -> bool:
        module: Any = self.root
        for part in path.split("."):
            module = getattr(module, part, None)
            if module is None:
                return True
        return False

    def _container(self, path: str) -> nn.Module:
        module = self.root
        for part in filter(None, path.split(".")):
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        return module


def _module(name: str, given: dict[str, Any], stored: Stored) -> nn.Module | None:
    tensors = {argument: tensor for argument, (_, tensor) in stored.items()}
    made: nn.Module | None = None
    if next(iter(given)) in tensors:
        return None
    if name in _PLAIN:
        made = _PLAIN[name]()
    elif name == "hardtanh":
        low, high = float(given.get("min_val", -1)), float(given.get("max_val", 1))
        made = nn.ReLU6() if (low, high) == (0, 6) else nn.Hardtanh(low, high)
    elif name == "gelu":
        made = nn.GELU(given.get("approximate", "none"))
    elif name == "leaky_relu":
        made = nn.LeakyReLU(float(given.get("negative_slope", 0.01)))
    elif name == "elu" and given.get("scale", 1) == given.get("input_scale", 1) == 1:
        made = nn.ELU(float(given.get("alpha", 1)))
    elif name == "conv2d" and _all_stored(given, tensors, "weight", "bias"):
        made = _conv2d(given, tensors)
    elif name == "linear" and _all_stored(given, tensors, "weight", "bias"):
        weight = tensors["weight"]
        made = _filled(nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in tensors, device="meta"), tensors)
    elif name == "batch_norm" and _all_stored(given, tensors, "weight", "bias", "running_mean", "running_var"):
        made = _batch_norm(given, tensors)
    elif name == "max_pool2d":
        kernel = given["kernel_size"]
        made = nn.MaxPool2d(
            _pair(kernel), _pair(given.get("stride") or kernel), _pair(given.get("padding", 0)),
            _pair(given.get("dilation", 1)), ceil_mode=given.get("ceil_mode", False),
        )  # fmt: skip
    elif name == "avg_pool2d":
        kernel = given["kernel_size"]
        made = nn.AvgPool2d(
            _pair(kernel), _pair(given.get("stride") or kernel), _pair(given.get("padding", 0)),
            given.get("ceil_mode", False), given.get("count_include_pad", True), given.get("divisor_override"),
        )  # fmt: skip
    elif name == "adaptive_avg_pool2d" and all(type(size) is int for size in given["output_size"]):
        made = nn.AdaptiveAvgPool2d(_pair(given["output_size"]))
    return None if made is None else made.eval().requires_grad_(False)


def _conv2d(given: dict[str, Any], tensors: dict[str, torch.Tensor]) -> nn.Module:
    weight, groups = tensors["weight"], given.get("groups", 1)
    padding = given.get("padding", 0)
    module = nn.Conv2d(
        weight.shape[1] * groups, weight.shape[0], (weight.shape[2], weight.shape[3]),
        stride=_pair(given.get("stride", 1)), padding=padding if isinstance(padding, str) else _pair(padding),
        dilation=_pair(given.get("dilation", 1)), groups=groups, bias="bias" in tensors, device="meta",
    )  # fmt: skip
    return _filled(module, tensors)


def _batch_norm(given: dict[str, Any], tensors: dict[str, torch.Tensor]) -> nn.Module | None:
    if "running_mean" not in tensors or ("weight" in tensors) != ("bias" in tensors):
        return None
    module = nn.BatchNorm2d(len(tensors["running_mean"]), float(given["eps"]), affine="weight" in tensors)
    return _filled(module, tensors)


def _filled(module: nn.Module, tensors: dict[str, torch.Tensor]) -> nn.Module:
    for name, tensor in tensors.items():
        if name in module._parameters:
            module._parameters[name] = nn.Parameter(tensor, requires_grad=False)
        elif name in module._buffers:
            module._buffers[name] = tensor
    return module


def _all_stored(given: dict[str, Any], tensors: dict[str, torch.Tensor], *names: str) -> bool:
    """True if these arguments are parameters or constants, or absent."""
    return all(name in tensors or given.get(name) is None for name in names)


def _pair(value: Any) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    first, last = pair if len(pair) == 2 else (pair[0], pair[0])
    return int(first), int(last)
