"""What lies before a layer, in the form that runs fastest; float noise apart it computes what the network does.

A batch-norm that follows a convolution is multiplied into its weights, and on a CPU many convolutions, with the ReLUs
behind them, become compiled code of our own. All taps of a network share what is made for that.
"""

import copy
import inspect
from collections import Counter

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.fusion import fuse_conv_bn_weights

from workers.contract.records import Precision
from workers.kernels import amx, depthwise, pool, winograd
from workers.kernels.frozen import FrozenConv
from workers.networks import tracing as graphs
from workers.networks.gradient_override import relu_ceiling


class FusedConvolutions:
    """The convolutions of one network in their fastest form, each made when a tap first needs it."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, bool, Precision], nn.Module] = {}

    def optimize(self, trunk: fx.GraphModule, precision: Precision, *, relus: bool = True) -> fx.GraphModule:
        """The same operations on float32, or all in bfloat16; changes nothing in ``trunk``.

        Without ``relus``, every activation function remains an operation of its own.
        """
        graph = fx.Graph()
        graph.output(graph.graph_copy(trunk.graph, {}))
        fast = fx.GraphModule(trunk, graph)
        for node in list(graph.nodes):
            if graphs.is_pass_through(fast, node):
                _take_over(node.all_input_nodes[0], node)
        calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
        for node in list(graph.nodes):
            conv = _module(fast, node)
            # One that runs twice may have two norms behind it.
            if isinstance(conv, _ConvNd) and not conv.transposed and calls[node.target] == 1:
                self._take(fast, node, conv, precision, relus=relus)
        for node in reversed(list(graph.nodes)):  # the parameters of functional norms
            if node.op == "get_attr" and not node.users:
                graph.erase_node(node)
        fast.recompile()
        return fast if precision == "fp32" else self._halved(fast)

    def _take(self, trunk: fx.GraphModule, node: fx.Node, conv: _ConvNd, precision: Precision, *, relus: bool) -> None:
        """Replace a convolution and what follows it, as far as one operation can do both."""
        norm = _reader(node)
        norm = norm if norm is not None and graphs.is_norm(trunk, norm) else None
        made = self._fastest(str(node.target), conv, trunk, norm, precision)
        _take_over(node, norm)
        relu = _reader(node)
        ceiling = relu_ceiling(trunk, relu) if relus and relu is not None else None
        if isinstance(made, FrozenConv) and ceiling is not None:
            made = made.with_relu(ceiling)
            _take_over(node, relu)
        pooling = _reader(node)
        module = nn.Identity() if pooling is None else _module(trunk, pooling)
        if isinstance(made, amx.AmxConv) and pool.suits(module) and pool.FastMaxPool(module).tiles:
            made = made.with_pool(pool.FastMaxPool(module))
            _take_over(node, pooling)
        before = node.all_input_nodes[0]
        first = _module(trunk, before)
        if isinstance(made, amx.AmxConv) and made.follows(first) and _reader(before) is node:
            made = made.behind(first)
            node.replace_input_with(before, before.all_input_nodes[0])
            node.graph.erase_node(before)
        trunk.add_submodule(str(node.target), made)

    def _halved(self, trunk: fx.GraphModule) -> fx.GraphModule:
        """The same with all that is left of it in bfloat16."""
        on_cpu = all(parameter.device.type == "cpu" for parameter in trunk.parameters())
        for node in trunk.graph.nodes:
            module = _module(trunk, node)
            if on_cpu and pool.suits(module):
                trunk.add_submodule(str(node.target), pool.FastMaxPool(module))
        shared = {id(module): module for (_, _, precision), module in self._made.items() if precision == "bf16"}
        return copy.deepcopy(trunk, shared).to(torch.bfloat16)

    def _fastest(
        self, name: str, conv: _ConvNd, trunk: fx.GraphModule, norm: fx.Node | None, precision: Precision
    ) -> nn.Module:
        key = name, norm is not None, precision
        if key not in self._made:
            made = conv if norm is None else _folded(conv, *_statistics(trunk, norm))
            self._made[key] = _in_half(made) if precision == "bf16" else _whole(made)
        return self._made[key]


def parted(trunk: fx.GraphModule) -> tuple[fx.GraphModule, amx.AmxConv] | None:
    """A trunk in bfloat16 up to its last operation, and that, where it is one that others may follow in one."""
    (last,) = next(node for node in reversed(trunk.graph.nodes) if node.op == "output").all_input_nodes
    conv = _module(trunk, last)
    if not isinstance(conv, amx.AmxConv) or len(last.users) > 1:
        return None
    graph = fx.Graph()
    places: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(trunk.graph, places)
    graph.output(places[last].all_input_nodes[0])
    graph.erase_node(places[last])
    return fx.GraphModule(trunk, graph), conv


def _module(trunk: fx.GraphModule, node: fx.Node) -> nn.Module:
    """What a node calls, where that is a module."""
    return trunk.get_submodule(str(node.target)) if node.op == "call_module" else nn.Identity()


def _whole(conv: _ConvNd) -> nn.Module:
    return winograd.WinogradConv(conv) if winograd.suits(conv) else conv


def _in_half(conv: _ConvNd) -> nn.Module:
    if amx.suits(conv):
        return amx.AmxConv(conv)
    if depthwise.suits(conv):
        return depthwise.DepthwiseConv(conv)
    if winograd.suits(conv, half=True):
        return winograd.WinogradConv(conv, half=True)
    return _with(conv, conv.weight.bfloat16(), None if conv.bias is None else conv.bias.bfloat16())


def _reader(node: fx.Node) -> fx.Node | None:
    """The node that alone reads a node's output."""
    readers = list(node.users)
    return readers[0] if len(readers) == 1 else None


