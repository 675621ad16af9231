"""Everything a process reads from its environment, in one frozen object, checked together and once.

Credentials are not in here: boto3 finds the AWS ones by itself, and the broker's stand in its URL.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import urlsplit

from kombu.utils.url import maybe_sanitize_url

from workers.contract.errors import BadSettings

_BUCKET = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/([A-Za-z0-9._/-]*))?")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How this process reaches the farm, and how it behaves there."""

    #: FILTERFARM_BROKER_URL: the Redis (or Valkey) that holds queue and ledger; redis:// or rediss://
    broker_url: str = "redis://127.0.0.1:6379/0"
    #: FILTERFARM_BUCKET: s3://bucket or s3://bucket/prefix
    bucket_url: str = ""
    #: AWS_ENDPOINT_URL_S3: any S3-compatible server; empty means AWS
    endpoint_url: str = ""
    #: FILTERFARM_DEVICE: auto, cpu, cuda, cuda:1, mps ...; auto takes a GPU where there is one
    device: str = "auto"
    #: FILTERFARM_BATCH: tiles rendered at once; 0: what is fastest, measured layer by layer, up to 16 on
    #: a CPU and 32 on a GPU
    batch: int = 0
    #: FILTERFARM_CACHE: folder for downloaded checkpoints
    cache_dir: Path = Path("~/.cache/filterfarm")
    #: FILTERFARM_VISIBILITY_TIMEOUT_S: a message whose worker has been silent this long goes to another; a heartbeat
    #: keeps long batches alive, so it can be short
    visibility_timeout_s: float = 120.0
    #: FILTERFARM_HANG_S: a renderer that has not gone on (called no layer of its network) for this long is taken for
    #: hung and replaced; must outlast loading a model, downloads included, and one gradient step of a batch
    hang_s: float = 600.0
    #: FILTERFARM_STORAGE_PATIENCE_S: how long workers and collector retry when the object store is out of reach
    #: or, the workers, when it refuses; then they hand their messages back
    storage_patience_s: float = 120.0
    #: FILTERFARM_DRAIN_S: after SIGTERM, the time the batch on the device has to finish
    drain_s: float = 15.0

    @property
    def bucket(self) -> str:
        """Name of the bucket."""
        return _split_bucket(self.bucket_url)[0]

    @property
    def prefix(self) -> str:
        """What every object key begins with: "" or "some/folder/"."""
        return _split_bucket(self.bucket_url)[1]

    @property
    def public_broker_url(self) -> str:
        """The broker's URL without its password, for messages and logs."""
        return str(maybe_sanitize_url(self.broker_url))

    def choose_device(self, here: Sequence[str]) -> str:
        """The device to render on, of those of this machine, best first; raises BadSettings where it has no such."""
        if self.device == "auto":
            return here[0]
        # "cuda" is any CUDA device, "cuda:1" is that one, and every machine has a CPU.
        if self.device not in {"cpu", *here, *(name.partition(":")[0] for name in here)}:
            raise BadSettings(f"no device {self.device!r} on this machine; it has {', '.join(here)}")
        return self.device

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Settings":
        """Settings from environment variables; raises BadSettings with the variable's name."""
        values: dict[str, object] = {}
        for field in fields(cls):
            variable = VARIABLES[field.name]
            text = environ.get(variable, "").strip()
            if text:
                values[field.name] = _convert(field.name, variable, text)
        broker = _broker_url(environ)
        if broker:
            values["broker_url"] = broker
        settings = cls(**values)  # type: ignore[arg-type]  # converted by the field's own default just above
        settings._check()
        return settings

    def to_environ(self) -> dict[str, str]:
        """The variables that make a child process read these same settings."""
        return {VARIABLES[field.name]: str(getattr(self, field.name)) for field in fields(self)}

    def _check(self) -> None:
        _check_broker(self.broker_url)
        if self.bucket_url:
            _split_bucket(self.bucket_url)
        if self.endpoint_url and not re.match(r"https?://[^/\s]", self.endpoint_url):
            raise BadSettings(f"AWS_ENDPOINT_URL_S3={self.endpoint_url!r} is no address; write https://host:port")
        if not re.fullmatch(r"auto|cpu|(cuda|mps|xpu)(:[0-9]+)?", self.device):
            raise BadSettings(f"FILTERFARM_DEVICE={self.device!r} is no device; write auto, cpu, cuda or cuda:1")
        if not 0 <= self.batch <= 1024:
            raise BadSettings(f"FILTERFARM_BATCH={self.batch} must lie in 0..1024; 0 leaves it to the device")
        for name, lowest in (
            ("visibility_timeout_s", 5.0),
            ("hang_s", 1.0),
            ("storage_patience_s", 0.0),
            ("drain_s", 0.0),
        ):
            if not lowest <= getattr(self, name) < float("inf"):  # refuses nan too
                raise BadSettings(
                    f"{VARIABLES[name]}={getattr(self, name):g} must be a number of seconds, {lowest:g} or more"
                )


