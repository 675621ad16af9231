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

from workers.kernels import loader
from workers.kernels.frozen import FrozenConv, room_for_bits
from workers.kernels.pool import FastMaxPool

#: Channels of a step, and kernels of a panel: two registers of 16, of pairs of channels.
_DEPTH, _PANEL = 32, 32

#: Two convolutions gain 7 to 30 % by being one where the maps between them have up to so many channels. With more,
#: products take longer than maps on their way through memory, and kernels come in twice as often. Three, with a pooling
#: among them, were 4 to 12 % slower than two and one. By measurement.
_MOST_BETWEEN = 192

#: The most convolutions that the compiled code takes behind each other.
_LONGEST = 3


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
        and loader.amx() is not None
    )


class AmxConv(FrozenConv):
    """A convolution that :func:`suits`, of bfloat16 maps; its sums and its bias are float32."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self._weights = conv.weight.detach()[None]  # (1, K, C, R, S), or own: for each picture (B, 1, C, R, S)
        self._padding = int(conv.padding[0]), int(conv.padding[1])
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().float()
        self._bias: torch.Tensor | None = nn.functional.pad(bias, (0, -len(bias) % _PANEL)).contiguous()
        self._panels: dict[bool, torch.Tensor] = {}
        #: (shape of its input, whether backward) -> the step without the tensors that it is about
        self._steps: dict[tuple[torch.Size, bool], _Step] = {}
        #: whether each picture of a batch has kernels of its own
        self._own = False
        #: max pooling behind it
        self.pool: FastMaxPool | None = None
        #: the convolution before it, whose maps never leave a core's cache
        self.before: AmxConv | None = None

    def _but(self, **parts: object) -> "AmxConv":
        return super()._but(**parts, _steps={})

    def with_pool(self, pool: FastMaxPool) -> "AmxConv":
        """The same, sharing its kernels, with a max pooling behind it whose windows do not meet."""
        return self._but(pool=pool)

    def behind(self, before: "AmxConv") -> "AmxConv":
        """Both in one, sharing their kernels: one that it :meth:`follows`, and behind it this one."""
        return self._but(before=before)

    def follows(self, before: nn.Module) -> TypeGuard["AmxConv"]:
        """Whether another one, with a ReLU and at most a pooling between them, is best taken with this one.

        One filter alone follows any: its products cost next to nothing, and maps on their way through memory do.
        """
        return (
            isinstance(before, AmxConv)
            and before.ceiling > 0
            and (self._own or before.pool is None)
            and len(before._chain()) < (_LONGEST if self._own else 2)
            and (self._own or before._weights.shape[1] <= _MOST_BETWEEN)
            and not self._merged(backward=False)
        )

    def of_each(self, filters: torch.Tensor) -> "AmxConv":
        """For each picture of a batch one filter alone, without its bias: (B, C, H, W) to (B, 1, H', W').

        ``filters`` is (B,) int64.
        """
        return self._but(_weights=self._weights[0, filters][:, None], _bias=None, _panels={}, _own=True)

    def convolve(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """See :class:`FrozenConv`; ``x`` and what comes out, behind the pooling where there is one, are bfloat16.

        Kept is of each convolution a bit for each unit that was awake, with a pooling where in their windows the maxima
        were (uint8), or 255 for those not awake, and nothing without a ReLU.
        """
        steps: list[_Step] = []
        kept: list[torch.Tensor] = []
        shape = x.shape
        for conv in self._chain():
            x_shape, shape = shape, conv._out_shape(shape)
            if conv.pool is None:
                kept.append(room_for_bits(shape) if conv.ceiling else torch.empty(0))
                steps.append(conv._step(x_shape, kept=kept[-1] if conv.ceiling else None))
            else:
                kept.append(_maps(*shape, dtype=torch.uint8))
                steps.append(conv._step(x_shape, found=kept[-1]))
        y = _maps(*shape)
        steps[-1].y = y.data_ptr()
        _run(steps, x)
        return y, tuple(kept)

    def turned(self, gradient: torch.Tensor, kept: tuple[torch.Tensor, ...], x_shape: torch.Size) -> torch.Tensor:
        """See :class:`FrozenConv`."""
        chain = self._chain()
        shapes = [x_shape]
        for conv in chain[:-1]:
            shapes.append(conv._out_shape(shapes[-1]))
        x = _maps(*x_shape)
        steps: list[_Step] = []
        for place, conv in reversed(list(enumerate(chain))):
            tensors = {"y": x} if place == 0 else {}
            if conv.pool is not None:
                tensors["places"] = kept[place]
            elif not steps and conv.ceiling:
                tensors["awake"] = kept[place]
            if place > 0 and chain[place - 1].pool is None:
                tensors["counts"] = kept[place - 1]
            steps.append(conv._step(shapes[place], backward=True, **tensors))
        _run(steps, gradient)
        return x

    def _merged(self, *, backward: bool) -> int:
        """How many rows of the kernel have few enough channels for one step, as of RGB pictures: all, one or none."""
        _, kernels, channels, rows, columns = self._weights.shape
        if backward and not self._own:
            return 0  # what gradients are read for is told for all their channels
        row = columns * (kernels if backward else channels)
        return rows if rows * row <= _DEPTH else int(row <= _DEPTH)

    def _joined(self, *, backward: bool) -> bool:
        """Whether the kernels of all columns are few enough for one place, as where there is one, or a picture's."""
        _, kernels, channels, _, columns = self._weights.shape
        made = channels if backward else kernels
        plain = self._own or (backward and self.before is None)
        return plain and columns > 1 and made * columns <= _PANEL // 2 and not self._merged(backward=backward)

    def _chain(self) -> list["AmxConv"]:
        """Those before it, the first one first, and itself."""
        return [*(self.before._chain() if self.before else []), self]

    def _map_shape(self, x_shape: torch.Size) -> torch.Size:
        """Of the maps, before a pooling."""
        batch, _, height, width = x_shape
        pictures, kernels, _, rows, columns = self._weights.shape
        if self._own and pictures != batch:
            raise RuntimeError(f"{batch} pictures have {pictures} kernels of their own")
        above, beside = self._padding
        map_px = height + 2 * above - rows + 1, width + 2 * beside - columns + 1
        if min(map_px) < 1:
            raise RuntimeError(f"a map of {height} x {width} px is too small for kernels of {rows} x {columns}")
        return torch.Size((batch, kernels, *map_px))

    def _out_shape(self, x_shape: torch.Size) -> torch.Size:
        """The same behind the pooling, where there is one."""
        batch, kernels, height, width = shape = self._map_shape(x_shape)
        if self.pool is None:
            return shape
        return torch.Size((batch, kernels, self.pool.outputs(height), self.pool.outputs(width)))

    def _step(self, x_shape: torch.Size, *, backward: bool = False, **tensors: torch.Tensor | None) -> "_Step":
        """This convolution of maps of that shape, or back to them; ``tensors`` are the step's, by name."""
        if (x_shape, backward) not in self._steps:
            self._steps[x_shape, backward] = self._plain_step(x_shape, backward=backward)
        step = _Step.from_buffer_copy(self._steps[x_shape, backward])
        for name, tensor in tensors.items():
            setattr(step, name, loader.address(tensor))
        return step

    def _plain_step(self, x_shape: torch.Size, *, backward: bool) -> "_Step":
        shapes = x_shape, self._map_shape(x_shape)
        (_, channels, *map_px), (_, kernels, *out_px) = reversed(shapes) if backward else shapes
        size = self._weights.shape[3:]
        padding = [side - 1 - before if backward else before for side, before in zip(size, self._padding, strict=True)]
        return _Step(
            u=self._kernels(backward=backward).data_ptr(), bias=None if backward else loader.address(self._bias),
            sizes=(*map_px, self.pool.window[0] if self.pool else 0, channels, kernels, *size, *padding, *out_px,
                   self._merged(backward=backward), self._joined(backward=backward), self._own),
            ceiling=0.0 if backward else self.ceiling,
        )  # fmt: skip

    def _kernels(self, *, backward: bool) -> torch.Tensor:
        """(1 or B, panels, depths, R, S, 2, pairs of channels, kernels, 2): two registers after another, as the unit
        reads.
        """
        if backward not in self._panels:
            weights = self._weights.flip(3, 4).transpose(1, 2) if backward else self._weights
            merged = self._merged(backward=backward)
            if self._joined(backward=backward):  # (1 or B, S x K, C, R, 1)
                weights = weights.permute(0, 4, 1, 2, 3).flatten(1, 2)[..., None]
            elif merged:  # (1 or B, K, rows x S x C, R / rows, 1)
                pictures, kernels, channels, rows, columns = weights.shape
                rows_behind = weights.permute(0, 1, 3, 4, 2)
                steps = rows_behind.reshape(pictures, kernels, rows // merged, merged * columns * channels)
                weights = steps.transpose(2, 3)[..., None]
            pictures, kernels, channels, rows, columns = weights.shape
            whole = nn.functional.pad(weights, (0, 0, 0, 0, 0, -channels % _DEPTH, 0, -kernels % _PANEL))
            panels, depths = whole.shape[1] // _PANEL, whole.shape[2] // _DEPTH
            parts = whole.reshape(pictures, panels, 2, _PANEL // 2, depths, _DEPTH // 2, 2, rows, columns)
            self._panels[backward] = parts.permute(0, 1, 4, 7, 8, 2, 5, 3, 6).bfloat16().contiguous()
        return self._panels[backward]


class _Step(ctypes.Structure):
    """amx.h's ``struct convolution``: where its tensors lie, its sizes, and the ceiling."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "awake", "places", "u", "bias", "y", "kept", "counts", "found")),
        ("sizes", ctypes.c_long * 14),
        ("ceiling", ctypes.c_float),
    ]


def _run(steps: list[_Step], x: torch.Tensor) -> None:
    """The steps behind each other, the first one from ``x``."""
    x = x.contiguous(memory_format=torch.channels_last)
    steps[0].x = x.data_ptr()
    if _library().convolve((_Step * len(steps))(*steps), len(steps), len(x)):
        raise MemoryError("the memory for a convolution's bands")


def _library() -> Any:
    return loader.amx()  # suits() has asked


def _maps(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)
