"""Which devices this machine can render on. ``python -m workers.devices`` prints them, one a line."""

import torch


def available() -> list[str]:
    """Every accelerator of this machine, best first, or ["cpu"] where there is none."""
    if torch.cuda.is_available():
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["mps"] if torch.backends.mps.is_available() else ["cpu"]


def describe(device: torch.device) -> str:
    """What people call the device: "NVIDIA L4", "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


if __name__ == "__main__":
    print("\n".join(available()))  # noqa: T201  # this is a command
