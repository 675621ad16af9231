"""A network's convolutions in the order they run, what follows each, and what each costs.

A torch.fx trace finds them; its leaves are torch.nn's own modules and every subclass of a convolution (timm's
``Conv2dSame`` pads by control flow, which a trace cannot follow). Unlike torchvision's feature extraction it looks
inside ``torchvision.ops`` blocks, where EfficientNet and MobileNet keep all of theirs.
"""

from collections.abc import Callable

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from workers.contract.errors import UnknownLayer

_NORMS = (nn.modules.batchnorm._BatchNorm,)
_PASS_THROUGH = (nn.Identity, nn.Dropout, nn.Dropout2d)
_ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh,
)  # fmt: skip
_ACTIVATION_FUNCTIONS = {
    F.relu, F.relu_, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish, F.softplus, F.hardswish,
    F.hardsigmoid, F.hardtanh, F.sigmoid, F.tanh, torch.relu, torch.relu_, torch.sigmoid, torch.tanh,
}  # fmt: skip
_ACTIVATION_METHODS = {"relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_"}


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _ConvNd) or super().is_leaf_module(m, module_qualified_name)


def norm_statistics(model: nn.Module, chain: list[fx.Node]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(gain, variance), (C,) each, of the batch-norm among the nodes of a chain; None where there is none."""
    for node in chain:
        gain: torch.Tensor | None = None
        variance: torch.Tensor | None = None
        if node.op == "call_module" and isinstance(norm := model.get_submodule(str(node.target)), _NORMS):
            gain, variance = norm.weight, norm.running_var
        elif node.op == "call_function" and node.target is F.batch_norm:
            weight = node.kwargs.get("weight")
            gain, variance = None if weight is None else attribute(model, weight), attribute(model, node.args[2])
        if variance is not None:
            return (torch.ones_like(variance) if gain is None else gain), variance
    return None


def attribute(model: nn.Module, node: object) -> torch.Tensor:
    """The tensor that a get_attr node stands for."""
    path, _, name = str(node.target).rpartition(".")  # type: ignore[attr-defined]  # a node, in any trace of ours
    tensor: torch.Tensor = getattr(model.get_submodule(path), name)
    return tensor


def trace(model: nn.Module) -> fx.Graph:
    """The network's operations in execution order; the model must be in evaluation mode."""
    return _Tracer().trace(model)


def convolutions(model: nn.Module, graph: fx.Graph) -> dict[str, fx.Node]:
    """Dotted module name -> the node that runs it first, for every convolution, in execution order."""
    found: dict[str, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "call_module" and isinstance(model.get_submodule(node.target), nn.Conv2d):
            found.setdefault(node.target, node)
    return found


def find(model: nn.Module, graph: fx.Graph, layer: str) -> fx.Node:
    """The node of one convolution; raises UnknownLayer."""
    node = convolutions(model, graph).get(layer)
    if node is None:
        raise UnknownLayer(f"no convolution {layer!r} in this network")
    return node


def tapped(model: nn.Module, conv: fx.Node, tap: str) -> list[fx.Node]:
    """The nodes from the convolution to the tensor that ``tap`` names, in order.

    ``conv`` ends at the convolution itself, ``activation`` after the batch-norm and the activation that follow it,
    as far as there are any and nothing else reads the tensors between.
    """
    chain = [conv]
    if tap == "conv":
        return chain
    normed = False
    while True:
        following = _readers(chain[-1])
        if len(following) != 1:
            return chain
        node = following[0]
        if is_norm(model, node) and not normed:
            normed = True
            chain.append(node)
        elif is_pass_through(model, node):
            chain.append(node)
        elif is_activation(model, node):
            return [*chain, node]
        else:
            return chain


def is_needed(model: nn.Module, graph: fx.Graph) -> Callable[[str], bool]:
    """Whether a parameter of that name, in ``model.state_dict()``, has a part in any layer's tiles.

    A classifier behind the last layer has none, nor has an auxiliary head, which does not run in evaluation mode.
    """
    last = tapped(model, list(convolutions(model, graph).values())[-1], "activation")[-1]
    modules: set[str] = set()
    attributes: set[str] = set()
    for node in graph.nodes:
        if node.op == "call_module":
            modules.add(f"{node.target}.")
        elif node.op == "get_attr":
            attributes.add(node.target)
        if node is last:
            break
    prefixes = tuple(modules)
    return lambda name: name in attributes or name.startswith(prefixes)


def _readers(node: fx.Node) -> list[fx.Node]:
    """Nodes that read the tensor's values; timm's BatchNormAct2d also asks for its rank, which is no reading."""
    return [user for user in node.users if not (user.op == "call_function" and user.target is getattr)]


def _is_module(model: nn.Module, node: fx.Node, kinds: tuple[type, ...]) -> bool:
    return node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), kinds)


def is_norm(model: nn.Module, node: fx.Node) -> bool:
    """Whether the node is a batch-norm."""
    return _is_module(model, node, _NORMS) or (node.op == "call_function" and node.target is F.batch_norm)


def is_pass_through(model: nn.Module, node: fx.Node) -> bool:
    """Whether the node changes nothing in evaluation mode."""
    return _is_module(model, node, _PASS_THROUGH)


def is_activation(model: nn.Module, node: fx.Node) -> bool:
    """Whether the node applies an activation function."""
    return (
        _is_module(model, node, _ACTIVATIONS)
        or (node.op == "call_function" and node.target in _ACTIVATION_FUNCTIONS)
        or (node.op == "call_method" and node.target in _ACTIVATION_METHODS)
    )
