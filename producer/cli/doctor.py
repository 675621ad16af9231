"""``filterfarm doctor``: checks this machine and the farm, and says how to fix what fails."""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import redis

from workers.clients.broker import connect
from workers.clients.broker_access import broker_errors, check_broker
from workers.clients.identity import identify
from workers.clients.presence import WORKER_SEEN_S, Presence
from workers.clients.processes import examine_devices
from workers.clients.storage import Store
from workers.contract.errors import BadSettings, DeviceLost, ExitCode, FilterfarmError, ServerFailed
from workers.contract.keys import RedisKeys
from workers.contract.settings import Settings

_PACKAGES = ("filterfarm", "torch", "torchvision", "timm", "celery", "kombu", "redis", "boto3", "numpy", "pillow")

#: Less free space than this, in MiB, is too little for a network's weights.
_FEW_MIB = 600


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Result of one check; ``code`` is ExitCode.OK if it passed."""

    what: str
    text: str
    code: ExitCode = ExitCode.OK


def examine(environ: Mapping[str, str]) -> list[Finding]:
    """Check packages, devices, embedded servers, and the farm that ``environ`` names."""
    servers = _look("embedded servers", _servers)
    findings = [_look("packages", _packages), _look("devices", _devices), servers]
    try:
        settings = Settings.from_environ(environ)
    except BadSettings as error:
        return [*findings, Finding(what="settings", text=str(error), code=error.exit_code)]
    findings.append(_look("folders", lambda: _folders(settings, environ)))
    if not settings.bucket_url:
        text = (
            "not configured; 'filterfarm run' needs none. For a fleet set FILTERFARM_BROKER_URL and FILTERFARM_BUCKET"
        )
        return [*findings, Finding(what="fleet", text=text)]
    # A farm has its own servers, so that machines of a fleet are installed without the extra "local".
    findings[2] = replace(servers, code=ExitCode.OK)
    findings.append(_look("bucket", lambda: _bucket(settings)))
    findings.append(_look("broker", lambda: _broker(settings)))
    return findings


def _look(what: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what=what, text=look())
    except FilterfarmError as error:
        return Finding(what=what, text=str(error), code=error.exit_code)


def _packages() -> str:
    try:
        return ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    except PackageNotFoundError as error:
        raise ServerFailed(f"the package {error.name} is missing; reinstall filterfarm with pip") from error


def _devices() -> str:
    lines = examine_devices()
    if any("does not compute" in line for line in lines):
        raise DeviceLost("; ".join(lines))
    return "; ".join(lines)


def _servers() -> str:
    from producer.local.programs import rclone_program, valkey_program

    return f"{valkey_program().name}, {rclone_program().name}"


def _folders(settings: Settings, environ: Mapping[str, str]) -> str:
    """The folders for checkpoints and for torchvision's weights, and the space on their disks."""
    torch_home = environ.get("TORCH_HOME") or f"{environ.get('XDG_CACHE_HOME') or '~/.cache'}/torch"
    described = []
    for variable, folder in (
        (settings.variable("cache_dir"), settings.cache_dir.expanduser()),
        ("TORCH_HOME", Path(torch_home).expanduser() / "hub" / "checkpoints"),
    ):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                free_mib = shutil.disk_usage(folder).free >> 20
        except OSError as error:
            raise BadSettings(
                f"cannot write to {folder} ({error.strerror}); set {variable} to a folder that can be written"
            ) from error
        if free_mib < _FEW_MIB:
            raise BadSettings(f"the disk of {folder} has {free_mib} MiB left; free some, or set {variable}")
        described.append(f"{folder} ({free_mib / 1024:.0f} GiB free)")
    return ", ".join(described)


def _bucket(settings: Settings) -> str:
    Store(settings, retry_s=2.0).check_writable()
    return f"{settings.place} can be listed, written and deleted"


def _broker(settings: Settings) -> str:
    with broker_errors(settings):
        client = connect(settings, retries=1)
        check_broker(client)
        names = RedisKeys(identify(settings, Store(settings, retry_s=2.0), client))
        workers = sum(ago <= WORKER_SEEN_S for ago in Presence(client, names).workers().values())
        try:
            policy = str(client.info("memory").get("maxmemory_policy", "unknown"))
        except redis.exceptions.NoPermissionError:  # managed servers refuse INFO, and the farm does not need it
            policy = "unknown"
    if policy not in {"noeviction", "unknown"}:
        raise BadSettings(
            f"Redis at {settings.public_broker_url} may evict messages (maxmemory-policy {policy}); "
            "set it to noeviction"
        )
    return f"{settings.public_broker_url} answers; workers seen: {workers}"
