"""The devices of this machine. ``python -m workers.networks.devices`` prints them, one per line.

With ``--examine``, a line says what each device can do, the processor included.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Literal

import torch
from torch import nn

from workers.contract.errors import one_line
from workers.contract.records import Precision

#: Compute capability of Ampere, the first CUDA devices with bf16 in hardware.
_AMPERE = (8, 0)


def available() -> list[str]:
    """Every accelerator of this machine, best first; ["cpu"] if there is none."""
    if torch.cuda.is_available():
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["mps"] if torch.backends.mps.is_available() else ["cpu"]


def describe(device: torch.device) -> str:
    """Name of the device for people: "NVIDIA L4", "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def precision(wanted: Literal["auto", "fp32", "bf16"], device: torch.device) -> Precision:
    """The precision to render with on a device: ``auto`` is bf16 where the device is faster in it, otherwise fp32."""
    if wanted != "auto":
        return wanted
    return "bf16" if _is_faster_in_bf16(device) else "fp32"


@contextmanager
def exact() -> Iterator[None]:
    """Context in which CUDA's float32 convolutions do not use TF32, torch's default from Ampere on."""
    cudnn = torch.backends.cudnn
    before, cudnn.allow_tf32 = cudnn.allow_tf32, False
    try:
        yield
    finally:
        cudnn.allow_tf32 = before


def share_memory(device: torch.device, processes: int) -> None:
    """Limit this process to its share of a GPU's memory, which ``processes`` share; 0 counts as one.

    Without a limit, torch keeps freed memory, and the batches of one process would not fit beside those of another.
    """
    if device.type == "cuda" and processes > 1:
        torch.cuda.set_per_process_memory_fraction(1.0 / processes, device)


def check(device: torch.device) -> None:
    """Compute a small convolution and its gradient on the device.

    Raises torch's errors, and ArithmeticError if the gradient is wrong. A listed GPU may be unusable: it has failed,
    its memory is full, or this build of torch does not support it.
    """
    conv = nn.Conv2d(3, 4, 3, bias=False).to(device)
    nn.init.ones_(conv.weight)
    picture = torch.ones((1, 3, 8, 8), device=device, requires_grad=True)
    conv(picture).sum().backward()
    gradient = float(torch.linalg.vector_norm(picture.grad, ord=1))
    if gradient != 4 * 6 * 6 * 27:  # 4 maps of 6 x 6 values, with 27 inputs each
        raise ArithmeticError(f"the gradient of a sum of convolutions of ones is {gradient:g}, not {4 * 6 * 6 * 27}")


def is_full(error: Exception) -> bool:
    """True if the error means that the device is out of memory.

    CUDA raises OutOfMemoryError; MPS and the CPU's allocator raise RuntimeError with these words.
    """
    words = ("out of memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(text in str(error) for text in words)


def has_failed(error: Exception) -> bool:
    """True for a fault of the device, after which every later call of this process fails too."""
    return isinstance(error, torch.AcceleratorError) and not is_full(error)


def _is_faster_in_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= _AMPERE
    # On CPUs only AMX is faster in bf16. AVX-512's bf16 gains 5 % in VGG16's deepest layer (36 ms instead of 38) and
    # loses in depthwise convolutions; other CPUs emulate it. The operating system must grant AMX to the process.
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx()


#: The convolution whose speed is reported: pictures, channels, side of the map in pixels; and how often it is timed.
_TIMED, _TIMES = (8, 64, 56), 5


def examine(name: str) -> str:
    """One line: what the device is, whether it computes, in which precision tiles are rendered, how fast it is.

    The speed is that of one 3 x 3 convolution of 64 channels, forward and backward to its input, in GFLOP/s.
    """
    device = torch.device(name)
    try:
        check(device)
        chosen = precision("auto", device)
        speed = f"{_convolution_gflop_s(device, chosen):.0f} GFLOP/s"
    except (RuntimeError, AssertionError, ArithmeticError) as error:
        return f"{name} does not compute: {type(error).__name__}: {one_line(error, 160)}"
    described = name if device.type == "cpu" else f"{name} ({describe(device)})"
    return f"{described} renders in {chosen}, a convolution at {speed}"


def _convolution_gflop_s(device: torch.device, chosen: Precision) -> float:
    count, channels, side = _TIMED
    dtype = torch.bfloat16 if chosen == "bf16" else torch.float32
    conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False, device=device, dtype=dtype)
    pictures = torch.ones((count, channels, side, side), device=device, dtype=dtype, requires_grad=True)
    seconds = []
    for _ in range(1 + _TIMES):
        began = time.perf_counter()
        (gradient,) = torch.autograd.grad(conv(pictures).sum(), pictures)
        gradient.sum().item()  # waits for the device
        seconds.append(time.perf_counter() - began)
    return 4e-9 * count * channels**2 * 9 * side**2 / median(seconds[1:])


if __name__ == "__main__":
    if sys.argv[1:] == ["--examine"]:
        names = dict.fromkeys([*available(), "cpu"])
        print("\n".join(map(examine, names)))  # noqa: T201  # this is a command
    else:
        print("\n".join(available()))  # noqa: T201  # this is a command
