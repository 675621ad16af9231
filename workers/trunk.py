"""What lies before a layer, in the form that runs fastest; float noise apart it computes what the network does.

A batch-norm that follows a convolution is multiplied into its weights, and 3 x 3 convolutions on a CPU become
Winograd's. All taps of a network share what is made for that.
"""

import copy
import inspect
from collections import Counter

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.fusion import fuse_conv_bn_weights

from workers import graph as graphs
from workers import winograd
from workers.contract.tile import Precision


class Kernels:
    """The convolutions of one network in their fastest form, each made when a tap first needs it."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, bool, Precision], nn.Module] = {}

    def quicken(self, trunk: fx.GraphModule, precision: Precision) -> fx.GraphModule:
        """The same operations on float32, or all in bfloat16; changes nothing in ``trunk``."""
        graph = fx.Graph()
        graph.output(graph.graph_copy(trunk.graph, {}))
        fast = fx.GraphModule(trunk, graph)
        calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
        for node in list(graph.nodes):
            # One that runs twice may have two norms behind it.
            if node.op != "call_module" or calls[node.target] > 1:
                continue
            conv = fast.get_submodule(node.target)
            if isinstance(conv, _ConvNd) and not conv.transposed:
                norm = _norm_behind(fast, node)
                fast.add_submodule(node.target, self._fastest(node.target, conv, fast, norm, precision))
                if norm is not None:
                    norm.replace_all_uses_with(node)
                    graph.erase_node(norm)
        for node in reversed(list(graph.nodes)):  # the parameters of functional norms
            if node.op == "get_attr" and not node.users:
                graph.erase_node(node)
        fast.recompile()
        return fast if precision == "fp32" else copy.deepcopy(fast).to(torch.bfloat16)

    def _fastest(
        self, name: str, conv: _ConvNd, trunk: fx.GraphModule, norm: fx.Node | None, precision: Precision
    ) -> nn.Module:
        key = name, norm is not None, precision
        if key not in self._made:
            made = conv if norm is None else _folded(conv, *_statistics(trunk, norm))
            self._made[key] = winograd.WinogradConv(made) if precision == "fp32" and winograd.suits(made) else made
        return self._made[key]


def _norm_behind(trunk: fx.GraphModule, conv: fx.Node) -> fx.Node | None:
    """The batch-norm that alone reads a convolution's output."""
    readers = list(conv.users)
    return readers[0] if len(readers) == 1 and graphs.is_norm(trunk, readers[0]) else None


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
    folded = copy.copy(conv)
    folded._parameters = {  # a copy shares its original's
        "weight": nn.Parameter(weight.detach(), requires_grad=False),
        "bias": nn.Parameter(bias.detach(), requires_grad=False),
    }
    return folded
