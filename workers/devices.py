"""Which devices this machine can render on. ``python -m workers.devices`` prints them, one a line."""

from typing import Literal

import torch

from workers.contract.tile import Precision

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
    """What a recipe's precision means on a device: ``auto`` takes bf16 only where the hardware multiplies it."""
    if wanted != "auto":
        return wanted
    return "bf16" if _has_bf16(device) else "fp32"


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= _AMPERE
    # AVX-512 has it in two extensions; elsewhere torch emulates it, many times slower than fp32.
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


if __name__ == "__main__":
    print("\n".join(available()))  # noqa: T201  # this is a command
