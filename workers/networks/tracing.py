"""Traces a network with torch.fx: its convolutions in execution order, and the norm and activation after each.

Leaves of the trace are torch.nn's own modules and every subclass of a convolution. Unlike torchvision's feature
extraction, the trace enters ``torchvision.ops`` blocks, which contain all convolutions of EfficientNet and MobileNet.
"""

from collections.abc import Callable

import torch
from torch import fx, nn
from torch.nn import functional as F

from workers.contract.errors import UnknownLayer
from workers.networks import untraced
from workers.networks.tracer import MODULE_PATH, Tracer

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


#: Key of the first node's metadata: number of channels of the network's pictures.
CHANNELS = "channels"

#: Key of the first node's metadata: whether the network's code asked for sizes of tensors.
ASKED = "asked"

#: Height and width of the pictures for which the network's code is traced, where a caller has no size.
USUAL_PX = (224, 224)


def norm_statistics(model: nn.Module, chain: list[fx.Node]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(gain, variance), (C,) each, of the batch-norm among the nodes of a chain; None without one."""
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
    """The parameter or buffer that a get_attr node reads."""
    path, _, name = str(node.target).rpartition(".")  # type: ignore[attr-defined]  # a node, in any trace of ours
    tensor: torch.Tensor = getattr(model.get_submodule(path), name)
    return tensor


def trace(model: nn.Module, size_px: tuple[int, int] = USUAL_PX) -> fx.Graph:
    """The network's operations in execution order; the model must be in evaluation mode.

    If the network's code branches on the size of tensors, the graph is that for pictures of ``size_px``, (height,
    width). An exported network has its graph. For a network that cannot be traced, see
    :mod:`workers.networks.untraced`.
    """
    if isinstance(model, fx.GraphModule) and MODULE_PATH in model.meta:
        return model.graph
    channels = next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), 3)
    tracer = Tracer(channels, size_px)
    try:
        graph = tracer.trace(model)
    except Exception:  # a network's own code meets placeholders instead of tensors, and may raise anything
        graph = untraced.graph_of(model)
    first = next(iter(convolutions(model, graph).items()), None)
    if first is not None and (untraced.is_untraced(graph) or first[1].all_input_nodes[0].op == "placeholder"):
        next(iter(graph.nodes)).meta[CHANNELS] = model.get_submodule(first[0]).in_channels
    next(iter(graph.nodes)).meta[ASKED] = tracer.asked
    return graph


def depends_on_size(graph: fx.Graph) -> bool:
    """True if pictures of another size may have another graph."""
    return untraced.is_untraced(graph) or bool(next(iter(graph.nodes)).meta.get(ASKED))


def input_channels(graph: fx.Graph) -> int:
    """Number of channels of the network's pictures: those that the first convolution reads; 3 if that is not known."""
    channels: int = next(iter(graph.nodes)).meta.get(CHANNELS, 3)
    return channels


def convolutions(model: nn.Module, graph: fx.Graph) -> dict[str, fx.Node]:
    """Dotted module name -> node of its first call, for every Conv2d of the picture, in execution order."""
    found: dict[str, fx.Node] = {}
    computed = _computed_from_picture(graph)
    for node in graph.nodes:
        if node in computed and node.op == "call_module" and isinstance(model.get_submodule(node.target), nn.Conv2d):
            found.setdefault(node.target, node)
    return found


def _computed_from_picture(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that depend on the picture, and not on its shape alone as a position's encoding does."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        is_shape = (node.op == "call_function" and node.target is getattr) or node.target in {"size", "dim"}
        if node.op == "placeholder" or (not is_shape and not found.isdisjoint(node.all_input_nodes)):
            found.add(node)
    return found


def find(model: nn.Module, graph: fx.Graph, layer: str) -> fx.Node:
    """The node of the convolution ``layer``, a dotted module name. Raises UnknownLayer."""
    node = convolutions(model, graph).get(layer)
    if node is None:
        raise UnknownLayer(f"no convolution {layer!r} in this network; 'filterfarm layers MODEL' lists them")
    return node


def tapped(model: nn.Module, conv: fx.Node, tap: str) -> list[fx.Node]:
    """The chain of nodes from the convolution to the tensor that ``tap`` names, in order.

    ``conv``: the convolution alone. ``activation``: up to the batch-norm and activation function that follow it. The
    chain ends earlier if the network has none, or if another operation reads an intermediate tensor.
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


def is_needed(model: nn.Module, graph: fx.Graph, *, classifier: bool = False) -> Callable[[str], bool]:
    """Predicate on names of ``model.state_dict()``: True if the tiles of any convolution depend on that parameter.

    They depend neither on a classifier after the last convolution, unless ``classifier`` says so, nor on auxiliary
    heads, which evaluation mode skips.
    """
    if untraced.is_untraced(graph) or not convolutions(model, graph):
        return lambda name: True
    last = None if classifier else tapped(model, list(convolutions(model, graph).values())[-1], "activation")[-1]
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
    """Nodes that read the tensor's values; timm's BatchNormAct2d also reads its rank, which does not count."""
    return [user for user in node.users if not (user.op == "call_function" and user.target is getattr)]


def is_module(model: nn.Module, node: fx.Node, kinds: tuple[type, ...]) -> bool:
    """True if the node calls a module of one of these classes."""
    return node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), kinds)


def is_norm(model: nn.Module, node: fx.Node) -> bool:
    """True if the node is a batch-norm."""
    return is_module(model, node, _NORMS) or (node.op == "call_function" and node.target is F.batch_norm)


def is_pass_through(model: nn.Module, node: fx.Node) -> bool:
    """True if the node is an identity in evaluation mode."""
    return is_module(model, node, _PASS_THROUGH)


def is_activation(model: nn.Module, node: fx.Node) -> bool:
    """True if the node is an activation function."""
    return (
        is_module(model, node, _ACTIVATIONS)
        or (node.op == "call_function" and node.target in _ACTIVATION_FUNCTIONS)
        or (node.op == "call_method" and node.target in _ACTIVATION_METHODS)
    )
