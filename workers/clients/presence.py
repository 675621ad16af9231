"""Heartbeats of workers, and object store errors of workers and collector, as published in Redis."""

import json
import re
from dataclasses import asdict, dataclass
from typing import cast

import redis

from workers.contract.errors import FilterfarmError, StorageUnreachable
from workers.contract.keys import RedisKeys

#: A worker counts as running for this many seconds after a heartbeat.
WORKER_SEEN_S = 30.0

#: A reported error is valid for this many seconds. While it lasts it is reported several times a minute.
_REPORT_VALID_S = 60.0

#: A machine's trouble is shown for this many seconds, unless it renders again.
_TROUBLE_VALID_S = 86400.0

#: The same for a job that it does not understand, which it reports again every minute.
_JOB_TROUBLE_VALID_S = 180.0

#: The name under which the collector reports. Names of workers contain an "@".
COLLECTOR = "collector"


@dataclass(frozen=True, kw_only=True)
class StorageErrorReport:
    """An object store error of a worker or the collector."""

    #: the store refuses access, which a person has to fix; False: it is unreachable
    refused: bool
    reason: str
    #: Unix seconds
    at: float


def machine_of(worker: str) -> str:
    """Machine and device of a worker: ``cuda0@host`` of ``cuda0-PID.NUMBER@host``, the name of one of its processes."""
    device, _, host = worker.partition("@")
    return f"{re.sub(r'-[0-9]+([.][0-9]+)?$', '', device)}@{host}"


class Presence:
    """Workers and collector as seen in Redis. Raises redis.RedisError; thread-safe, as redis-py's client is."""

    def __init__(self, client: "redis.Redis", names: RedisKeys) -> None:
        self._client = client
        self._names = names

    def _now(self) -> float:
        """Redis's time in Unix seconds: the clocks of laptops are not compared with those of workers."""
        seconds, microseconds = self._client.time()
        return float(seconds) + microseconds / 1e6

    def worker_heartbeat(self, name: str, now: float | None = None) -> None:
        """Record that a worker is running; ``now``: Redis's time, if it is known."""
        now = self._now() if now is None else now
        pipe = self._client.pipeline()
        pipe.zadd(self._names.workers, {name: now})
        pipe.zremrangebyscore(self._names.workers, 0, now - 86400)
        pipe.execute()

    def remove_worker(self, name: str) -> None:
        """Remove a worker that has drained."""
        pipe = self._client.pipeline()
        pipe.zrem(self._names.workers, name)
        pipe.hdel(self._names.storage, name)
        pipe.execute()

    def workers(self) -> dict[str, float]:
        """Worker name -> seconds since its last heartbeat, of the last day."""
        now = self._now()
        seen = cast("list[tuple[bytes, float]]", self._client.zrange(self._names.workers, 0, -1, withscores=True))
        return {name.decode(errors="replace"): max(0.0, now - when) for name, when in seen}

    def running_machines(self) -> set[str]:
        """The machines of all running workers."""
        return {machine_of(name) for name, ago in self.workers().items() if ago <= WORKER_SEEN_S}

    def report_trouble(self, machine: str, reason: str | None, *, job_id: str = "") -> None:
        """Publish why a machine does not render, or not this job; None removes it, because it renders again."""
        field = f"{machine} {job_id}" if job_id else machine
        if reason is None:
            self._client.hdel(self._names.troubles, field)
        else:
            self._client.hset(self._names.troubles, field, json.dumps({"reason": reason, "at": self._now()}))

    def troubles(self, job_id: str) -> dict[str, str]:
        """Machine -> why it does not render this job or any: of the last day, and of the last minutes for a job."""
        found = {}
        for name, text in cast("dict[bytes, bytes]", self._client.hgetall(self._names.troubles)).items():
            try:
                machine, _, job = name.decode(errors="replace").partition(" ")
                entry = json.loads(text)
                valid_s = _JOB_TROUBLE_VALID_S if job else _TROUBLE_VALID_S
                if job in ("", job_id) and self._now() - float(entry["at"]) <= valid_s:
                    found[machine] = str(entry["reason"])
            except (ValueError, TypeError, KeyError):
                continue
        return found

    def report_storage_error(self, name: str, error: FilterfarmError | None) -> None:
        """Publish the error of a worker or the collector; None removes it."""
        if error is None:
            self._client.hdel(self._names.storage, name)
            return
        report = StorageErrorReport(
            refused=not isinstance(error, StorageUnreachable), reason=str(error), at=self._now()
        )
        self._client.hset(self._names.storage, name, json.dumps(asdict(report)))

    def storage_error(self) -> StorageErrorReport | None:
        """The error of the collector, or of a worker if every running worker reports one; otherwise None."""
        entries = cast("dict[bytes, bytes]", self._client.hgetall(self._names.storage))
        now = self._now()
        valid = {}
        for name, text in entries.items():
            report = _report(text)
            if report is not None and now - report.at <= _REPORT_VALID_S:
                valid[name.decode(errors="replace")] = report
        running = {name for name, ago in self.workers().items() if ago <= WORKER_SEEN_S}
        if COLLECTOR in valid:
            return valid[COLLECTOR]
        return valid[min(running)] if running and running <= valid.keys() else None


def _report(text: bytes) -> StorageErrorReport | None:
    """A report in Redis; None if it is none. Fields of a later version are ignored."""
    try:
        value = json.loads(text)
        return StorageErrorReport(refused=bool(value["refused"]), reason=str(value["reason"]), at=float(value["at"]))
    except (ValueError, TypeError, KeyError):
        return None
