"""``python -m producer.local.process_guard PARENT COMMAND...``: run a command that must not outlive its parent process.

A server started by ``filterfarm run`` would go on for ever if that were killed with SIGKILL, which runs no clean-up.
The leash is its direct parent: it watches the process id PARENT, passes SIGTERM on, and ends with the command's code.
"""

import os
import subprocess
import sys

from workers.clients.signals import stop_on_signals, terminate

_LOOK_EVERY_S = 0.5

#: From SIGTERM to SIGKILL: a worker drains for 15 s.
_GRACE_S = 25.0


def main(parent: int, command: list[str]) -> int:
    """Run ``command`` until it ends, or is stopped because process ``parent`` is gone; returns its exit code."""
    stop = stop_on_signals()
    process = subprocess.Popen(command)
    while process.poll() is None:
        if stop.wait(_LOOK_EVERY_S) or os.getppid() != parent:
            terminate(process, _GRACE_S)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
