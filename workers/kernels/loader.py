"""Chooses, loads and checks the compiled convolutions for this processor.

The environment variable ``FILTERFARM_KERNELS`` is ``auto`` (the default: compiled code where it fits the processor) or
``off`` (torch's own convolutions).
"""

import ctypes
import functools
import importlib.util
import logging
import os

import torch
from torch import nn
from torch.nn import functional as F

log = logging.getLogger(__name__)

#: The library for each CPU capability as torch names it.
_WINOGRAD = {"AVX2": "_winograd_avx2", "AVX512": "_winograd_avx512"}

_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_long

#: Largest accepted difference from torch's results, relative to the largest of them. Rounding causes about 1e-6.
_TOLERANCE = 1e-4


@functools.cache
def winograd() -> ctypes.CDLL | None:
    """The library of winograd.c for this processor; loaded and checked once per process.

    None if it is switched off, if there is none for this processor, or if loading or checking it failed; the log then
    gives the reason. Raises ValueError if ``FILTERFARM_KERNELS`` is neither ``auto`` nor ``off``.
    """
    choice = os.environ.get("FILTERFARM_KERNELS", "auto")
    if choice not in ("auto", "off"):
        raise ValueError(f"FILTERFARM_KERNELS is {choice[:80]!r}; it must be 'auto' or 'off'")
    name = _WINOGRAD.get(torch.backends.cpu.get_cpu_capability())
    if choice == "off" or name is None:
        return None
    module = f"{__package__}.{name}"
    try:
        found = importlib.util.find_spec(module)
        if found is None or found.origin is None:
            raise OSError("installed without a C compiler")
        library = load(found.origin)
    except OSError as error:
        log.warning("3 x 3 convolutions take about twice as long as they could: module=%s reason=%s", module, error)
        return None
    error_ratio = largest_error(library)
    if not error_ratio < _TOLERANCE:  # NaN is an error too
        log.warning("compiled convolutions are wrong, using torch's: module=%s error=%g", module, error_ratio)
        return None
    return library


def load(path: str) -> ctypes.CDLL:
    """A compiled winograd.c with its argument types declared. Raises OSError if it cannot be loaded."""
    library = ctypes.CDLL(path)
    library.convolve.argtypes = [_POINTER] * 5 + [_NUMBER] * 6 + [ctypes.c_int, ctypes.c_float]
    return library


def largest_error(library: ctypes.CDLL) -> float:
    """The largest difference from torch's convolution, of values and gradients, relative to the largest of these.

    Convolves two images of 32 channels with each tile size, followed by a ReLU.
    """
    from workers.kernels.winograd import TILES, WinogradConv  # which imports this module

    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):  # which leaves the global generator as it is
        conv = nn.Conv2d(32, 32, 3, padding=1).requires_grad_(False)
    for parameter in conv.parameters():
        parameter.uniform_(-1, 1, generator=generator)
    errors = []
    for size in TILES:  # a map of the tile's own size is covered by one such tile
        with torch.enable_grad():
            x = torch.randn(2, 32, size, size, generator=generator).requires_grad_(True)
            got = WinogradConv(conv, library).with_relu(float("inf"))(x)
            wanted = F.relu(F.conv2d(x, conv.weight, conv.bias, padding=1))
            direction = torch.randn(wanted.shape, generator=generator)
            pairs = [(got, wanted), tuple(torch.autograd.grad(y, x, direction)[0] for y in (got, wanted))]
        errors += [(mine - torchs).abs().max() / torchs.abs().max() for mine, torchs in pairs]
    return float(torch.stack(errors).detach().max())


def address(tensor: torch.Tensor | None = None) -> int | None:
    """The tensor's address in memory, or a null pointer for None."""
    return None if tensor is None else tensor.data_ptr()
