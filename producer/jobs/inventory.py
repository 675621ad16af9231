"""What the bucket holds of a job: ``job.json``, stored tiles, failures, state. Read without Redis.

The bucket is the only source of truth; the ledger in Redis is filled from here.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from rich.console import Console

from producer.jobs.local_store import LocalStore
from workers.clients.storage import Store
from workers.contract import keys
from workers.contract.errors import CorruptJob, NoJob
from workers.contract.job import Job, decode_job

#: Upper bound of a failure record in bytes.
MAX_FAILURE_BYTES = 65_536

_ENDED = ("finished", "cancelled", "stopped")


class Reader(Protocol):
    """What a job's objects are read from: a Store or a LocalStore."""

    def get(self, key: str, *, max_bytes: int = ...) -> bytes | None:
        """The first ``max_bytes`` bytes of the object, or None if there is none."""

    def get_file(self, key: str, path: Path) -> bool:
        """Write the object into ``path``; False if there is none."""


def load_job(job_id: str, store: Reader) -> Job:
    """The frozen job; raises NoJob and CorruptJob."""
    data = store.get(keys.job(job_id)) if keys.is_name(job_id) else None
    if data is None:
        raise NoJob(f"no job {job_id[:100]!r} in the bucket; 'filterfarm status' lists all")
    return decode_job(data, job_id)


def readable_jobs(store: Store | LocalStore, console: Console) -> Iterator[Job]:
    """Every job of the bucket that can be decoded. Errors of the others are printed on ``console``."""
    for name in store.folders():
        try:
            yield load_job(name, store)
        except CorruptJob as error:
            console.print(f"filterfarm: {error}", highlight=False, soft_wrap=True, markup=False)
        except NoJob:
            continue


def inventory(job: Job, store: Store | LocalStore) -> tuple[set[int], dict[int, str]]:
    """Numbers of stored tiles, and tile number -> reason of failed ones. A tile that is stored has not failed."""
    stored = {number for key in store.list(f"{job.id}/tiles/") if (number := _number(job, key)) is not None}
    failed: dict[int, str] = {}
    for key in store.list(f"{job.id}/failed/"):
        number = _number(job, key)
        if number is not None and number not in stored:
            failed[number] = _reason(store.get(key, max_bytes=MAX_FAILURE_BYTES))
    return stored, failed


def reasons_by_tile(job: Job, failed: dict[int, str]) -> dict[str, str]:
    """``layer/filter`` -> reason, in the job's order, from tile number -> reason."""
    return {"{}/{}".format(*job.tiles[number]): reason for number, reason in sorted(failed.items())}


def read_state(store: Reader, job_id: str) -> str:
    """finished, cancelled or stopped as in ``status.json``; "running" if that is missing or unreadable."""
    data = store.get(keys.status(job_id), max_bytes=1 << 24)
    try:
        state = json.loads(data or b"{}")["state"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "running"
    return str(state) if state in _ENDED else "running"


def write_status(store: Store, job_id: str, state: str, *, reasons: dict[str, str]) -> None:
    """Write ``status.json``; ``reasons`` maps ``layer/filter`` of failed tiles to the reason."""
    body = {"job": job_id, "state": state, "at": time.time(), "failed": reasons}
    store.put(keys.status(job_id), json.dumps(body, indent=1).encode(), "application/json")


def _number(job: Job, key: str) -> int | None:
    parsed = keys.parse_filter_key(key)
    try:
        return job.tiles.number(*parsed) if parsed else None
    except KeyError:
        return None


def _reason(data: bytes | None) -> str:
    try:
        return str(json.loads(data or b"{}")["reason"])
    except (ValueError, KeyError, TypeError):
        return "unknown"
