"""A fleet as in production: its own Redis and object store, and processes started by the ``filterfarm`` command."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import redis
from botocore.config import Config

from tests.injection import into_renderer
from tests.servers import rclone, seaweedfs, valkey
from workers.clients.presence import Presence
from workers.contract.keys import FARM_OBJECT, RedisKeys

COMMAND = str(Path(sys.executable).parent / "filterfarm")

#: One thread a process: several processes with a thread per core each are slower than with one thread each.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}

#: Seconds after which the messages of a killed worker are redelivered; as short as the settings allow.
VISIBILITY_TIMEOUT_S = 5


class Fleet:
    """Redis, object store, and the processes that a test starts. All of them are killed when the test ends."""

    def __init__(self, folder: Path, broker_url: str, endpoint: str, key: str, secret: str) -> None:
        self.folder = folder
        self.endpoint = endpoint
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "FILTERFARM_BROKER_URL": broker_url,
            "FILTERFARM_BUCKET": "s3://pictures/of/filters",
            "AWS_ENDPOINT_URL_S3": endpoint,
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "FILTERFARM_VISIBILITY_TIMEOUT_S": str(VISIBILITY_TIMEOUT_S),
            **ONE_THREAD,
        }
        self.s3 = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            config=Config(s3={"addressing_style": "path"}),
        )
        self.s3.create_bucket(Bucket="pictures")
        self.redis = redis.Redis.from_url(broker_url)
        self._running: list[subprocess.Popen[bytes]] = []

    @property
    def has_id(self) -> bool:
        """Whether a command has given the farm an id."""
        found = self.s3.list_objects_v2(Bucket="pictures", Prefix="of/filters/farm.json")
        return bool(found.get("KeyCount"))

    @property
    def names(self) -> RedisKeys:
        """The farm's keys in Redis, once a command has given it an id."""
        body = self.s3.get_object(Bucket="pictures", Key="of/filters/farm.json")["Body"].read()
        return RedisKeys(json.loads(body)["farm"])

    def run(self, *arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
        """Run one command to its end."""
        return run(*arguments, environ={**self.environ, **environ})

    def start(self, *arguments: str, **environ: str) -> "subprocess.Popen[bytes]":
        """Start a command. ``log(process)`` returns its output."""
        with (self.folder / f"{len(self._running)}.log").open("wb") as log:
            process = subprocess.Popen(
                [COMMAND, *arguments],
                env={**self.environ, **environ},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._running.append(process)
        return process

    def start_slow_worker(self, *, batch_s: float = 1.0, **environ: str) -> "subprocess.Popen[bytes]":
        """Start a worker whose batches, of four tiles, take at least ``batch_s`` seconds: faults occur during a job."""
        slow = into_renderer(self.folder / f"slow-{batch_s:g}", f"time.sleep({batch_s:g})")
        return self.start("worker", "--batch", "4", **slow, **environ)

    def log(self, process: "subprocess.Popen[bytes]") -> str:
        """Standard output and standard error of a started process so far."""
        return (self.folder / f"{self._running.index(process)}.log").read_text()

    def is_ready(self, worker: "subprocess.Popen[bytes]") -> bool:
        """Whether the Celery process of a started worker is registered in Redis."""
        if not self.has_id:
            return False
        return any(
            name.partition("@")[0].endswith(f"-{worker.pid}") for name in Presence(self.redis, self.names).workers()
        )

    def submit(self, *arguments: str, **environ: str) -> dict[str, Any]:
        """Submit a job. Returns the command's JSON."""
        done = self.run("submit", *arguments, "--json", **environ)
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def status(self, job: str) -> dict[str, Any]:
        """Status of a job: the command's JSON. Each call starts a process; see ``tests.e2e.whole`` for polling."""
        done = self.run("status", job, "--json")
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def objects(self) -> dict[str, tuple[str, bytes]]:
        """Key below the prefix -> (last modification, content) of every object in the bucket but the farm's id."""
        found: dict[str, tuple[str, bytes]] = {}
        for page in self.s3.get_paginator("list_objects_v2").paginate(Bucket="pictures"):
            for entry in page.get("Contents", []):
                key = entry["Key"]
                assert key.startswith("of/filters/"), key
                body = self.s3.get_object(Bucket="pictures", Key=key)["Body"].read()
                found[key.removeprefix("of/filters/")] = (str(entry["LastModified"]), body)
        found.pop(FARM_OBJECT, None)
        return found

    def put(self, key: str, body: bytes) -> None:
        """Put an object below the prefix."""
        self.s3.put_object(Bucket="pictures", Key=f"of/filters/{key}", Body=body)

    def outstanding(self) -> int:
        """Number of messages in queues and with workers."""
        queued = sum(int(self.redis.llen(queue)) for queue in self.redis.scan_iter("filterfarm.render*"))
        return queued + int(self.redis.hlen(self.names.unacked))

    def stop_all(self) -> None:
        """Send SIGKILL to all started processes and their descendants."""
        for process in self._running:
            kill_group(process)
        self.redis.close()


@contextmanager
def fleet(folder: Path, store: str) -> Iterator[Fleet]:
    """A fleet with no processes yet, an empty Redis and an empty bucket on ``rclone`` or ``seaweedfs``.

    ``public`` is a SeaweedFS of which anyone may read each object.
    """
    with ExitStack() as stack:
        for name in ("queue", "store"):
            (folder / name).mkdir(exist_ok=True)
        broker_url = stack.enter_context(valkey(folder / "queue"))
        serve = rclone if store == "rclone" else partial(seaweedfs, public=store == "public")
        made = Fleet(folder, broker_url, *stack.enter_context(serve(folder / "store")))
        stack.callback(made.stop_all)
        yield made


def run(*arguments: str, environ: dict[str, str], cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Run one ``filterfarm`` command to its end. ``environ`` is its whole environment but for the number of threads."""
    return subprocess.run(
        [COMMAND, *arguments],
        env={**ONE_THREAD, **environ},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def wait_for(what: str, condition: Callable[[], object], timeout_s: float) -> None:
    """Return once ``condition`` holds. AssertionError with ``what`` after ``timeout_s`` seconds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}"
        time.sleep(0.1)


def descendants(pid: int) -> list[int]:
    """Process ids of all descendants of a process, nearest first."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found = list(parents.get(pid, []))
    for child in found:
        found.extend(parents.get(child, []))
    return found


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        state = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def kill_group(process: "subprocess.Popen[bytes]") -> None:
    """Send SIGKILL to a process and all its descendants, as if their machine had lost power."""
    for pid in [process.pid, *descendants(process.pid)]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait(10)
