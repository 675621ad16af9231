"""The bucket of ``filterfarm run``: plain files in its data folder, read without a server."""

import difflib
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from workers.clients.stored_object import SETTLED_NS, OpenObject, StoredObject
from workers.contract import keys
from workers.contract.errors import NoJob, StorageDenied
from workers.contract.settings import Settings

#: Where ``filterfarm run`` keeps the bucket of a data folder.
BUCKET = "bucket"

#: Part of a file that is in memory while it is read piece by piece.
_CHUNK_BYTES = 1 << 20

#: Default data folder of ``filterfarm run``.
DATA = Path("filterfarm-data")


class LocalStore:
    """Read-only view of the bucket in a data folder, with the reading methods of workers.clients.storage.Store."""

    def __init__(self, data: Path) -> None:
        #: the data folder
        self.data = data
        self._bucket = data / BUCKET

    def path(self, key: str) -> Path:
        """Where the object of that key is, if it exists."""
        return self._bucket / key

    def get(self, key: str, *, max_bytes: int = 1 << 32) -> bytes | None:
        """The first ``max_bytes`` bytes of the object, or None if there is none.

        Raises StorageDenied if the file cannot be read.
        """
        path = self.path(key)
        try:
            with path.open("rb") as file:
                # Python reserves as many bytes as it is asked for.
                return file.read(min(max_bytes, os.fstat(file.fileno()).st_size))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StorageDenied(f"cannot read {path}: {error.strerror}") from error

    def get_file(self, key: str, path: Path) -> bool:
        """Copy the object to ``path``; False if there is none.

        Raises StorageDenied if the object cannot be opened, and OSError if ``path`` cannot be written.
        """
        try:
            source = (self._bucket / key).open("rb")
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise StorageDenied(f"cannot read {self._bucket / key}: {error.strerror}") from error
        with source, path.open("wb") as target:
            shutil.copyfileobj(source, target)
        return True

    def open(self, key: str) -> OpenObject | None:
        """The object, to be read piece by piece and closed by the caller, or None if there is none.

        Raises StorageDenied if the file cannot be read.
        """
        path = self._bucket / key
        try:
            file = path.open("rb")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StorageDenied(f"cannot read {path}: {error.strerror}") from error
        size = os.fstat(file.fileno()).st_size
        return OpenObject(size, iter(lambda: file.read(_CHUNK_BYTES), b""), file.close)

    def list(self, prefix: str) -> Iterator[str]:
        """Keys that start with ``prefix``, which must end with a slash."""
        return (entry.key for entry in self.list_objects(prefix))

    def list_objects(self, prefix: str) -> Iterator[StoredObject]:
        """All objects whose keys start with ``prefix``, which must end with a slash."""
        now_ns = time.time_ns()
        for path in sorted((self._bucket / prefix).rglob("*")):
            try:
                found = path.stat()
            except FileNotFoundError:
                continue
            if stat.S_ISREG(found.st_mode):
                key = path.relative_to(self._bucket).as_posix()
                yield StoredObject(key, found.st_size, found.st_mtime_ns, found.st_mtime_ns < now_ns - SETTLED_NS)

    def folders(self) -> Iterator[str]:
        """Ids of the jobs in the folder."""
        for path in sorted(self._bucket.glob("*/job.json")):
            yield path.parent.name

    def is_running(self) -> bool:
        """True if a ``filterfarm run`` holds the folder's lock."""
        try:
            with (self.data / "lock").open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False

    def require(self, job_id: str) -> None:
        """Raise NoJob, with the most similar ids, if the folder holds no job of that id."""
        if keys.is_name(job_id) and (self._bucket / keys.job(job_id)).exists():
            return
        there = sorted(path.parent.name for path in self._bucket.glob("*/job.json"))
        near = difflib.get_close_matches(job_id, there, n=3, cutoff=0.3) or there[:3]
        hint = f"there is {', '.join(near)}" if near else "there is none; for a farm's bucket set FILTERFARM_BUCKET"
        raise NoJob(f"no job {job_id[:100]!r} in {self.data}; {hint}")


def chosen_store(data: Path | None, settings: Settings, *jobs: str | None) -> LocalStore | None:
    """The data folder to read jobs from: ``data``, else filterfarm-data if ``settings`` name no farm, else None.

    Raises NoJob if the folder lacks one of ``jobs``.
    """
    if data is None and settings.names_farm:
        return None
    store = LocalStore(data or DATA)
    for job in filter(None, jobs):
        store.require(job)
    return store
