"""Copying a job out of the bucket into a folder."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from producer.jobs.local_store import LocalStore
from workers.clients.storage import READERS, Store
from workers.contract import keys
from workers.contract.errors import BadOption
from workers.contract.job import Job


def fetch(job: Job, folder: Path, store: Store | LocalStore) -> int:
    """Copy tiles, their films, sheets, records and gallery below ``folder``; returns how many files were written.

    Paths are made from the job, never from what the bucket lists, so nothing lands outside ``folder``.
    """
    wanted = [keys.job(job.id), keys.index(job.id), keys.status(job.id)]
    for layer in job.layers:
        wanted += [keys.grid(job.id, layer.name), keys.records(job.id, layer.name)]
    wanted += [keys.tile(job.id, layer, filter_) for layer, filter_ in job.tiles]
    if job.recipe.frames:
        wanted += [keys.frames(job.id, layer, filter_) for layer, filter_ in job.tiles]
    present = set(store.list(f"{job.id}/"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(READERS) as pool:
            return sum(pool.map(lambda key: _copy(key, folder, store), (key for key in wanted if key in present)))
    except OSError as error:
        raise BadOption(f"cannot write to {folder}: {error.strerror}; choose another folder") from error


def _copy(key: str, folder: Path, store: Store | LocalStore) -> bool:
    data = store.get(key)
    if data is None:
        return False
    path = folder / key.partition("/")[2]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_bytes(data)
    partial.replace(path)
    return True
