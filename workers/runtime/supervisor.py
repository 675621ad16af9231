"""``filterfarm worker``: one Celery process per device, started again when it ends on its own.

A broker that is killed under load can end a Celery worker with a traceback; the messages it held are delivered
again, so all that is needed is a new process. One that finds its device lost is not started again: where none is left,
whoever started this knows better what to do. SIGTERM and SIGINT drain every process and end with exit code 0.
Imports no torch: asking for the devices is a process of its own.
"""

import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from workers.clients.signals import stop_on_signals
from workers.contract.errors import BadSettings, DeviceLost, ExitCode, FilterfarmError
from workers.contract.settings import Settings
from workers.runtime.batch_size import max_batch_size

log = logging.getLogger(__name__)

#: The Celery process watches this process id, and drains when its supervisor is gone.
SUPERVISOR_VARIABLE = "FILTERFARM_SUPERVISOR_PID"

#: A process that lived this long was well; one that did not is started again after a pause that doubles.
_WELL_AFTER_S = 60.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0

#: After a drain, what a process gets to leave in, before it is killed.
_LEAVE_S = 8.0


@dataclass(kw_only=True)
class _Slot:
    """One device and the Celery process that serves it."""

    device: str
    process: "subprocess.Popen[bytes] | None" = None
    started: float = 0.0
    pause_s: float = _FIRST_PAUSE_S
    #: never again, where the device is lost
    due: float = field(default_factory=time.monotonic)


def serve(settings: Settings, *, all_gpus: bool, environ: Mapping[str, str]) -> int:
    """Run the workers of this machine until SIGTERM or SIGINT; returns the exit code.

    Raises BadSettings, and DeviceLost once no device is left that computes.
    """
    stop = stop_on_signals()
    slots = [_Slot(device=device) for device in _devices(settings, all_gpus)]
    while not stop.is_set():
        for slot in slots:
            _restart_dead(slot, settings, environ)
        if all(slot.due == math.inf for slot in slots):
            raise DeviceLost(f"{', '.join(slot.device for slot in slots)} cannot render; the log above says why")
        stop.wait(0.2)
    return _drain(slots, settings.drain_s)


def _devices(settings: Settings, all_gpus: bool) -> list[str]:
    asked = subprocess.run(
        [sys.executable, "-m", "workers.networks.devices"], capture_output=True, text=True, check=False
    )
    here = asked.stdout.split()
    if asked.returncode or not here:
        raise BadSettings(f"cannot ask torch for devices: {asked.stderr.strip().splitlines()[-1:]}")
    return here if all_gpus else [settings.choose_device(here)]


def _restart_dead(slot: _Slot, settings: Settings, environ: Mapping[str, str]) -> None:
    """Start the slot's process if it is not there and its pause is over."""
    now = time.monotonic()
    if slot.process is not None:
        code = slot.process.poll()
        if code is None:
            return
        slot.pause_s = _FIRST_PAUSE_S if now - slot.started > _WELL_AFTER_S else min(2 * slot.pause_s, _LONGEST_PAUSE_S)
        slot.due = now + slot.pause_s
        slot.process = None
        if code == ExitCode.DEVICE_LOST:
            slot.due = math.inf
            log.error("no worker on %s any more: it does not compute", slot.device)
            return
        log.warning("the worker on %s ended with code %d; starting another in %g s", slot.device, code, slot.pause_s)
    if now >= slot.due:
        slot.process = _start(slot.device, settings, environ)
        slot.started = now


def _start(device: str, settings: Settings, environ: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    batch = settings.batch or max_batch_size(device)
    mine = replace(settings, device=device)
    name = f"{device.replace(':', '')}-{os.getpid()}@%h"
    command = [sys.executable, "-m", "celery", "--quiet", "-A", "workers.runtime.app", "worker", "--hostname", name]
    # Twice the batch: while one batch computes, the threads of the last one upload and the next one's wait.
    command += ["--pool", "threads", "--concurrency", str(2 * batch)]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    log.info("starting a worker on %s with batches of up to %d", device, batch)
    variables = {**environ, **mine.to_environ(), SUPERVISOR_VARIABLE: str(os.getpid())}
    # A session of its own: Ctrl-C reaches the supervisor alone, which then drains in good order.
    return subprocess.Popen(command, env=variables, start_new_session=True)


def _drain(slots: list[_Slot], drain_s: float) -> int:
    running = [slot.process for slot in slots if slot.process is not None and slot.process.poll() is None]
    for process in running:
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + drain_s + _LEAVE_S
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning(
                "worker process %d did not leave in time and is killed; its messages are delivered again", process.pid
            )
            process.kill()
            process.wait()
    return 0


def main() -> int:
    """Entry point of ``python -m workers.runtime.supervisor [--all-gpus]``; settings come from the environment."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        return serve(Settings.from_environ(os.environ), all_gpus="--all-gpus" in sys.argv[1:], environ=os.environ)
    except FilterfarmError as error:
        print(f"filterfarm: {error}", file=sys.stderr)  # noqa: T201  # this is a command
        return int(error.exit_code)


if __name__ == "__main__":
    sys.exit(main())
