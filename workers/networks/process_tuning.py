"""Process-wide performance settings of memory allocation, denormal numbers and cuDNN.

Measured effect of the CPU's two on two AVX-512 cores with batches of 8, in ms per tile and step: VGG16's block1_conv2
at 150 px 11 instead of 39, EfficientNet-Lite0's head at 128 px 25 instead of 200.
"""

import ctypes

import torch

# Constants of glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def tune() -> None:
    """Keep freed memory, flush denormal numbers to zero, and let cuDNN time its algorithms.

    Call it once, before the first tensor is computed: threads inherit the first two when they start.

    - glibc returns large tensors to the system when they are freed, and every step pays for fresh pages. Without
      glibc this setting is skipped.
    - Gradients of barely active filters become denormal numbers, with which x86 computes a hundred times slower.
    - On CUDA all batches of a layer have one shape, so that cuDNN's timing of its algorithms is paid once.

    float32 convolutions on CUDA use TF32, torch's default, except for recorded activations (:func:`devices.exact`).
    """
    torch.backends.cudnn.benchmark = True
    torch.set_flush_denormal(True)
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
