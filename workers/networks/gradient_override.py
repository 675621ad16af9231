"""Gradients through inactive and saturated units, where the derivative of the activation function is zero.

After Lucid's ``redirected_relu_grad`` (github.com/tensorflow/lucid: ``misc/redirected_relu_grad.py``), which decides
per batch. Here each picture is decided by itself.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional as F


class GradientOverride(NamedTuple):
    """Which pictures of a batch get a gradient through units whose derivative is zero."""

    #: (B,) bool: pictures that get a gradient through every inactive unit
    dead_pictures: torch.Tensor
    #: for all pictures, 0..1: scale of the gradient through inactive and saturated units whose change increases the
    #: objective
    helpful: float = 0.0


class _Curve(NamedTuple):
    """An activation function whose derivative is 0 up to ``floor`` and from ``ceiling`` on."""

    value: Callable[[torch.Tensor], torch.Tensor]
    #: its derivative between floor and ceiling
    slope: Callable[[torch.Tensor], torch.Tensor]
    floor: float
    ceiling: float


_RELU = _Curve(torch.relu, torch.ones_like, 0.0, float("inf"))
_RELU6 = _Curve(F.relu6, torch.ones_like, 0.0, 6.0)
# A. Howard et al., "Searching for MobileNetV3", 2019: x relu6(x + 3) / 6.
_HARDSWISH = _Curve(F.hardswish, lambda x: torch.where(x < 3.0, x / 3.0 + 0.5, 1.0), -3.0, float("inf"))

_MODULES = {nn.ReLU: _RELU, nn.ReLU6: _RELU6, nn.Hardswish: _HARDSWISH}
_CALLS: dict[Any, _Curve] = {
    F.relu: _RELU, F.relu_: _RELU, torch.relu: _RELU, torch.relu_: _RELU, "relu": _RELU, "relu_": _RELU,
    F.relu6: _RELU6, F.hardswish: _HARDSWISH,
}  # fmt: skip

#: The derivatives that replace 0. For dead pictures the size does not matter, because the step is normalised. Helpful
#: gradients pass unchanged through the last activation, which feeds the filter. With that factor at every activation
#: they would outweigh the gradient through active units.
_SLOPE, _LAST_SLOPE = 0.1, 1.0


class _OverriddenActivation(nn.Module):
    """An activation function with unchanged values and a replaced derivative; see GradientOverride."""

    override: GradientOverride

    def __init__(self, curve: _Curve, helpful_slope: float) -> None:
        super().__init__()
        self._curve = curve
        self._helpful_slope = helpful_slope

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, ...) to the same shape."""
        helpful_slope = self._helpful_slope * self.override.helpful
        dead_pictures = self.override.dead_pictures.view(-1, *[1] * (x.ndim - 1))
        y: torch.Tensor = _Override.apply(x, self._curve, dead_pictures, helpful_slope)
        return y


class _Override(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, curve: _Curve, dead_pictures: torch.Tensor, helpful_slope: float
    ) -> torch.Tensor:
        ctx.save_for_backward(x, dead_pictures)
        ctx.curve, ctx.helpful_slope = curve, helpful_slope
        return curve.value(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        x, dead_pictures = ctx.saved_tensors
        inactive, saturated = x <= ctx.curve.floor, x >= ctx.curve.ceiling
        passes = torch.where(inactive | saturated, 0.0, ctx.curve.slope(x)).to(gradient.dtype)
        if ctx.helpful_slope:
            # Gradients are of the objective: inactive units pass positive ones, saturated units negative ones.
            passes += ctx.helpful_slope * (inactive & (gradient > 0) | saturated & (gradient < 0))
        passes = torch.where(dead_pictures & inactive, passes.clamp(min=_SLOPE), passes)
        return gradient * passes, None, None, None


def with_gradient_override(upstream: fx.GraphModule) -> fx.GraphModule:
    """A copy with shared parameters whose activation functions apply a GradientOverride."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(upstream.graph, {}))
    overridden = fx.GraphModule(upstream, graph)
    flat = [(node, curve) for node in graph.nodes if (curve := _curve(overridden, node)) is not None]
    for number, (node, curve) in enumerate(flat, start=1):
        name = f"overridden_{number}"
        overridden.add_submodule(name, _OverriddenActivation(curve, _LAST_SLOPE if number == len(flat) else _SLOPE))
        with graph.inserting_before(node):
            node.replace_all_uses_with(graph.call_module(name, (node.all_input_nodes[0],)))
        graph.erase_node(node)
    overridden.recompile()
    return overridden


def relu_ceiling(upstream: fx.GraphModule, node: fx.Node) -> float | None:
    """Upper limit of a ReLU node's output: 6 for ReLU6, infinity for ReLU; None for any other node."""
    curve = _curve(upstream, node)
    return curve.ceiling if curve in (_RELU, _RELU6) else None


def _curve(upstream: fx.GraphModule, node: fx.Node) -> _Curve | None:
    if node.op == "call_module":
        module = upstream.get_submodule(str(node.target))
        return next((curve for kind, curve in _MODULES.items() if isinstance(module, kind)), None)
    return _CALLS.get(node.target) if node.op in ("call_function", "call_method") else None


def set_gradient_override(overridden: fx.GraphModule, override: GradientOverride) -> None:
    """Set the override of a module from :func:`with_gradient_override` for its next calls."""
    for module in overridden.modules():
        if isinstance(module, _OverriddenActivation):
            module.override = override
