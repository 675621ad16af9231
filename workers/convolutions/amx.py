"""Convolutions in bfloat16 by the matrix unit of Intel's processors (AMX), of which torch's library uses half or less.

A core of those multiplies 16 times as fast in bfloat16 as in float32, and everything around a product then counts: maps
that go through memory between a convolution, its ReLU and its max pooling, kernels that come from there once for each
picture. amx.c, beside this, takes bands of rows that stay in a core's cache, with a panel of kernels at a time.
(Winograd's algorithm does not pay here: its transforms and its larger kernels cost more than the products that it
saves.)
"""

import ctypes
from typing import Any, TypeGuard

import torch
from torch import nn

from workers.convolutions import library
from workers.convolutions.frozen import FrozenConv, room_for_bits
from workers.convolutions.pool import FastMaxPool

#: Channels of a step, and kernels of a panel: two registers of 16, of pairs of channels.
_DEPTH, _PANEL = 32, 32

#: Two convolutions gain 7 to 30 % by being one where the maps between them have up to so many channels. With more,
#: products take longer than maps on their way through memory, and kernels come in twice as often. By measurement.
_MOST_BETWEEN = 192


def suits(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a convolution, in float32 yet, is one that :class:`AmxConv` can take over, and gains by it."""
    return (
        type(conv) is nn.Conv2d
        and conv.stride == conv.dilation == (1, 1)
        and conv.groups == 1
        and isinstance(conv.padding, tuple)
        and all(padding < size for padding, size in zip(conv.padding, conv.kernel_size, strict=True))
        and conv.padding_mode == "zeros"
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
        #: the convolution before it, whose maps never leave a core's cache
        self.before: AmxConv | None = None
        #: whether the channels of a whole row of the kernel are few enough for one step, as of RGB pictures
        self.merged = self._weight.shape[1] * self._weight.shape[3] <= _DEPTH

    def with_pool(self, pool: FastMaxPool) -> "AmxConv":
        """The same, sharing its kernels, with a max pooling behind it whose windows do not meet."""
        return self._but(pool=pool)

    def behind(self, before: "AmxConv") -> "AmxConv":
        """Both in one, sharing their kernels: one that it :meth:`follows`, and behind it this one."""
        return self._but(before=before)

    def follows(self, before: nn.Module) -> TypeGuard["AmxConv"]:
        """Whether another one, with a ReLU and nothing else between them, is best taken with this one."""
        return (
            isinstance(before, AmxConv)
            and before.ceiling > 0
            and before.pool is None
            and before.before is None
            and before._weight.shape[0] <= _MOST_BETWEEN
            and not self.merged
        )

    def convolve(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """See :class:`FrozenConv`; ``x`` and what comes out, behind the pooling where there is one, are bfloat16.

        Kept are bits of the convolution before, and a bit for each unit, or with a pooling where in their windows the
        maxima were (uint8), or 255 for those not awake.
        """
        steps, kept = [], []
        shape = x.shape
        if self.before is not None:
            shape = self.before._out_shape(x.shape)
            kept.append(room_for_bits(shape))
            steps.append(self.before._step(x.shape, kept=kept[0]))
        batch, kernels, height, width = self._out_shape(shape)
        if self.pool is None:
            y = _maps(batch, kernels, height, width)
            bits = [room_for_bits(y.shape)] if self.ceiling else []
            steps.append(self._step(shape, y=y, kept=bits[0] if bits else None))
            kept += bits
        else:
            y = _maps(batch, kernels, self.pool.outputs(height), self.pool.outputs(width))
            kept.append(torch.empty_like(y, dtype=torch.uint8))
            steps.append(self._step(shape, y=y, found=kept[-1]))
        _run(steps, x)
        return y, tuple(kept)

    def turned(self, gradient: torch.Tensor, kept: tuple[torch.Tensor, ...], x_shape: torch.Size) -> torch.Tensor:
        """See :class:`FrozenConv`."""
        x = _maps(*x_shape)
        own = {"awake" if self.pool is None else "places": kept[-1]} if self.ceiling or self.pool else {}
        if self.before is None:
            steps = [self._step(x_shape, backward=True, y=x, **own)]
        else:
            shape = self.before._out_shape(x_shape)
            steps = [
                self._step(shape, backward=True, counts=kept[0], **own),
                self.before._step(x_shape, backward=True, y=x),
            ]
        _run(steps, gradient)
        return x

    def _out_shape(self, x_shape: torch.Size) -> torch.Size:
        """Of the maps, before a pooling."""
        batch, _, height, width = x_shape
        kernels, _, rows, columns = self._weight.shape
        above, beside = self._padding
        map_px = height + 2 * above - rows + 1, width + 2 * beside - columns + 1
        if min(map_px) < 1:
            raise RuntimeError(f"a map of {height} x {width} px is too small for kernels of {rows} x {columns}")
        return torch.Size((batch, kernels, *map_px))

    def _step(self, x_shape: torch.Size, *, backward: bool = False, **tensors: torch.Tensor | None) -> "_Step":
        """This convolution of maps of that shape, or back to them; ``tensors`` are the step's, by name."""
        shapes = x_shape, self._out_shape(x_shape)
        (_, channels, *map_px), (_, kernels, *out_px) = reversed(shapes) if backward else shapes
        size = self._weight.shape[2:]
        padding = [side - 1 - before if backward else before for side, before in zip(size, self._padding, strict=True)]
        return _Step(
            u=self._kernels(backward=backward).data_ptr(), bias=None if backward else self._bias.data_ptr(),
            sizes=(*map_px, self.pool.window[0] if self.pool else 0, channels, kernels, *size, *padding, *out_px,
                   self.merged and not backward),
            ceiling=0.0 if backward else self.ceiling,
            **{name: library.address(tensor) for name, tensor in tensors.items()},
        )  # fmt: skip

    def _kernels(self, *, backward: bool) -> torch.Tensor:
        """(panels, depths, R, S, 2, pairs of channels, kernels, 2): two registers after another, as the unit reads."""
        if backward not in self._panels:
            weight = self._weight.flip(2, 3).transpose(0, 1) if backward else self._weight
            if self.merged and not backward:  # (K, S x C, R, 1)
                weight = weight.permute(0, 3, 1, 2).flatten(1, 2)[..., None]
            kernels, channels, rows, columns = weight.shape
            whole = nn.functional.pad(weight, (0, 0, 0, 0, 0, -channels % _DEPTH, 0, -kernels % _PANEL))
            parts = whole.reshape(-1, 2, _PANEL // 2, whole.shape[1] // _DEPTH, _DEPTH // 2, 2, rows, columns)
            self._panels[backward] = parts.permute(0, 3, 6, 7, 1, 4, 2, 5).bfloat16().contiguous()
        return self._panels[backward]


class _Step(ctypes.Structure):
    """amx.h's ``struct convolution``: where its tensors lie, its sizes, and the ceiling."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "awake", "places", "u", "bias", "y", "kept", "counts", "found")),
        ("sizes", ctypes.c_long * 12),
        ("ceiling", ctypes.c_float),
    ]


def _run(steps: list[_Step], x: torch.Tensor) -> None:
    """The steps behind each other, the first one from ``x``."""
    x = x.contiguous(memory_format=torch.channels_last)
    steps[0].x = x.data_ptr()
    if _library().convolve((_Step * len(steps))(*steps), len(steps), len(x)):
        raise MemoryError("the memory for a convolution's bands")


def _library() -> Any:
    return library.amx()  # suits() has asked


def _maps(batch: int, channels: int, height: int, width: int) -> torch.Tensor:
    shape = batch, channels, height, width
    return torch.empty(shape, dtype=torch.bfloat16, memory_format=torch.channels_last)
