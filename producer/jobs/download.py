"""Download of a job from the bucket: what changed into a folder, or all of it into a zip file."""

import errno
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from producer.jobs import gallery_objects
from producer.jobs.local_store import LocalStore
from workers.clients.storage import READERS, Store
from workers.clients.stored_object import StoredObject
from workers.contract.errors import BadOption
from workers.contract.job import Job

#: Objects of a zip file that are read ahead together, and the size in bytes up to which they are.
_READ_AHEAD, _SMALL_BYTES = 64, 4 << 20

#: Pictures are compressed already.
_STORED = {".png", ".webp"}


class Fetched(NamedTuple):
    """Numbers of files of a download."""

    fetched: int
    unchanged: int


def fetch(job: Job, folder: Path, store: Store | LocalStore) -> Fetched:
    """Copy the gallery of ``job`` into ``folder``: objects whose size or time differs from that of the file there.

    A file gets its object's time of modification, and is replaced once its download is complete. An object that was
    written just before the listing gets an earlier time, because another write may leave size and time as they are.
    No file is written outside ``folder``, whatever the bucket holds.

    Raises BadOption if the folder cannot be written to, and object store errors.
    """
    wanted = _objects(job, store)
    with _writing(folder), ThreadPoolExecutor(READERS) as pool:
        folder.mkdir(parents=True, exist_ok=True)
        fetched = sum(pool.map(lambda entry: _update(entry, _path(entry, folder), store), wanted))
        return Fetched(fetched, len(wanted) - fetched)


def fetch_zip(job: Job, path: Path, store: Store | LocalStore) -> int:
    """Write the gallery of ``job`` into the zip file ``path``, below a folder of the job's id.

    The file is replaced once the new one is complete. The same objects give the same bytes. Returns their number.
    Raises BadOption if the file cannot be written, and object store errors.
    """
    wanted = sorted(_objects(job, store), key=lambda entry: entry.key)
    partial = path.with_name(path.name + ".part")
    with _writing(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with zipfile.ZipFile(partial, "w") as archive, tempfile.TemporaryDirectory(dir=path.parent) as scratch:
                count = sum(_add(entry, source, archive) for entry, source in _read(wanted, store, Path(scratch)))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return count


def _objects(job: Job, store: Store | LocalStore) -> list[StoredObject]:
    return [entry for entry in store.list_objects(f"{job.id}/") if gallery_objects.belongs(entry.key, job)]


def _path(entry: StoredObject, folder: Path) -> Path:
    return folder / entry.key.partition("/")[2]


def _update(entry: StoredObject, path: Path, store: Store | LocalStore) -> bool:
    """Download the object unless the file has its size and time. True if it was downloaded."""
    try:
        found = path.stat()
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    else:
        if (found.st_size, found.st_mtime_ns) == (entry.size, entry.modified_ns):
            return False
    partial = path.with_name(path.name + ".part")
    try:
        if not store.get_file(entry.key, partial):
            return False
        time_ns = entry.modified_ns - (0 if entry.settled else 1_000_000_000)
        os.utime(partial, ns=(time_ns, time_ns))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return True


def _read(
    wanted: list[StoredObject], store: Store | LocalStore, scratch: Path
) -> Iterator[tuple[StoredObject, bytes | Path | None]]:
    """The objects in order, each with its bytes, or with the file that holds them if it is large."""

    def small(entry: StoredObject) -> bytes | None:
        return store.get(entry.key) if entry.size <= _SMALL_BYTES else None

    with ThreadPoolExecutor(READERS) as pool:
        for first in range(0, len(wanted), _READ_AHEAD):
            some = wanted[first : first + _READ_AHEAD]
            for entry, body in zip(some, pool.map(small, some), strict=True):
                large = scratch / "object"
                if entry.size > _SMALL_BYTES and store.get_file(entry.key, large):
                    yield entry, large
                else:
                    yield entry, body


def _add(entry: StoredObject, source: bytes | Path | None, archive: zipfile.ZipFile) -> bool:
    """Add one file. False if its object has been deleted since the listing."""
    if source is None:
        return False
    written = datetime.fromtimestamp(max(entry.modified_ns // 1_000_000_000, 315_532_800), UTC)  # no zip before 1980
    info = zipfile.ZipInfo(entry.key, written.timetuple()[:6])
    info.compress_type = zipfile.ZIP_STORED if Path(entry.key).suffix in _STORED else zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    if isinstance(source, bytes):
        archive.writestr(info, source)
        return True
    info.file_size = source.stat().st_size
    with source.open("rb") as file, archive.open(info, "w") as target:
        shutil.copyfileobj(file, target, 1 << 20)
    return True


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Raise BadOption for an error of the file system."""
    try:
        yield
    except OSError as error:
        raise BadOption(f"cannot write to {path}: {error.strerror}; choose another folder") from error
