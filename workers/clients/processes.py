"""Questions that a separate Python process answers, so that the asking one need not import torch."""

import subprocess
import sys

from workers.contract.errors import BadSettings


def list_devices() -> list[str]:
    """This machine's devices as torch names them, the best first; never empty. Raises BadSettings if torch fails."""
    asked = subprocess.run(
        [sys.executable, "-m", "workers.networks.devices"], capture_output=True, text=True, check=False
    )
    devices = asked.stdout.split()
    if asked.returncode or not devices:
        reason = asked.stderr.strip().splitlines()[-1:] or ["no device"]
        raise BadSettings(f"torch does not load: {reason[0][:200]}; install filterfarm once more")
    return devices
