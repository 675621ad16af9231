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
from workers.convolutions.frozen import FrozenConv
from workers.convolutions.pool import FastMaxPool, address, room_for_bits

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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See :class:`FrozenConv`; what comes out is that of the pooling where there is one."""
        if self.pool is None:
            return super().forward(x)
        result: torch.Tensor = _ConvolveAndPool.apply(x, self)
        return result

    def convolve(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See :class:`FrozenConv`, without the pooling; ``x`` and what comes out are bfloat16."""
        height, width = self._map_px(x.shape[2], x.shape[3], self._padding)
        y = _maps(len(x), self._weight.shape[0], height, width)
        awake = room_for_bits(y) if self.ceiling else None
        self._run(x, y, x.shape[2:], self._padding, kept=awake)
        return y, awake

    def convolve_and_pool(self, x: torch.Tensor, pool: FastMaxPool) -> tuple[torch.Tensor, torch.Tensor]:
        """What the pooling makes of the convolution's maps, and where in their windows the maxima were: uint8.

        With a ReLU, those that were not awake have no place, 255.
        """
        height, width = (pool.outputs(length) for length in self._map_px(x.shape[2], x.shape[3], self._padding))
        y = _maps(len(x), self._weight.shape[0], height, width)
        found = torch.empty_like(y, dtype=torch.uint8)
        self._run(x, y, x.shape[2:], self._padding, found=found)
        return y, found

    def turned(self, gradient: torch.Tensor, awake: torch.Tensor | None, x_shape: torch.Size) -> torch.Tensor:
        """See :class:`FrozenConv`."""
        return self._turned(gradient, x_shape, awake=awake)

    def turned_and_spread(self, gradient: torch.Tensor, places: torch.Tensor, x_shape: torch.Size) -> torch.Tensor:
        """The gradient of the input from that of the pooling's output."""
        return self._turned(gradient, x_shape, places=places)

    def _turned(
        self, gradient: torch.Tensor, x_shape: torch.Size, *,
        awake: torch.Tensor | None = None, places: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        x = _maps(*x_shape)
        map_px = self._map_px(x_shape[2], x_shape[3], self._padding)
        padding = self._weight.shape[2] - 1 - self._padding[0], self._weight.shape[3] - 1 - self._padding[1]
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
            x.data_ptr(), address(awake), address(places), self._kernels(backward=backward).data_ptr(),
            None if backward else self._bias.data_ptr(), y.data_ptr(), address(kept), address(found),
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


class _ConvolveAndPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, conv: AmxConv) -> torch.Tensor:
        y, places = conv.convolve_and_pool(x, conv.pool)  # type: ignore[arg-type]  # forward() has asked
        ctx.conv, ctx.x_shape = conv, x.shape
        ctx.save_for_backward(places)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.conv.turned_and_spread(gradient, *ctx.saved_tensors, ctx.x_shape), None


def _library() -> Any:
    return library.amx()  # suits() has asked


def _maps(batch: int, channels: int, height: int, width: int) -> torch.Tensor:
    shape = batch, channels, height, width
    return torch.empty(shape, dtype=torch.bfloat16, memory_format=torch.channels_last)
