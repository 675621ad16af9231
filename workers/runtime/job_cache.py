"""Caches frozen jobs in memory and their checkpoints on disk."""

import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from workers.clients.retrying_storage import RetryingStore
from workers.contract import keys
from workers.contract.errors import CacheFailed, JobNotUnderstood, NoJob, WeightsUnreadable
from workers.contract.job import Job, decode_whole_job, file_sha256

#: Jobs kept in memory, some kB each.
_MOST_JOBS = 256


class JobCache:
    """The frozen jobs of the bucket. Thread-safe. Raises the store's errors, Draining included.

    ``allows``: whether the settings permit the import of a factory, ``package.module:function``.
    """

    def __init__(
        self, store: RetryingStore, cache_dir: Path, *, allows: Callable[[str], bool] = lambda factory: False
    ) -> None:
        self._store = store
        self._allows = allows
        self._folder = cache_dir.expanduser() / "weights"
        #: the least recently used first
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        #: job -> held by the thread that loads it
        self._loading: dict[str, threading.Lock] = {}
        #: never held while something is loaded
        self._lock = threading.Lock()
        #: held during a download, which may take minutes and must not block ``job``
        self._download = threading.Lock()

    def job(self, job_id: str) -> Job:
        """The frozen job; raises NoJob, CorruptJob and JobNotUnderstood."""
        with self._lock:
            if job_id in self._jobs:
                self._jobs.move_to_end(job_id)
                return self._jobs[job_id]
            loading = self._loading.setdefault(job_id, threading.Lock())
        with loading:  # other jobs are not blocked
            with self._lock:
                if job_id in self._jobs:  # another thread has loaded it
                    return self._jobs[job_id]
            try:
                job = self._load(job_id)
                with self._lock:
                    self._jobs[job_id] = job
                    if len(self._jobs) > _MOST_JOBS:
                        self._jobs.popitem(last=False)
                return job
            finally:
                with self._lock:
                    self._loading.pop(job_id, None)

    def _load(self, job_id: str) -> Job:
        data = self._store.get(keys.job(job_id))
        if data is None:
            raise NoJob(f"no job {job_id!r} in the bucket")
        job = decode_whole_job(data, job_id)
        if job.network is not None and job.network.source == "factory" and not self._allows(job.network.name):
            module = job.network.name.partition(":")[0]
            raise JobNotUnderstood(
                f"job {job_id} has a network of its own, {job.network.name}, which this worker may not import; set "
                f"FILTERFARM_ALLOW_FACTORIES={module} where the module is installed",
                job_id,
            )
        return job

    def checkpoint(self, job: Job) -> Path | None:
        """Local path of the job's own checkpoint, if it has one. Jobs share files, which are named by their SHA-256.

        Raises NoJob if it is not in the bucket, WeightsUnreadable if its SHA-256 differs from the job's, CacheFailed
        if it cannot be kept on this machine.
        """
        if job.weights.source != "file" or job.weights.sha256 is None:
            return None
        # The suffix distinguishes safetensors from pickle.
        path = self._folder / f"{job.weights.sha256}{Path(job.weights.name).suffix}"
        try:
            if not path.exists():
                with self._download:
                    if not path.exists():
                        self._folder.mkdir(parents=True, exist_ok=True)
                        self._fetch(keys.weights(job.id, job.weights.sha256), job, path)
        except OSError as error:
            raise CacheFailed(
                f"cannot keep checkpoints in {self._folder} ({error.strerror}); set FILTERFARM_CACHE to a folder that "
                "can be written"
            ) from error
        return path

    def _fetch(self, key: str, job: Job, path: Path) -> None:
        # Not named by process: containers that share the folder have equal process ids.
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        try:
            if not self._store.get_file(key, partial):
                raise NoJob(f"job {job.id} has no checkpoint {job.weights.name} in the bucket; submit it again")
            digest = file_sha256(partial)
            if digest != job.weights.sha256:
                raise WeightsUnreadable(
                    f"the checkpoint {job.weights.name} of job {job.id} has SHA-256 {digest} in the bucket instead of "
                    f"{job.weights.sha256}; delete {key} and submit the job again"
                )
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
