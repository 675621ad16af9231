"""What the convolutions in compiled code have in common: no gradient but their input's, and a ReLU for nothing."""

import copy
from abc import ABC, abstractmethod
from typing import Any, Self

import torch
from torch import nn


class FrozenConv(nn.Module, ABC):
    """A convolution without gradients of its weights, and the ReLU behind it where there is one.

    The ReLU costs nothing forward, where sums are cut off before they are written, nor backward, where the gradient is
    read only for units that were awake.
    """

    #: what the ReLU cuts off above: 6, infinity, or 0 where there is no ReLU
    ceiling = 0.0

    def with_relu(self, ceiling: float) -> Self:
        """The same, sharing its kernels, with a ReLU behind it."""
        return self._but(ceiling=ceiling)

    def _but(self, **parts: object) -> Self:
        """A copy that differs in these; a module among them is a part of the copy alone, not registered with both."""
        other = copy.copy(self)
        other.__dict__.update(parts)
        return other

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, K, H', W'), in channels-last memory; MemoryError where memory does not suffice."""
        result: torch.Tensor = _Convolve.apply(x, self)
        return result

    def __deepcopy__(self, _memo: object) -> Self:
        """Itself: nothing in it changes, and its kernels are large."""
        return self

    @abstractmethod
    def convolve(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """The convolution and its ReLU: (B, C, H, W) to (B, K, H', W'); and what is kept of them for the gradient."""

    @abstractmethod
    def turned(self, gradient: torch.Tensor, kept: tuple[torch.Tensor, ...], x_shape: torch.Size) -> torch.Tensor:
        """The gradient of the input, whose shape is (B, C, H, W), from that of the output, (B, K, H', W').

        ``kept`` is what ``convolve`` gave with that output.
        """


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, conv: FrozenConv) -> torch.Tensor:
        y, kept = conv.convolve(x)
        ctx.conv, ctx.x_shape = conv, x.shape
        ctx.save_for_backward(*kept)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.conv.turned(gradient, ctx.saved_tensors, ctx.x_shape), None


def room_for_bits(shape: torch.Size) -> torch.Tensor:
    """(B, H, W, C / 32) for a bit for each value of maps (B, C, H, W): what is left of them for a ReLU's gradient."""
    batch, channels, height, width = shape
    return torch.empty((batch, height, width, -(-channels // 32)), dtype=torch.int32)
