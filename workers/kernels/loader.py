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

from workers.kernels.winograd import TILES, WinogradConv, suits

log = logging.getLogger(__name__)

#: The library for each CPU capability as torch names it.
_WINOGRAD = {"AVX2": "_winograd_avx2", "AVX512": "_winograd_avx512"}

_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_long

#: Largest accepted difference from torch's results, relative to the largest of them. Rounding causes about 1e-6.
_TOLERANCE = 1e-4


def compiled(conv: nn.Module) -> nn.Module:
    """The compiled form of a convolution, or the module itself if it does not suit or there is no library."""
    if not suits(conv):
        return conv
    found = library()
    return conv if found is None else WinogradConv(conv, found)


@functools.cache
def library() -> ctypes.CDLL | None:
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
        loaded = load(found.origin)
    except OSError as error:
        log.warning("3 x 3 convolutions take about twice as long as they could: module=%s reason=%s", module, error)
        return None
    error_ratio = largest_error(loaded)
    if not error_ratio < _TOLERANCE:  # NaN is an error too
        log.warning("compiled convolutions are wrong, using torch's: module=%s error=%g", module, error_ratio)
        return None
    return loaded


def load(path: str) -> ctypes.CDLL:
    """A compiled winograd.c with its argument types declared. Raises OSError if it cannot be loaded."""
    loaded = ctypes.CDLL(path)
    loaded.convolve.argtypes = [_POINTER] * 5 + [_NUMBER] * 6 + [ctypes.c_int, ctypes.c_float]
    return loaded


def largest_error(loaded: ctypes.CDLL) -> float:
    """The largest difference from torch's convolution, of values and gradients, relative to the largest of these.

    Convolves two images of 32 channels with each tile size, followed by a ReLU.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):  # the global generator keeps its state
        conv = nn.Conv2d(32, 32, 3, padding=1).requires_grad_(False)
    for parameter in conv.parameters():
        parameter.uniform_(-1, 1, generator=generator)
    errors = []
    for size in TILES:  # a map of the tile's own size is covered by one such tile
        with torch.enable_grad():
            x = torch.randn(2, 32, size, size, generator=generator).requires_grad_(True)
            got = WinogradConv(conv, loaded).with_relu(float("inf"))(x)
            wanted = F.relu(F.conv2d(x, conv.weight, conv.bias, padding=1))
            direction = torch.randn(wanted.shape, generator=generator)
            pairs = [(got, wanted), tuple(torch.autograd.grad(y, x, direction)[0] for y in (got, wanted))]
        errors += [(mine - torchs).abs().max() / torchs.abs().max() for mine, torchs in pairs]
    return float(torch.stack(errors).detach().max())
