"""All settings a process reads from its environment, in one frozen object, validated once.

The AWS credentials are not among them: boto3 reads them itself. The broker's password is part of its URL, which is
therefore excluded from ``repr``.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from workers.contract.addresses import check_broker_url, check_endpoint, split_bucket_url
from workers.contract.errors import BadSettings


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Addresses of the broker and the object store, and the limits of this process."""

    #: FILTERFARM_BROKER_URL: the Redis (or Valkey) that holds queue and ledger; redis:// or rediss://. If it is not set
    #: and FILTERFARM_BUCKET is: CELERY_BROKER_URL
    broker_url: str = field(default="redis://127.0.0.1:6379/0", repr=False)
    #: FILTERFARM_BUCKET: s3://bucket or s3://bucket/prefix
    bucket_url: str = ""
    #: AWS_ENDPOINT_URL_S3: any S3-compatible server; empty means AWS. If it is not set: AWS_ENDPOINT_URL
    endpoint_url: str = ""
    #: FILTERFARM_DEVICE: auto, cpu, cuda, cuda:1, mps ...; auto prefers a GPU
    device: str = "auto"
    #: FILTERFARM_BATCH: tiles rendered at once by a process, 0..1024; 0: the fastest size, measured per layer, up to 16
    #: on a CPU and 128 on a GPU
    batch: int = 0
    #: FILTERFARM_PROCESSES: worker processes per device, 0..16; 0: one on a CPU, up to four on a GPU
    processes: int = 0
    #: FILTERFARM_MACHINE: name of this machine in logs and status; empty: its host name
    machine: str = ""
    #: FILTERFARM_CACHE: folder for downloaded checkpoints
    cache_dir: Path = Path("~/.cache/filterfarm")
    #: FILTERFARM_VISIBILITY_TIMEOUT_S: seconds (>= 5) without a heartbeat after which a message is redelivered to
    #: another worker; may be shorter than a batch
    visibility_timeout_s: float = 120.0
    #: FILTERFARM_HANG_S: seconds (>= 1) without progress (no layer of the network called) after which a renderer is
    #: replaced; must exceed the time to load a model, downloads included, and that of one gradient step of a batch
    hang_s: float = 600.0
    #: FILTERFARM_STORAGE_PATIENCE_S: seconds (>= 0) for which workers and collector retry when the object store is
    #: unreachable, and workers also when it denies access; then they requeue their messages
    storage_retry_s: float = 120.0
    #: FILTERFARM_ALLOW_FACTORIES: comma-separated modules and packages of which jobs may import their networks, as in
    #: "mynets,lab.vision"; empty: none
    allow_factories: str = ""
    #: FILTERFARM_DRAIN_S: seconds (>= 0) that the running batch has to finish after SIGTERM
    drain_s: float = 15.0
    #: field -> the variable it was read from, for fields read from one of SUBSTITUTES
    substituted: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def bucket(self) -> str:
        """Name of the bucket."""
        return self._split_bucket()[0]

    @property
    def prefix(self) -> str:
        """Common prefix of all object keys: "" or "some/folder/"."""
        return self._split_bucket()[1]

    def variable(self, name: str) -> str:
        """The environment variable that holds the field ``name``, for messages."""
        return self.substituted.get(name, VARIABLES[name])

    @property
    def names_farm(self) -> bool:
        """True if the environment names a broker or a bucket; without either, jobs are read from a data folder."""
        return bool(self.bucket_url) or self.broker_url != Settings.broker_url

    @property
    def place(self) -> str:
        """Bucket, prefix and object store of the farm, for messages."""
        return f"{self.bucket_url} at {self.endpoint_url or 'AWS S3'}"

    @property
    def public_broker_url(self) -> str:
        """The broker's URL for messages and logs: the password replaced by ``**``, the query removed."""
        parts = urlsplit(self.broker_url)
        login, at, host = parts.netloc.rpartition("@")
        user, colon, _ = login.partition(":")
        hidden = f"{user}:**" if colon else user
        return urlunsplit((parts.scheme, f"{hidden}{at}{host}", parts.path, "", ""))

    def allows(self, factory: str) -> bool:
        """True if a network of ``package.module:function`` may be imported: prefixes match whole dotted parts."""
        module = factory.partition(":")[0]
        return any(f"{module}.".startswith(f"{prefix}.") for prefix in _listed(self.allow_factories))

    def choose_device(self, here: Sequence[str]) -> str:
        """The device to render on; ``here``: this machine's devices, best first. Raises BadSettings if absent."""
        if self.device == "auto":
            return here[0]
        # "cuda" is any CUDA device, "cuda:1" is that one, and every machine has a CPU.
        if self.device not in {"cpu", *here, *(name.partition(":")[0] for name in here)}:
            raise BadSettings(f"no device {self.device!r} on this machine; it has {', '.join(here)}")
        return self.device

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Settings":
        """Settings from environment variables. Raises BadSettings, which names the variable."""
        texts = {variable: text for variable, value in environ.items() if (text := value.strip())}
        substituted = {
            name: substitute
            for name, substitute in SUBSTITUTES.items()
            if VARIABLES[name] not in texts and substitute in texts
        }
        # Without a bucket it is the variable of another program.
        if VARIABLES["bucket_url"] not in texts:
            substituted.pop("broker_url", None)
        variables = {**VARIABLES, **substituted}
        values = {
            name: _convert(name, variable, texts[variable]) for name, variable in variables.items() if variable in texts
        }
        # Read by workers.kernels itself. Checked here too, because there it is an error of each tile.
        kernels = environ.get("FILTERFARM_KERNELS", "auto")
        if kernels not in ("auto", "off"):
            raise BadSettings(f"FILTERFARM_KERNELS={kernels[:80]!r} is no choice of convolutions; write auto or off")
        settings = cls(**values, substituted=substituted)  # type: ignore[arg-type]  # converted to the defaults' types
        settings._check()
        return settings

    def to_environ(self) -> dict[str, str]:
        """Environment variables from which a child process reads equal settings."""
        return {self.variable(name): str(getattr(self, name)) for name in VARIABLES}

    def _split_bucket(self) -> tuple[str, str]:
        if not self.bucket_url:
            raise BadSettings(
                "FILTERFARM_BUCKET is not set; write FILTERFARM_BUCKET=s3://bucket/prefix "
                "(what 'filterfarm run' renders is in its --data folder)"
            )
        return split_bucket_url(self.bucket_url, self.variable("bucket_url"))

    def _check(self) -> None:
        check_broker_url(self.broker_url, self.variable("broker_url"))
        if self.bucket_url:
            self._split_bucket()
        if self.endpoint_url:
            check_endpoint(self.endpoint_url, self.variable("endpoint_url"))
        if not re.fullmatch(r"auto|cpu|(cuda|mps|xpu)(:[0-9]+)?", self.device):
            raise BadSettings(f"FILTERFARM_DEVICE={self.device!r} is no device; write auto, cpu, cuda or cuda:1")
        if self.machine and not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", self.machine):
            raise BadSettings(
                f"FILTERFARM_MACHINE={self.machine[:80]!r} is no name; write up to 64 letters, digits, '.', '_', '-'"
            )
        for prefix in _listed(self.allow_factories):
            if not all(part.isidentifier() for part in prefix.split(".")):
                raise BadSettings(
                    f"FILTERFARM_ALLOW_FACTORIES={prefix[:80]!r} is no module; write names such as mynets,lab.vision"
                )
        if not 0 <= self.batch <= 1024:
            raise BadSettings(f"FILTERFARM_BATCH={self.batch} must lie in 0..1024; 0 leaves it to the device")
        if not 0 <= self.processes <= 16:
            raise BadSettings(f"FILTERFARM_PROCESSES={self.processes} must lie in 0..16; 0 leaves it to the device")
        for name, lowest in (
            ("visibility_timeout_s", 5.0),
            ("hang_s", 1.0),
            ("storage_retry_s", 0.0),
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
    "processes": "FILTERFARM_PROCESSES",
    "machine": "FILTERFARM_MACHINE",
    "cache_dir": "FILTERFARM_CACHE",
    "visibility_timeout_s": "FILTERFARM_VISIBILITY_TIMEOUT_S",
    "hang_s": "FILTERFARM_HANG_S",
    "storage_retry_s": "FILTERFARM_STORAGE_PATIENCE_S",
    "drain_s": "FILTERFARM_DRAIN_S",
    "allow_factories": "FILTERFARM_ALLOW_FACTORIES",
}

#: field of Settings -> a variable of other programs that is read if the field's own is not set
SUBSTITUTES = {"broker_url": "CELERY_BROKER_URL", "endpoint_url": "AWS_ENDPOINT_URL"}

#: Variables that say which farm a command belongs to. ``filterfarm run`` has its own.
FARM_VARIABLES = {VARIABLES[name] for name in ("broker_url", "bucket_url", "endpoint_url")} | {*SUBSTITUTES.values()}


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _convert(name: str, variable: str, text: str) -> object:
    kind = type(getattr(Settings, name))
    try:
        return Path(text) if issubclass(kind, Path) else kind(text)
    except ValueError:
        raise BadSettings(
            f"{variable}={text!r} is no number; for example {variable}={getattr(Settings, name):g}"
        ) from None
