"""3 x 3 convolutions with a third to a quarter of the multiplications, for CPUs; GPU libraries bring their own.

Source: A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2016: a tile of m x m outputs needs
(m + 2)^2 products per pair of channels instead of 9 m^2. The matrices are Toom and Cook's. winograd.c transforms the
inputs, multiplies and transforms the outputs of blocks of tiles that stay in a core's cache. It is compiled during
installation if there is a C compiler; otherwise torch convolves.
"""

import copy
import ctypes
import functools
import math
from fractions import Fraction
from typing import Any, ClassVar, Self, TypeGuard

import torch
from torch import nn

#: Outputs along one side of a tile. Larger ones save more products and lose more digits: the error relative to the
#: largest output is 5e-7, 5e-6 and 1e-5, where a direct convolution's is 2e-6.
TILES = (2, 3, 4)

#: Finite points the polynomials are evaluated at; the last point is infinity.
_POINTS = (0, 1, -1, 2, -2)

#: The most numbers that a vector holds: channels come in multiples of it.
_WIDTH = 16

#: With fewer channels than this the transforms cost more than they save.
_FEWEST_CHANNELS = 32


def suits(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    """True if :class:`WinogradConv` can replace a module and is faster than it."""
    return (
        type(conv) is nn.Conv2d
        and conv.kernel_size == (3, 3)
        and conv.stride == conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding in ((0, 0), (1, 1))
        and conv.padding_mode == "zeros"
        and conv.in_channels % _WIDTH == conv.out_channels % _WIDTH == 0
        and min(conv.in_channels, conv.out_channels) >= _FEWEST_CHANNELS
        and conv.weight.dtype == torch.float32
        and conv.weight.device.type == "cpu"
    )


class WinogradConv(nn.Module):
    """A convolution of float32 maps that :func:`suits`, with an optional ReLU, and no gradient but its input's.

    The ReLU costs no extra pass: outputs are clamped before they are written, and the gradient is read only where the
    output was above 0 and below the ceiling. The tile size depends on the map's size alone, so that a picture's map is
    the same in any batch.
    """

    #: the name of this implementation in tile records
    kernels: ClassVar = "winograd"

    #: upper limit of the ReLU: 6, infinity, or 0 if there is no ReLU
    ceiling = 0.0

    def __init__(self, conv: nn.Conv2d, library: ctypes.CDLL) -> None:
        """``library``: a compiled winograd.c with declared argument types, see loader.py."""
        super().__init__()
        self._library: Any = library
        self._padding = int(conv.padding[0])
        self._weight = conv.weight.detach()  # (K, C, 3, 3)
        self._bias = None if conv.bias is None else conv.bias.detach().contiguous()
        self._transformed: dict[tuple[int, bool], torch.Tensor] = {}

    def with_relu(self, ceiling: float) -> Self:
        """The same convolution, sharing its kernels, followed by a ReLU with that upper limit."""
        other = copy.copy(self)
        other.ceiling = ceiling
        return other

    def __deepcopy__(self, _memo: object) -> Self:
        """Itself: nothing in it changes, and its kernels are large."""
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, K, H', W'), in channels-last memory. Raises MemoryError if memory does not suffice."""
        result: torch.Tensor = _Convolve.apply(x, self)
        return result

    def convolve(self, x: torch.Tensor) -> torch.Tensor:
        """The convolution and its ReLU: (B, C, H, W) to (B, K, H', W')."""
        return self._run(x, (), backward=False)

    def input_gradient(self, gradient: torch.Tensor, outputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """(B, C, H, W) from the output's gradient (B, K, H', W'): a convolution with the rotated kernel.

        ``outputs`` is the output itself if there is a ReLU, otherwise empty.
        """
        return self._run(gradient, outputs, backward=True)

    def _run(self, x: torch.Tensor, outputs: tuple[torch.Tensor, ...], *, backward: bool) -> torch.Tensor:
        padding = 2 - self._padding if backward else self._padding
        batch, channels, height, width = x.shape
        above = height + 2 * padding - 2, width + 2 * padding - 2
        tile = _best_tile(*above)
        kernel = self._kernel(tile, backward=backward)
        kernels = int(self._weight.shape[1 if backward else 0])
        bias = None if backward or self._bias is None else self._bias.data_ptr()
        x = x.contiguous(memory_format=torch.channels_last)
        result = torch.empty((batch, kernels, *above), dtype=x.dtype, memory_format=torch.channels_last)
        failed = self._library.convolve(
            x.data_ptr(), outputs[0].data_ptr() if outputs else None, kernel.data_ptr(), bias, result.data_ptr(),
            batch, height, width, channels, kernels, padding, tile, self.ceiling,
        )  # fmt: skip
        if failed:
            raise MemoryError("the memory for a convolution's tiles")
        return result

    def _kernel(self, tile: int, *, backward: bool) -> torch.Tensor:
        """Kernels as (tile + 2)^2 matrices, (panels of out channels, in channels, out channels of a panel) each."""
        key = tile, backward
        if key not in self._transformed:
            weight = self._weight.flip(2, 3).transpose(0, 1) if backward else self._weight
            kernel = _kernel_matrix(tile)
            matrices = torch.einsum("ia,jb,kcab->ijck", kernel, kernel, weight.double()).float().flatten(0, 1)
            panel = int(self._library.panel_width())
            whole = nn.functional.pad(matrices, (0, -matrices.shape[2] % panel))
            self._transformed[key] = whole.view(*whole.shape[:2], -1, panel).transpose(1, 2).contiguous()
        return self._transformed[key]


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, conv: WinogradConv) -> torch.Tensor:
        y = conv.convolve(x)
        ctx.conv = conv
        ctx.save_for_backward(*((y,) if conv.ceiling else ()))
        return y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.conv.input_gradient(gradient, ctx.saved_tensors), None


def _best_tile(height: int, width: int) -> int:
    """The tile that covers a map with the fewest products."""

    def products(tile: int) -> int:
        return math.ceil(height / tile) * math.ceil(width / tile) * (tile + 2) ** 2

    return min(TILES, key=products)


@functools.cache
def _kernel_matrix(tile: int) -> torch.Tensor:
    """Transforms a kernel along one axis: (tile + 2, 3), float64. The other two matrices are winograd.c's.

    The products of polynomials of degree 2 and ``tile - 1``, evaluated at tile + 1 points and infinity; transposed,
    multiplication is convolution (S. Winograd, "Arithmetic Complexity of Computations", 1980).
    """
    points = [Fraction(point) for point in _POINTS[: tile + 1]]
    rows = [
        [point**power / math.prod(point - other for other in points if other != point) for power in range(3)]
        for point in points
    ]
    return torch.tensor([*([float(number) for number in row] for row in rows), [0.0, 0.0, 1.0]], dtype=torch.float64)
