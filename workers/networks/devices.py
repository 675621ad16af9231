"""Which devices this machine can render on. ``python -m workers.networks.devices`` prints them, one a line."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from workers.contract.records import Precision

#: The first CUDA devices with bf16 in hardware: Ampere's.
_AMPERE = (8, 0)


def available() -> list[str]:
    """Every accelerator of this machine, best first, or ["cpu"] where there is none."""
    if torch.cuda.is_available():
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["mps"] if torch.backends.mps.is_available() else ["cpu"]


def describe(device: torch.device) -> str:
    """What people call the device: "NVIDIA L4", "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def precision(wanted: Literal["auto", "fp32", "bf16"], device: torch.device) -> Precision:
    """What a recipe's precision means on a device: ``auto`` takes bf16 only where that is faster."""
    if wanted != "auto":
        return wanted
    return "bf16" if _is_faster_in_bf16(device) else "fp32"


@contextmanager
def exact() -> Iterator[None]:
    """Within it, CUDA's convolutions in float32 are that, and not TF32, which torch takes by itself from Ampere on."""
    cudnn = torch.backends.cudnn
    before, cudnn.allow_tf32 = cudnn.allow_tf32, False
    try:
        yield
    finally:
        cudnn.allow_tf32 = before


def check(device: torch.device) -> None:
    """Convolve something on the device, there and back; raises what torch does where that is impossible.

    A GPU may be listed and yet compute nothing: it has failed, its memory is all taken, or torch is too old for it.
    """
    conv = nn.Conv2d(3, 4, 3, bias=False).to(device)
    nn.init.ones_(conv.weight)
    picture = torch.ones((1, 3, 8, 8), device=device, requires_grad=True)
    conv(picture).sum().backward()
    gradient = float(torch.linalg.vector_norm(picture.grad, ord=1))
    if gradient != 4 * 6 * 6 * 27:  # each of 36 values of four maps sees 27 numbers
        raise ArithmeticError(f"the gradient of a sum of convolutions of ones is {gradient:g}, not {4 * 6 * 6 * 27}")


def is_full(error: Exception) -> bool:
    """Whether the error says that the device's memory does not suffice.

    CUDA has one of its own for it; MPS and the CPU's allocator raise RuntimeError with these words.
    """
    words = ("out of memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(text in str(error) for text in words)


def has_failed(error: Exception) -> bool:
    """Whether the error is a device's own, after which every later call of this process would fail as well."""
    return isinstance(error, torch.AcceleratorError) and not is_full(error)


def _is_faster_in_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= _AMPERE
    # The matrix unit alone: by AVX-512's bf16 VGG16's deepest layer takes 36 ms on an Intel processor that takes 38 in
    # fp32, and other networks' depthwise convolutions take longer. Elsewhere torch emulates it. Having the unit is not
    # all: the system has to let a process use it.
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx()


if __name__ == "__main__":
    print("\n".join(available()))  # noqa: T201  # this is a command