#: field of Settings -> the environment variable it is read from
VARIABLES = {
    "broker_url": "FILTERFARM_BROKER_URL",
    "bucket_url": "FILTERFARM_BUCKET",
    "endpoint_url": "AWS_ENDPOINT_URL_S3",
    "device": "FILTERFARM_DEVICE",
    "batch": "FILTERFARM_BATCH",
    "cache_dir": "FILTERFARM_CACHE",
    "visibility_timeout_s": "FILTERFARM_VISIBILITY_TIMEOUT_S",
    "hang_s": "FILTERFARM_HANG_S",
    "storage_patience_s": "FILTERFARM_STORAGE_PATIENCE_S",
    "drain_s": "FILTERFARM_DRAIN_S",
}


def _convert(name: str, variable: str, text: str) -> object:
    kind = type(getattr(Settings, name))
    try:
        return Path(text) if issubclass(kind, Path) else kind(text)
    except ValueError:
        raise BadSettings(
            f"{variable}={text!r} is no number; for example {variable}={getattr(Settings, name):g}"
        ) from None


def _broker_url(environ: Mapping[str, str]) -> str:
    """Celery lets CELERY_BROKER_URL beat whatever code sets, so it is read here, on purpose, and may not disagree."""
    ours, celerys = (environ.get(name, "").strip() for name in ("FILTERFARM_BROKER_URL", "CELERY_BROKER_URL"))
    if ours and celerys and ours != celerys:
        raise BadSettings("CELERY_BROKER_URL and FILTERFARM_BROKER_URL differ; unset CELERY_BROKER_URL")
    return ours or celerys


def _check_broker(url: str) -> None:
    """Raise unless both redis-py and Kombu can read the URL. It is not shown: it may hold a password."""
    try:
        parts = urlsplit(url)
        reads = parts.scheme in {"redis", "rediss"} and bool(parts.hostname) and parts.port != 0
        reads = reads and re.fullmatch(r"/?[0-9]{0,5}", parts.path) is not None
    except ValueError:  # of the port
        reads = False
    if not reads:
        raise BadSettings("FILTERFARM_BROKER_URL is no Redis URL; write redis://host:6379/0 or rediss://host:6379/0")


def _split_bucket(url: str) -> tuple[str, str]:
    if not url:
        raise BadSettings(
            "FILTERFARM_BUCKET is not set; write FILTERFARM_BUCKET=s3://bucket/prefix "
            "(what 'filterfarm run' renders is in its --data folder)"
        )
    match = _BUCKET.fullmatch(url)
    if match is None or ".." in url:
        raise BadSettings(f"FILTERFARM_BUCKET={url!r} is no bucket; write s3://bucket or s3://bucket/prefix")
    prefix = (match[2] or "").strip("/")
    return match[1], f"{prefix}/" if prefix else ""
