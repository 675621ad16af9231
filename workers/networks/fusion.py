"""Fuses operations of the network before a layer. Results differ from the original network's by rounding only.

A batch-norm that follows a convolution is multiplied into the convolution's weights. On a CPU, many 3 x 3 convolutions,
with the ReLUs that follow them, are replaced by compiled ones. Layer extractors of one network share the results.
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
from workers.kernels import loader as kernels
from workers.networks import tracing
from workers.networks.gradient_override import relu_ceiling


class FusedConvolutions:
    """The fused convolutions of one network, created on first use and shared by its layer extractors."""

    def __init__(self) -> None:
        #: (module name, whether its batch-norm is folded in, precision) -> the fused convolution
        self._fused: dict[tuple[str, bool, Precision], nn.Module] = {}

    def optimize(self, upstream: fx.GraphModule, precision: Precision, *, relus: bool = True) -> fx.GraphModule:
        """A fused copy of ``upstream`` in float32, or entirely in bfloat16; ``upstream`` is unchanged.

        If ``relus`` is False, activation functions are not fused.
        """
        graph = fx.Graph()
        graph.output(graph.graph_copy(upstream.graph, {}))
        fast = fx.GraphModule(upstream, graph)
        for node in list(graph.nodes):
            if tracing.is_pass_through(fast, node):
                _absorb(node.all_input_nodes[0], node)
        calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
        for node in list(graph.nodes):
            conv = _module(fast, node)
            # A convolution that is called twice may be followed by two different norms.
            if isinstance(conv, _ConvNd) and not conv.transposed and calls[node.target] == 1:
                self._fuse(fast, node, conv, precision, relus=relus)
        for node in reversed(list(graph.nodes)):  # unused parameters of functional norms
            if node.op == "get_attr" and not node.users:
                graph.erase_node(node)
        fast.recompile()
        return fast if precision == "fp32" else self._in_bf16(fast)

    def _fuse(
        self, upstream: fx.GraphModule, node: fx.Node, conv: _ConvNd, precision: Precision, *, relus: bool
    ) -> None:
        """Fuse a convolution with the norm and ReLU that follow it, as far as one operation can compute them."""
        norm = _only_reader(node)
        norm = norm if norm is not None and tracing.is_norm(upstream, norm) else None
        fused = self._fused_conv(str(node.target), conv, upstream, norm, precision)
        _absorb(node, norm)
        relu = _only_reader(node)
        ceiling = relu_ceiling(upstream, relu) if relus and relu is not None else None
        with_relu = getattr(fused, "with_relu", None)  # compiled convolutions have this method
        if with_relu is not None and ceiling is not None:
            fused = with_relu(ceiling)
            _absorb(node, relu)
        upstream.add_submodule(str(node.target), fused)

    def _in_bf16(self, upstream: fx.GraphModule) -> fx.GraphModule:
        """A copy in bfloat16 that shares the fused convolutions of that precision."""
        shared = {id(module): module for (_, _, precision), module in self._fused.items() if precision == "bf16"}
        return copy.deepcopy(upstream, shared).to(torch.bfloat16)

    def _fused_conv(
        self, name: str, conv: _ConvNd, upstream: fx.GraphModule, norm: fx.Node | None, precision: Precision
    ) -> nn.Module:
        key = name, norm is not None, precision
        if key not in self._fused:
            fused: nn.Module = conv if norm is None else _folded(conv, *_statistics(upstream, norm))
            if precision == "bf16":
                fused = copy.deepcopy(fused).to(torch.bfloat16)
            fused = kernels.compiled(fused)
            self._fused[key] = fused
        return self._fused[key]


def _module(upstream: fx.GraphModule, node: fx.Node) -> nn.Module:
    """The module that a node calls, or an identity."""
    return upstream.get_submodule(str(node.target)) if node.op == "call_module" else nn.Identity()


def _only_reader(node: fx.Node) -> fx.Node | None:
    """The node that reads a node's output, if there is exactly one."""
    readers = list(node.users)
    return readers[0] if len(readers) == 1 else None


def _absorb(node: fx.Node, reader: fx.Node | None) -> None:
    """Remove ``reader``, whose operation ``node`` now performs as well."""
    if reader is not None:
        reader.replace_all_uses_with(node)
        node.graph.erase_node(reader)


def _statistics(
    upstream: fx.GraphModule, norm: fx.Node
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None, float]:
    """Mean, variance, gain and offset, (C,) each, and epsilon."""
    if norm.op == "call_module":
        module = upstream.get_submodule(str(norm.target))
        return module.running_mean, module.running_var, module.weight, module.bias, module.eps  # type: ignore[return-value]  # a batch-norm's
    bound = inspect.signature(F.batch_norm).bind(*norm.args, **norm.kwargs)
    bound.apply_defaults()
    mean, variance, gain, offset = (
        None if node is None else tracing.attribute(upstream, node)
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
    """The convolution with the batch-norm that follows it multiplied into its weight and bias."""
    gain = torch.ones_like(mean) if gain is None else gain
    offset = torch.zeros_like(mean) if offset is None else offset
    weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, mean, variance, epsilon, gain, offset)
    folded = copy.copy(conv)
    folded._parameters = {  # a copy shares its original's
        "weight": nn.Parameter(weight.detach(), requires_grad=False),
        "bias": None if bias is None else nn.Parameter(bias.detach(), requires_grad=False),
    }
    return folded
