"""Depthwise convolutions in bfloat16, with the ReLU behind them, for processors whose matrix unit does the others.

torch's library takes 5 to 10 times as long for the gradient of one with a stride as in float32, and without this the
network around them gains nothing by bfloat16: EfficientNet-Lite0 took 17 ms in it where it takes 14 in float32.
"""

from typing import Any, TypeGuard

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import get_same_padding
from torch import nn

from workers.kernels import loader
from workers.kernels.frozen import FrozenConv, room_for_bits

#: Channels that are computed at once.
_GROUP = 32


def suits(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a convolution, in float32 yet, is one that :class:`DepthwiseConv` can take over."""
    return (
        type(conv) in (nn.Conv2d, Conv2dSame)
        and isinstance(conv, nn.Conv2d)
        and conv.groups == conv.in_channels == conv.out_channels > 1
        and conv.dilation == (1, 1)
        and conv.stride[0] == conv.stride[1]
        and isinstance(conv.padding, tuple)
        and conv.padding_mode == "zeros"
        and conv.weight.device.type == "cpu"
        and loader.amx() is not None
    )


class DepthwiseConv(FrozenConv):
    """A convolution that :func:`suits`, of bfloat16 maps; its kernels, sums and bias are float32."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self._size: tuple[int, int] = (conv.kernel_size[0], conv.kernel_size[1])
        self._stride = conv.stride[0]
        #: rows above and columns beside a map, or None for as many as keep its size, or one of its stride
        self._padding = None if isinstance(conv, Conv2dSame) else (int(conv.padding[0]), int(conv.padding[1]))
        self._kernels = _grouped(conv.weight.detach().float()[:, 0].permute(1, 2, 0))
        self._bias = _grouped(torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().float())

    def convolve(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """See :class:`FrozenConv`; ``x`` and what comes out are bfloat16."""
        x = x.contiguous(memory_format=torch.channels_last)
        sizes, map_px = self._sizes(x.shape)
        y = torch.empty((*x.shape[:2], *map_px), dtype=x.dtype, memory_format=torch.channels_last)
        kept = (room_for_bits(y.shape),) if self.ceiling else ()
        _library().convolve_each(
            x.data_ptr(), self._kernels.data_ptr(), self._bias.data_ptr(), y.data_ptr(), loader.address(*kept), *sizes,
            self.ceiling,
        )  # fmt: skip
        return y, kept

    def turned(self, gradient: torch.Tensor, kept: tuple[torch.Tensor, ...], x_shape: torch.Size) -> torch.Tensor:
        """See :class:`FrozenConv`."""
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        x = torch.empty(x_shape, dtype=gradient.dtype, memory_format=torch.channels_last)
        sizes, _ = self._sizes(x_shape)
        _library().turn_each(gradient.data_ptr(), loader.address(*kept), self._kernels.data_ptr(), x.data_ptr(), *sizes)
        return x

    def _sizes(self, shape: torch.Size) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the compiled code wants to know for inputs of that shape, and the height and width of the map."""
        if self._padding is None:
            around = [
                get_same_padding(int(px), k, self._stride, 1) for px, k in zip(shape[2:], self._size, strict=True)
            ]
            before = [padding // 2 for padding in around]
        else:
            around, before = [2 * padding for padding in self._padding], list(self._padding)
        map_px = tuple(
            (int(px) + padding - k) // self._stride + 1
            for px, padding, k in zip(shape[2:], around, self._size, strict=True)
        )
        if min(map_px) < 1:
            raise RuntimeError(f"maps of {shape[2]} x {shape[3]} px are too small for a kernel of {self._size}")
        return (shape[0], shape[2], shape[3], shape[1], *self._size, self._stride, *before, *map_px), map_px


def _grouped(numbers: torch.Tensor) -> torch.Tensor:
    """(..., C) as groups of 32 channels: 16 at even places, then those at odd ones."""
    whole = nn.functional.pad(numbers, (0, -numbers.shape[-1] % _GROUP))
    return whole.reshape(*whole.shape[:-1], -1, _GROUP // 2, 2).transpose(-1, -2).contiguous()


def _library() -> Any:
    return loader.amx()  # suits() has asked
