"""Convolutions in bfloat16 by the matrix unit of Intel's processors (AMX), of which torch's library uses half or less.

A core of those multiplies 16 times as fast in bfloat16 as in float32, and everything around a product then counts: maps
that go through memory between a convolution, its ReLU and its max pooling, kernels that come from there once for each
picture. amx.c, beside this, takes bands of rows that stay in a core's cache, with a panel of kernels at a time.
(Winograd's algorithm does not pay here: its transforms and its larger kernels cost more than the products that it
saves.)
"""

import copy
from typing import Any, TypeGuard

import torch
from torch import nn

from workers.convolutions import library
from workers.convolutions.frozen import FrozenConv, room_for_bits
from workers.convolutions.pool import FastMaxPool

#: Channels of a step, and kernels of a panel: two registers of 16, of pairs of channels.
_DEPTH, _PANEL = 32, 32

#: The most places of a kernel that the compiled code takes.
_MOST_PLACES = 64


def suits(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a convolution, in float32 yet, is one that :class:`AmxConv` can take over, and gains by it."""
    return (
        type(conv) is nn.Conv2d
        and conv.stride == conv.dilation == (1, 1)
        and conv.groups == 1
        and isinstance(conv.padding, tuple)
        and all(padding < size for padding, size in zip(conv.padding, conv.kernel_size, strict=True))
        and conv.padding_mode == "zeros"
        and conv.kernel_size[0] * conv.kernel_size[1] <= _MOST_PLACES
        and conv.weight.device.type == "cpu"
        and library.amx() is not None
    )


class AmxConv(FrozenConv):
    """A convolution that :func:`suits`, of bfloat16 maps; its sums and its bias are float32."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self._weight = conv.weight.detach()  # (K, C, R, S)
        self._padding = int(conv.padding[0]), int(conv.padding[1])
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().float()
        self._bias = nn.functional.pad(bias, (0, -len(bias) % _PANEL)).contiguous()
        self._panels: dict[bool, torch.Tensor] = {}
        #: max pooling behind it
        self.pool: FastMaxPool | None = None
        #: whether the channels of a whole row of the kernel are few enough for one step, as of RGB pictures
        self._merged = self._weight.shape[1] * self._weight.shape[3] <= _DEPTH

    def with_pool(self, pool: FastMaxPool) -> "AmxConv":
        """The same, sharing its kernels, with a max pooling behind it whose windows do not meet."""
        both = copy.copy(self)
        both.pool = pool
        return both

    def convolve(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See :class:`FrozenConv`; ``x`` and what comes out, behind the pooling where there is one, are bfloat16.

        With a pooling, the second tells where in their windows the maxima were (uint8), or 255 for those not awake.
        """
        height, width = self._map_px(x.shape[2], x.shape[3], self._padding)
        if self.pool is None:
            y = _maps(len(x), self._weight.shape[0], height, width)
            awake = room_for_bits(y) if self.ceiling else None
            self._run(x, y, x.shape[2:], self._padding, kept=awake)
            return y, awake
        y = _maps(len(x), self._weight.shape[0], self.pool.outputs(height), self.pool.outputs(width))
        found = torch.empty_like(y, dtype=torch.uint8)
        self._run(x, y, x.shape[2:], self._padding, found=found)
        return y, found

    def turned(self, gradient: torch.Tensor, awake: torch.Tensor | None, x_shape: torch.Size) -> torch.Tensor:
        """See :class:`FrozenConv`."""
        x = _maps(*x_shape)
        map_px = self._map_px(x_shape[2], x_shape[3], self._padding)
        padding = self._weight.shape[2] - 1 - self._padding[0], self._weight.shape[3] - 1 - self._padding[1]
        awake, places = (awake, None) if self.pool is None else (None, awake)
        self._run(gradient, x, map_px, padding, backward=True, awake=awake, places=places)
        return x

    def _map_px(self, height: int, width: int, padding: tuple[int, int]) -> tuple[int, int]:
        rows, columns = self._weight.shape[2:]
        return height + 2 * padding[0] - rows + 1, width + 2 * padding[1] - columns + 1

    def _run(
        self, x: torch.Tensor, y: torch.Tensor, map_px: tuple[int, ...], padding: tuple[int, int], *,
        backward: bool = False, awake: torch.Tensor | None = None, places: torch.Tensor | None = None,
        kept: torch.Tensor | None = None, found: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        """amx.c's ``convolve``, of maps of that height and width, to ``y``."""
        x = x.contiguous(memory_format=torch.channels_last)
        failed = _library().convolve(
            x.data_ptr(), library.address(awake), library.address(places), self._kernels(backward=backward).data_ptr(),
            None if backward else self._bias.data_ptr(), y.data_ptr(), library.address(kept), library.address(found),
            len(x), *map_px, self.pool.window[0] if self.pool else 0, x.shape[1], y.shape[1], *self._weight.shape[2:],
            *padding, self._merged and not backward, 0.0 if backward else self.ceiling,
        )  # fmt: skip
        if failed:
            raise MemoryError("the memory for a convolution's bands")

    def _kernels(self, *, backward: bool) -> torch.Tensor:
        """(panels, depths, R, S, 2, pairs of channels, kernels, 2): two registers after another, as the unit reads."""
        if backward not in self._panels:
            weight = self._weight.flip(2, 3).transpose(0, 1) if backward else self._weight
            if self._merged and not backward:  # (K, S x C, R, 1)
                weight = weight.permute(0, 3, 1, 2).flatten(1, 2)[..., None]
            kernels, channels, rows, columns = weight.shape
            whole = nn.functional.pad(weight, (0, 0, 0, 0, 0, -channels % _DEPTH, 0, -kernels % _PANEL))
            parts = whole.reshape(-1, 2, _PANEL // 2, whole.shape[1] // _DEPTH, _DEPTH // 2, 2, rows, columns)
            self._panels[backward] = parts.permute(0, 3, 6, 7, 1, 4, 2, 5).bfloat16().contiguous()
        return self._panels[backward]


def _library() -> Any:
    return library.amx()  # suits() has asked


def _maps(batch: int, channels: int, height: int, width: int) -> torch.Tensor:
    shape = batch, channels, height, width
    return torch.empty(shape, dtype=torch.bfloat16, memory_format=torch.channels_last)
