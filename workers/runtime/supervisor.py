"""``filterfarm worker``: supervises the Celery processes of each device and restarts those that end.

A broker that is killed under load can end a Celery process with a traceback. Its messages are redelivered, so a restart
is enough. A process that ends because of its device, its machine or its rights in Redis is not restarted; if none is
left, the supervisor ends with the same exit code, so that its service manager can replace the machine. SIGTERM and
SIGINT drain all processes; the exit code is then 0.
Torch is not imported here: a separate process lists the devices.
"""

import logging
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from workers.clients.logs import log_to_stderr
from workers.clients.processes import list_devices, python_module
from workers.clients.signals import stop_on_signals
from workers.contract.errors import BrokerDenied, DeviceLost, ExitCode, FilterfarmError, MachineUnfit
from workers.contract.settings import Settings
from workers.runtime.batch_size import max_batch_size, process_count

log = logging.getLogger(__name__)

#: The Celery process drains when the process with this id is no longer its parent.
SUPERVISOR_VARIABLE = "FILTERFARM_SUPERVISOR_PID"

#: A process that ran for this many seconds is restarted after the first delay. If it ends earlier, the delay doubles.
_STABLE_AFTER_S = 60.0
_FIRST_DELAY_S, _LONGEST_DELAY_S = 1.0, 30.0

#: Exit codes of processes that would end again for the same reason, and the errors that the supervisor then raises.
FINAL = {
    ExitCode.DEVICE_LOST: DeviceLost,
    ExitCode.MACHINE_UNFIT: MachineUnfit,
    ExitCode.BROKER_DENIED: BrokerDenied,
}

#: Seconds between the end of the drain and SIGKILL.
_EXIT_S = 8.0


@dataclass(kw_only=True)
class _Slot:
    """One of the Celery processes that serve a device."""

    device: str
    #: of those of the device, from 0, and how many there are
    number: int
    count: int
    process: "subprocess.Popen[bytes] | None" = None
    started: float = 0.0
    delay_s: float = _FIRST_DELAY_S
    #: monotonic time of the next start; infinite if the process ended with one of FINAL
    start_at: float = field(default_factory=time.monotonic)
    #: exit code of its last process
    code: int = 0


def serve(settings: Settings, farm: str, *, all_gpus: bool, environ: Mapping[str, str]) -> int:
    """Run the workers of this machine until SIGTERM or SIGINT; returns the exit code.

    Raises BadSettings, and the errors of FINAL once no process is left.
    """
    stop = stop_on_signals()
    devices = _devices(settings, all_gpus)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts = [settings.processes or process_count(device, cores=cores, devices=len(devices)) for device in devices]
    slots = [
        _Slot(device=device, number=number, count=count)
        for device, count in zip(devices, counts, strict=True)
        for number in range(count)
    ]
    while not stop.is_set():
        for slot in slots:
            _restart_dead(slot, settings, farm, environ)
        if all(slot.start_at == math.inf for slot in slots):
            final = FINAL[ExitCode(slots[0].code)]
            raise final(f"{', '.join(devices)} cannot render; the log above says why")
        stop.wait(0.2)
    return _drain(slots, settings.drain_s)


def _devices(settings: Settings, all_gpus: bool) -> list[str]:
    here = list_devices()
    return here if all_gpus else [settings.choose_device(here)]


def _restart_dead(slot: _Slot, settings: Settings, farm: str, environ: Mapping[str, str]) -> None:
    """Start the process of a slot if it is not running and its delay is over."""
    now = time.monotonic()
    if slot.process is not None:
        code = slot.process.poll()
        if code is None:
            return
        slot.delay_s = (
            _FIRST_DELAY_S if now - slot.started > _STABLE_AFTER_S else min(2 * slot.delay_s, _LONGEST_DELAY_S)
        )
        slot.start_at = now + slot.delay_s
        slot.process = None
        slot.code = code
        if code in FINAL:
            slot.start_at = math.inf
            log.error("no worker is started any more device=%s code=%d", slot.device, code)
            return
        log.warning("worker ended device=%s code=%d restart_in_s=%g", slot.device, code, slot.delay_s)
    if now >= slot.start_at:
        slot.process = _start(slot, settings, farm, environ)
        slot.started = now


def _start(slot: _Slot, settings: Settings, farm: str, environ: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    batch = settings.batch or max_batch_size(slot.device)
    mine = replace(settings, device=slot.device, processes=slot.count)
    process = f"{os.getpid()}.{slot.number}" if slot.count > 1 else f"{os.getpid()}"
    name = f"{slot.device.replace(':', '')}-{process}@{settings.machine or socket.gethostname()}"
    # Twice the batch: while one batch is on the device, the threads of the previous one upload and the next one waits.
    command = python_module("workers.runtime", farm, name, str(2 * batch))
    log.info("starting worker device=%s process=%d of %d batch=%d", slot.device, slot.number, slot.count, batch)
    variables = {**environ, **mine.to_environ(), SUPERVISOR_VARIABLE: str(os.getpid())}
    # A session of its own, so that Ctrl-C reaches the supervisor alone, which then drains the processes.
    return subprocess.Popen(command, env=variables, start_new_session=True)


def _drain(slots: list[_Slot], drain_s: float) -> int:
    running = [slot.process for slot in slots if slot.process is not None and slot.process.poll() is None]
    for process in running:
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + drain_s + _EXIT_S
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning(
                "killing worker pid=%d reason=not drained in time; its messages will be redelivered", process.pid
            )
            process.kill()
            process.wait()
    return 0


def main() -> int:
    """Entry point of ``python -m workers.runtime.supervisor FARM [--all-gpus]``; settings come from the environment."""
    log_to_stderr()
    try:
        farm, *options = sys.argv[1:]
        return serve(Settings.from_environ(os.environ), farm, all_gpus="--all-gpus" in options, environ=os.environ)
    except FilterfarmError as error:
        print(f"filterfarm: {error}", file=sys.stderr)  # noqa: T201  # this is a command
        return int(error.exit_code)


if __name__ == "__main__":
    sys.exit(main())
