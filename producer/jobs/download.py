"""Download of a job from the bucket into a folder."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from producer.jobs.local_store import LocalStore
from workers.clients.storage import READERS, Store
from workers.contract import keys
from workers.contract.errors import BadOption
from workers.contract.job import Job


def fetch(job: Job, folder: Path, store: Store | LocalStore) -> int:
    """Copy job.json, tiles, animations, sheets, records and gallery into ``folder``; returns the number of files.

    Paths are derived from the job, not from the bucket's listing, so that no file is written outside ``folder``.
    Raises BadOption if the folder cannot be written to, and object store errors.
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