def _take_over(node: fx.Node, reader: fx.Node | None) -> None:
    """Let a node's output stand for that of one behind it, which it computes as well."""
    if reader is not None:
        reader.replace_all_uses_with(node)
        node.graph.erase_node(reader)


def _statistics(
    trunk: fx.GraphModule, norm: fx.Node
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None, float]:
    """Mean, variance, gain and offset, (C,) each, and epsilon."""
    if norm.op == "call_module":
        module = trunk.get_submodule(str(norm.target))
        return module.running_mean, module.running_var, module.weight, module.bias, module.eps  # type: ignore[return-value]  # a batch-norm's
    bound = inspect.signature(F.batch_norm).bind(*norm.args, **norm.kwargs)
    bound.apply_defaults()
    mean, variance, gain, offset = (
        None if node is None else graphs.attribute(trunk, node)
        for node in (bound.arguments[name] for name in ("running_mean", "running_var", "weight", "bias"))
    )
    return mean, variance, gain, offset, float(bound.arguments["eps"])  # type: ignore[return-value]  # a norm has them


def _folded(
    conv: _ConvNd,
    mean: torch.Tensor,
    variance: torch.Tensor,
    gain: torch.Tensor | None,
    offset: torch.Tensor | None,
    epsilon: float,
) -> _ConvNd:
    """A convolution with the batch-norm behind it in its own weight and bias."""
    gain = torch.ones_like(mean) if gain is None else gain
    offset = torch.zeros_like(mean) if offset is None else offset
    weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, mean, variance, epsilon, gain, offset)
    return _with(conv, weight, bias)


def _with(conv: _ConvNd, weight: torch.Tensor, bias: torch.Tensor | None) -> _ConvNd:
    """The same convolution with other parameters."""
    other = copy.copy(conv)
    other._parameters = {  # a copy shares its original's
        "weight": nn.Parameter(weight.detach(), requires_grad=False),
        "bias": None if bias is None else nn.Parameter(bias.detach(), requires_grad=False),
    }
    return other
