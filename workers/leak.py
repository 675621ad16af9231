"""A gradient where an activation function has none: for pictures that nothing would move otherwise.

After Lucid's ``redirected_relu_grad``, which looks at the whole batch instead (github.com/tensorflow/lucid:
``misc/redirected_relu_grad.py``).
"""

from typing import Any, NamedTuple

import torch
from torch import fx, nn


class Leak(NamedTuple):
    """Which pictures of a batch get a gradient through units where their activation function has none."""

    #: (B,) bool: through every unit that sleeps
    stuck: torch.Tensor
    #: every picture, through units that sleep or are saturated where to change that helps what is climbed: how much of
    #: what may pass there does, from 0 to 1
    helpful: float = 0.0


#: Activations that are flat where they are zero, and so hide the gradient there; and where else they are.
_CEILINGS = {nn.ReLU: float("inf"), nn.ReLU6: 6.0}

#: The gradient that gets through. For pictures that are stuck it only has to be there: the step is normalised. What
#: helps passes whole through the last activation, whose channels are all that the filter sees; where many lie behind
#: each other, as much as that would drown what comes through units that are awake.
_LEAK, _LAST_LEAK = 0.1, 1.0


class _Leaky(nn.Module):
    """An activation whose values are its own, and whose gradient leaks where it is flat; see Leak."""

    leak: Leak

    def __init__(self, ceiling: float, helpful_leak: float) -> None:
        super().__init__()
        self._ceiling = ceiling
        self._helpful_leak = helpful_leak

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to the same shape."""
        helpful_leak = self._helpful_leak * self.leak.helpful
        y: torch.Tensor = _Clamp.apply(x, self._ceiling, self.leak.stuck[:, None, None, None], helpful_leak)
        return y


class _Clamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, ceiling: float, stuck: torch.Tensor, helpful_leak: float) -> torch.Tensor:
        ctx.save_for_backward(x, stuck)
        ctx.ceiling, ctx.helpful_leak = ceiling, helpful_leak
        return x.clamp(0.0, ceiling)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        x, stuck = ctx.saved_tensors
        asleep, saturated = x <= 0, x >= ctx.ceiling
        passes = (~(asleep | saturated)).to(gradient.dtype)
        if ctx.helpful_leak:
            # The gradient is that of what is climbed: what sleeps is woken where that is good, and the reverse.
            passes += ctx.helpful_leak * (asleep & (gradient > 0) | saturated & (gradient < 0))
        passes = torch.where(stuck & asleep, passes.clamp(min=_LEAK), passes)
        return gradient * passes, None, None, None


def leaking(trunk: fx.GraphModule) -> fx.GraphModule:
    """The same operations on the same parameters, with leaky activations."""
    leaky = fx.GraphModule(trunk, trunk.graph)
    flat = [
        (node.target, ceiling)
        for node in leaky.graph.nodes
        if node.op == "call_module"
        for kind, ceiling in _CEILINGS.items()
        if isinstance(leaky.get_submodule(node.target), kind)
    ]
    for place, (name, ceiling) in enumerate(flat, start=1):
        leaky.add_submodule(name, _Leaky(ceiling, _LAST_LEAK if place == len(flat) else _LEAK))
    return leaky


def set_leak(leaky: fx.GraphModule, leak: Leak) -> None:
    """What a leaky trunk's next passes let through."""
    for module in leaky.modules():
        if isinstance(module, _Leaky):
            module.leak = leak
