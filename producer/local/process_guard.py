"""``python -m producer.local.process_guard PARENT COMMAND...``: run a command and stop it when process PARENT ends.

``filterfarm run`` cannot stop its servers if it is killed with SIGKILL. The guard is the parent of one of them: it
polls the process id PARENT, forwards SIGTERM, and exits with the command's exit code.
"""

import os
import subprocess
import sys

from workers.clients.signals import stop_on_signals, terminate

_POLL_S = 0.5

#: Time between SIGTERM and SIGKILL. A worker drains for 15 s.
_GRACE_S = 25.0


def main(parent: int, command: list[str]) -> int:
    """Run ``command`` until it ends or process ``parent`` is gone; returns its exit code, 128 + n after signal n."""
    stop = stop_on_signals()
    process = subprocess.Popen(command)
    while process.poll() is None:
        if stop.wait(_POLL_S) or os.getppid() != parent:
            terminate(process, _GRACE_S)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
