"""Python processes that filterfarm starts, and a question that one answers, so that the asker need not import torch."""

import subprocess
import sys

from workers.contract.errors import BadSettings


def python_module(name: str, *arguments: str) -> list[str]:
    """The command ``python -P -m NAME ARGUMENTS``: without ``-P`` a module in the current folder would precede ours."""
    return [sys.executable, "-P", "-m", name, *arguments]


def list_devices() -> list[str]:
    """This machine's devices as torch names them, the best first; never empty. Raises BadSettings if torch fails."""
    return _ask_torch()


def examine_devices() -> list[str]:
    """A line on each device, the processor included: what it is, whether and how fast it computes. Raises as above."""
    return _ask_torch("--examine")


def _ask_torch(*arguments: str) -> list[str]:
    command = python_module("workers.networks.devices", *arguments)
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    devices = asked.stdout.splitlines()
    if asked.returncode or not devices:
        reason = asked.stderr.strip().splitlines()[-1:] or ["no device"]
        raise BadSettings(f"torch does not load: {reason[0][:200]}; install filterfarm once more")
    return devices
