"""A gradient where an activation function has none: for pictures that nothing would move otherwise.

After Lucid's ``redirected_relu_grad``, which looks at the whole batch instead (github.com/tensorflow/lucid:
``misc/redirected_relu_grad.py``).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional as F


class GradientOverride(NamedTuple):
    """Which pictures of a batch get a gradient through units where their activation function has none."""

    #: (B,) bool: through every unit that sleeps
    stuck: torch.Tensor
    #: every picture, through units that sleep or are saturated where to change that helps what is climbed: how much of
    #: what may pass there does, from 0 to 1
    helpful: float = 0.0


class _Curve(NamedTuple):
    """An activation function that is flat, and so hides the gradient, up to some input and maybe from another on."""

    value: Callable[[torch.Tensor], torch.Tensor]
    #: its derivative between the two
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

#: The gradient that gets through. For pictures that are stuck it only has to be there: the step is normalised. What
#: helps passes whole through the last activation, whose channels are all that the filter sees; where many lie behind
#: each other, as much as that would drown what comes through units that are awake.
_LEAK, _LAST_LEAK = 0.1, 1.0


class _Leaky(nn.Module):
    """An activation whose values are its own, and whose gradient leaks where it is flat; see GradientOverride."""

    leak: GradientOverride

    def __init__(self, curve: _Curve, helpful_leak: float) -> None:
        super().__init__()
        self._curve = curve
        self._helpful_leak = helpful_leak

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to the same shape."""
        helpful_leak = self._helpful_leak * self.leak.helpful
        y: torch.Tensor = _Leaked.apply(x, self._curve, self.leak.stuck[:, None, None, None], helpful_leak)
        return y


class _Leaked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, curve: _Curve, stuck: torch.Tensor, helpful_leak: float) -> torch.Tensor:
        ctx.save_for_backward(x, stuck)
        ctx.curve, ctx.helpful_leak = curve, helpful_leak
        return curve.value(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        x, stuck = ctx.saved_tensors
        asleep, saturated = x <= ctx.curve.floor, x >= ctx.curve.ceiling
        passes = torch.where(asleep | saturated, 0.0, ctx.curve.slope(x)).to(gradient.dtype)
        if ctx.helpful_leak:
            # The gradient is that of what is climbed: what sleeps is woken where that is good, and the reverse.
            passes += ctx.helpful_leak * (asleep & (gradient > 0) | saturated & (gradient < 0))
        passes = torch.where(stuck & asleep, passes.clamp(min=_LEAK), passes)
        return gradient * passes, None, None, None


def leaking(trunk: fx.GraphModule) -> fx.GraphModule:
    """The same operations on the same parameters, with leaky activations."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(trunk.graph, {}))
    leaky = fx.GraphModule(trunk, graph)
    flat = [(node, curve) for node in graph.nodes if (curve := _curve(leaky, node)) is not None]
    for place, (node, curve) in enumerate(flat, start=1):
        name = f"leaky_{place}"
        leaky.add_submodule(name, _Leaky(curve, _LAST_LEAK if place == len(flat) else _LEAK))
        with graph.inserting_before(node):
            node.replace_all_uses_with(graph.call_module(name, (node.all_input_nodes[0],)))
        graph.erase_node(node)
    leaky.recompile()
    return leaky


def relu_ceiling(trunk: fx.GraphModule, node: fx.Node) -> float | None:
    """What a node that is a ReLU cuts off above, infinity where nothing is; None if it is none."""
    curve = _curve(trunk, node)
    return curve.ceiling if curve in (_RELU, _RELU6) else None


def _curve(trunk: fx.GraphModule, node: fx.Node) -> _Curve | None:
    if node.op == "call_module":
        module = trunk.get_submodule(str(node.target))
        return next((curve for kind, curve in _MODULES.items() if isinstance(module, kind)), None)
    return _CALLS.get(node.target) if node.op in ("call_function", "call_method") else None


def set_gradient_override(leaky: fx.GraphModule, leak: GradientOverride) -> None:
    """What a leaky trunk's next passes let through."""
    for module in leaky.modules():
        if isinstance(module, _Leaky):
            module.leak = leak
