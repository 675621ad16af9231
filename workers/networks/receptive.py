"""Receptive field and stride of each tensor of a traced network, from kernels, strides and dilations.

Source of the recurrence: A. Araujo, W. Norris, J. Sim, "Computing Receptive Fields of Convolutional Neural Networks",
Distill 2019. Of branches, the widest counts. Operations that are not known here have no receptive field.
"""

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AvgPoolNd, _MaxPoolNd

from workers.networks import tracing

_POINTWISE_MODULES = (nn.Linear, nn.LayerNorm, nn.Flatten)
_POINTWISE = {
    operator.add, operator.iadd, operator.mul, operator.getitem, torch.add, torch.mul, torch.cat, torch.concat,
    torch.flatten, torch.permute, torch.transpose, torch.reshape, torch.chunk, F.dropout, F.layer_norm,
    "add", "add_", "mul", "mul_", "flatten", "permute", "transpose", "reshape", "view", "chunk", "contiguous",
}  # fmt: skip
_POOLS = {F.max_pool2d, F.avg_pool2d, torch.max_pool2d}
_WHOLE = {F.adaptive_avg_pool2d, torch.mean, "mean"}


@dataclass(frozen=True)
class Field:
    """What one place of a tensor depends on, in pixels of the picture; infinite for the whole picture."""

    size_px: float
    #: distance between two neighbouring places
    stride_px: float

    def after(self, kernel: Any, stride: Any, dilation: Any = 1) -> "Field":
        """The field after a convolution or a pooling; of two axes, the larger counts."""
        wide, step, apart = (max(value) if isinstance(value, tuple) else value for value in (kernel, stride, dilation))
        return Field(self.size_px + (wide - 1) * apart * self.stride_px, self.stride_px * step)


_WHOLE_PICTURE = Field(float("inf"), float("inf"))


def fields(model: nn.Module, graph: fx.Graph) -> dict[fx.Node, Field]:
    """The field of each tensor for which it is known."""
    found: dict[fx.Node, Field | None] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            found[node] = Field(1.0, 1.0)
            continue
        inputs = [found[source] for source in node.all_input_nodes if source in found]
        if inputs:
            known = [field for field in inputs if field is not None]
            widest = max(known, key=lambda field: field.size_px) if len(known) == len(inputs) else None
            found[node] = None if widest is None else _field(model, node, widest)
    return {node: field for node, field in found.items() if field is not None}


def _field(model: nn.Module, node: fx.Node, before: Field) -> Field | None:
    if node.op == "call_module":
        module: Any = model.get_submodule(str(node.target))
        if isinstance(module, _ConvNd):
            return before.after(module.kernel_size, module.stride, module.dilation)
        if isinstance(module, _MaxPoolNd | _AvgPoolNd):
            return before.after(module.kernel_size, module.stride, getattr(module, "dilation", 1))
        if isinstance(module, _AdaptiveAvgPoolNd | nn.MultiheadAttention):
            return _WHOLE_PICTURE
        pointwise = isinstance(module, _POINTWISE_MODULES) or tracing.is_norm(model, node)
        return before if pointwise or _is_elementwise(model, node) else None
    if node.target in _POOLS:
        kernel = node.kwargs.get("kernel_size", node.args[1] if len(node.args) > 1 else 1)
        stride = node.kwargs.get("stride", node.args[2] if len(node.args) > 2 else None)
        return before.after(kernel, stride or kernel)
    if node.target in _WHOLE:
        return _WHOLE_PICTURE
    named = getattr(node.target, "__name__", "") == "stochastic_depth"
    known = node.target in _POINTWISE or tracing.is_norm(model, node) or named
    return before if known or _is_elementwise(model, node) else None


def _is_elementwise(model: nn.Module, node: fx.Node) -> bool:
    return tracing.is_activation(model, node) or tracing.is_pass_through(model, node)
