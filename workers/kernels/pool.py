"""Max pooling in bfloat16: torch's took a fifth of VGG16's time beside :mod:`amx`'s convolutions, this a twentieth."""

from typing import Any, TypeGuard

import torch
from torch import nn

from workers.kernels import loader

#: The largest window that a byte can number the places of.
_MOST_SIZE = 15


def suits(pool: nn.Module) -> TypeGuard[nn.MaxPool2d]:
    """Whether a max pooling is one that :class:`FastMaxPool` can take over, in a network on the CPU."""
    return (
        type(pool) is nn.MaxPool2d
        and all(_is_square(value) for value in (pool.kernel_size, pool.stride, pool.padding))
        and pool.dilation in (1, (1, 1))
        and not pool.return_indices
        and _side(pool.kernel_size) <= _MOST_SIZE
        and loader.amx() is not None
    )


class FastMaxPool(nn.Module):
    """A max pooling that :func:`suits`, of bfloat16 maps on the CPU."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        #: size, stride and padding
        self.window = _side(pool.kernel_size), _side(pool.stride), _side(pool.padding)
        self._ceil_mode = pool.ceil_mode

    @property
    def tiles(self) -> bool:
        """Whether each pixel is in one window at most, and none reaches out of the map."""
        size, stride, padding = self.window
        return size == stride and padding == 0 and not self._ceil_mode

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, C, H', W'), in channels-last memory; RuntimeError for maps that are too small."""
        result: torch.Tensor = _Pool.apply(x, self)
        return result

    def pooled(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The maxima, and in which place of its window, row by row, each one was found: uint8."""
        batch, channels, height, width = x.shape
        shape = batch, channels, self.outputs(height), self.outputs(width)
        y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
        places = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
        sizes = batch, height, width, channels, *self.window, *shape[2:]
        _library().pool(x.data_ptr(), y.data_ptr(), places.data_ptr(), *sizes)
        return y, places

    def turned(self, gradient: torch.Tensor, places: torch.Tensor, map_px: tuple[int, int]) -> torch.Tensor:
        """The gradient of an input of that height and width."""
        batch, channels, *outputs = gradient.shape
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        x = torch.empty((batch, channels, *map_px), dtype=gradient.dtype, memory_format=torch.channels_last)
        sizes = batch, *map_px, channels, *self.window, *outputs
        _library().unpool(gradient.data_ptr(), places.data_ptr(), x.data_ptr(), *sizes)
        return x

    def outputs(self, length: int) -> int:
        """Windows along a side of so many pixels; none begins behind the map and the padding before it."""
        size, stride, padding = self.window
        count = (length + 2 * padding - size + (stride - 1) * self._ceil_mode) // stride + 1
        if self._ceil_mode and (count - 1) * stride >= length + padding:
            count -= 1
        if count < 1:
            raise RuntimeError(f"a map of {length} px is too small for windows of {size}")
        return count


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, pool: FastMaxPool) -> torch.Tensor:
        y, places = pool.pooled(x)
        ctx.pool, ctx.map_px = pool, x.shape[2:]
        ctx.save_for_backward(places)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.pool.turned(gradient, *ctx.saved_tensors, ctx.map_px), None


def _library() -> Any:
    return loader.amx()  # suits() has asked


def _is_square(value: int | tuple[int, ...]) -> bool:
    return isinstance(value, int) or len(set(value)) == 1


def _side(value: int | tuple[int, ...]) -> int:
    return value if isinstance(value, int) else value[0]
