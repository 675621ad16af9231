"""The compiled code that fits this processor, found and loaded once."""

import ctypes
import functools
import importlib.util
import logging

import torch

log = logging.getLogger(__name__)

#: What winograd.c is compiled for, of what torch says that a processor can.
_WINOGRAD = {"AVX2": "_winograd_avx2", "AVX512": "_winograd_avx512"}

_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_long


@functools.cache
def winograd(*, half: bool = False) -> ctypes.CDLL | None:
    """winograd.c for float32 or bfloat16 maps, or None where there is none for this processor."""
    name = _WINOGRAD.get(torch.backends.cpu.get_cpu_capability())
    name = f"{name}_half" if name and half else name
    library = _load(name, "3 x 3 convolutions take about twice as long as they could") if name else None
    if library is not None:
        library.convolve.argtypes = [_POINTER] * 5 + [_NUMBER] * 6 + [ctypes.c_int, ctypes.c_float]
    return library


@functools.cache
def amx() -> ctypes.CDLL | None:
    """amx.c, depthwise.c and pool.c, or None where there is no matrix unit, or none that the system lets one use."""
    if not torch.cpu._is_amx_tile_supported():
        return None
    library = _load("_amx", "networks in bf16 take about twice as long as they could")
    if library is None or library.ask() != 0:
        return None
    library.convolve.argtypes = [_POINTER, _NUMBER, _NUMBER]
    library.pool.argtypes = library.unpool.argtypes = [_POINTER] * 3 + [_NUMBER] * 9
    library.convolve_each.argtypes = [_POINTER] * 5 + [_NUMBER] * 11 + [ctypes.c_float]
    library.turn_each.argtypes = [_POINTER] * 4 + [_NUMBER] * 11
    return library


def address(tensor: torch.Tensor | None = None) -> int | None:
    """Where a tensor lies, or null for none."""
    return None if tensor is None else tensor.data_ptr()


def _load(name: str, loss: str) -> ctypes.CDLL | None:
    """The module of that name beside this; where installing had no C compiler, the log says what is lost."""
    module = f"{__package__}.{name}"
    try:
        found = importlib.util.find_spec(module)
        if found is None or found.origin is None:
            raise OSError("it was installed without a C compiler")
        return ctypes.CDLL(found.origin)
    except OSError as error:
        log.warning("%s: no %s: %s", loss, module, error)
        return None
