"""What the bucket holds of a job: ``job.json``, stored tiles, failures, state. Read without Redis.

The bucket is the only source of truth; the ledger in Redis is filled from here.
"""

import contextlib
import json
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from rich.console import Console

from producer.jobs.local_store import LocalStore
from workers.clients.storage import READERS, Store
from workers.contract import keys
from workers.contract.errors import CorruptJob, NoJob
from workers.contract.job import Job, Layer, decode_job

if TYPE_CHECKING:
    from numpy.typing import NDArray

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


def inventory(job: Job, store: Store | LocalStore) -> "tuple[NDArray[np.bool_], dict[int, str]]":
    """Whether each tile is stored, and tile number -> reason of failed ones. A tile that is stored has not failed.

    Lists the bucket layer by layer, several at a time.
    """
    stored = np.zeros(len(job.tiles), bool)

    def look(layer: Layer) -> list[int]:
        stored[_numbers(job, store.list(f"{job.id}/tiles/{layer.name}/"))] = True
        return _numbers(job, store.list(f"{job.id}/failed/{layer.name}/"))

    with ThreadPoolExecutor(READERS) as pool:
        listed = [number for numbers in pool.map(look, job.layers) for number in numbers if not stored[number]]
        keys_ = [keys.failed(job.id, *job.tiles[number]) for number in listed]
        data = pool.map(lambda key: store.get(key, max_bytes=MAX_FAILURE_BYTES), keys_)
        return stored, dict(zip(listed, map(_reason, data), strict=True))


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


def read_problems(store: Reader, job_id: str) -> dict[str, str]:
    """Layer -> why it has no sheet, as in ``status.json``; empty if that is missing or unreadable."""
    try:
        problems = json.loads(store.get(keys.status(job_id), max_bytes=1 << 24) or b"{}").get("problems", {})
        return {str(layer): str(reason) for layer, reason in problems.items()}
    except (ValueError, AttributeError, RecursionError):
        return {}


def write_status(
    store: Store, job_id: str, state: str, *, reasons: dict[str, str], problems: dict[str, str] | None = None
) -> None:
    """Write ``status.json``; ``reasons`` maps ``layer/filter`` of failed tiles, ``problems`` layers without a sheet."""
    body = {"job": job_id, "state": state, "at": time.time(), "failed": reasons, "problems": problems or {}}
    store.put(keys.status(job_id), json.dumps(body, indent=1).encode(), "application/json")


def _numbers(job: Job, listed: Iterable[str]) -> list[int]:
    """The numbers of the tiles of these keys; other keys are ignored."""
    found = []
    for key in listed:
        parsed = keys.parse_filter_key(key)
        with contextlib.suppress(KeyError):
            found += [job.tiles.number(*parsed)] if parsed else []
    return found


def _reason(data: bytes | None) -> str:
    try:
        return str(json.loads(data or b"{}")["reason"])
    except (ValueError, KeyError, TypeError):
        return "unknown"
