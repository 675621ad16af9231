"""Settings of the process without which a device wastes much of its time. Called once, before anything is computed.

The CPU's were measured on two AVX-512 cores, batches of 8: VGG16's block1_conv2 at 150 px takes 39 ms per tile and step
without either and 11 ms with both, EfficientNet-Lite0's head at 128 px 200 ms and 25 ms.
"""

import ctypes

import torch

# glibc's <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def tune() -> None:
    """Keep freed memory, flush denormal numbers to zero, and let cuDNN try its algorithms.

    glibc returns every large tensor to the system when it is freed, and the next step pays for fresh pages again.
    Gradients of barely active filters shrink into the denormal range, where x86 computes a hundred times slower.
    Both are inherited by the threads started later. Where the C library is not glibc, the first is left out.
    On CUDA a layer's batches have one shape, step after step, so that it pays to time cuDNN's algorithms on the first.
    (Convolutions in float32 multiply in TF32 there, where the hardware does: torch's own default. What is recorded does
    not, see devices.exact.)
    """
    torch.backends.cudnn.benchmark = True
    torch.set_flush_denormal(True)
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
