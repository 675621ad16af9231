"""The Celery worker of one device: its application, its logging, and its end after the supervisor's."""

import logging
import os
import signal
import threading
import time
import warnings
from typing import Any

from celery import signals
from celery.exceptions import SecurityWarning

from workers.clients.broker import make_app
from workers.clients.logs import log_to_stderr
from workers.contract.errors import ExitCode
from workers.contract.keys import RedisKeys
from workers.contract.settings import Settings
from workers.runtime import tasks
from workers.runtime.supervisor import SUPERVISOR_VARIABLE


def serve(farm: str, name: str, concurrency: int) -> int:
    """Run a worker with ``concurrency`` task threads until SIGTERM; returns its exit code. Settings come from the
    environment. ``farm`` is the farm's id; ``name`` is unique in it.

    Celery's own command line is not used: it takes options from variables such as BROKER_URL and APP, and imports from
    the current folder.
    """
    # Celery warns root of pickled messages; only JSON is accepted here.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    signals.setup_logging.connect(_set_up_logging)
    settings = Settings.from_environ(os.environ)
    names = RedisKeys(farm)
    app = make_app(settings, names)
    processes = tasks.install(app, settings, names)
    if SUPERVISOR_VARIABLE in os.environ:
        threading.Thread(target=_drain_after, args=(int(os.environ[SUPERVISOR_VARIABLE]),), daemon=True).start()
    worker = app.Worker(
        hostname=name,
        pool="threads",
        concurrency=concurrency,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )
    worker.start()
    if any(process.unfit for process in processes):
        return int(ExitCode.MACHINE_UNFIT)
    return int(worker.exitcode or 0)


def _set_up_logging(**_: Any) -> None:
    log_to_stderr()
    # One line per batch is enough: not Celery's two per tile, nor its tracebacks of requeued messages.
    logging.getLogger("celery.app.trace").setLevel(logging.ERROR)
    logging.getLogger("celery.worker.strategy").setLevel(logging.WARNING)


def _drain_after(supervisor: int) -> None:
    """Drain once the supervisor has ended, because nothing else would stop this process."""
    while os.getppid() == supervisor:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)
