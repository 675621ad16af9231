"""``index.json``, ``index.js`` and ``index.html`` at the root of the bucket, which list all jobs.

What is there under these names and was not written by filterfarm is left alone.
"""

import bisect
import json
import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from producer.collector.job_gallery import read_gallery, write_gallery, write_site
from producer.gallery import site
from producer.gallery.documents import JOBS_FORMAT, javascript, job_document, jobs_document, jobs_entry, to_json
from producer.jobs.gallery_objects import CONTENT_TYPES
from producer.jobs.inventory import inventory, load_job
from workers.clients.storage import Store
from workers.contract import keys
from workers.contract.errors import CorruptJob, NoJob

log = logging.getLogger(__name__)

#: Pause between two versions.
EVERY_S = 5.0

#: Jobs that are looked at each time the bucket is listed.
_LOOKS = 20

#: Upper bound of an index in bytes.
_MAX_BYTES = 1 << 28


class JobsIndex:
    """The entries of all jobs. It is a cache of ``index.json``, which is read at first use."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._entries: dict[str, dict[str, Any]] = {}
        self._written: dict[str, dict[str, Any]] = {}
        self._is_read = False
        self._next = 0.0
        #: the job that was looked at last
        self._looked_at = ""
        #: keys of the root that belong to somebody else
        self._foreign: set[str] = set()

    def put(self, document: Mapping[str, Any]) -> None:
        """Enter a job by its ``gallery.json``."""
        self._read()
        self._entries[document["job"]] = jobs_entry(document)

    def note_ended(self, job_id: str, state: str) -> None:
        """Enter a job that is not open, unless it is entered in this state."""
        self._read()
        if self._entries.get(job_id, {}).get("state") == state:
            return
        document = read_gallery(self._store, job_id)
        try:
            if not document:
                document = self._without_gallery(job_id, state)
            elif document["state"] != state:  # it was cancelled or stopped while there was no collector
                document = document | {"state": state}
                write_gallery(self._store, document)
            self.put(document)
        except (CorruptJob, NoJob, KeyError, TypeError):
            self._entries.pop(job_id, None)

    def retain(self, names: Collection[str]) -> None:
        """Remove jobs whose folder is gone, and of the others some that have no ``job.json`` any more.

        SeaweedFS lists a folder after its last object was deleted. To look at each job each time would take long.
        """
        self._read()
        for job_id in set(self._entries) - set(names):
            del self._entries[job_id]
        jobs = sorted(self._entries)
        first = bisect.bisect_right(jobs, self._looked_at)
        for job_id in (jobs[first:] + jobs[:first])[:_LOOKS]:
            self._looked_at = job_id
            if not self._store.exists(keys.job(job_id)):
                del self._entries[job_id]

    def write(self, *, now: bool = False) -> None:
        """Write what has changed, at most every EVERY_S unless it must be ``now``. Raises object store errors."""
        self._read()
        if self._entries == self._written or (not now and time.monotonic() < self._next):
            return
        document = jobs_document(self._entries)
        if keys.JOBS_PAGE not in self._foreign:
            write_site(self._store, "", site.jobs_page())
        if keys.JOBS_SCRIPT not in self._foreign:
            self._store.put(keys.JOBS_SCRIPT, javascript("jobs", "", document), CONTENT_TYPES["js"])
        if keys.JOBS not in self._foreign:
            self._store.put(keys.JOBS, to_json(document), "application/json")
        self._written = dict(self._entries)
        self._next = time.monotonic() + EVERY_S

    def _read(self) -> None:
        if self._is_read:
            return
        for key, is_ours in _OURS.items():
            data = self._store.get(key, max_bytes=_MAX_BYTES)
            if data is not None and not is_ours(data):
                self._foreign.add(key)
                log.warning("not overwriting object=%s reason=not written by filterfarm; no list of jobs there", key)
        self._entries = _jobs(self._store.get(keys.JOBS, max_bytes=_MAX_BYTES) or b"") or {}
        self._written = dict(self._entries)
        self._is_read = True

    def _without_gallery(self, job_id: str, state: str) -> dict[str, Any]:
        """The document of a job that an earlier version has ended."""
        job = load_job(job_id, self._store)
        stored, failed = inventory(job, self._store)
        document = job_document(job, state=state, layers={}, done={}, failed={}, updated=0)
        return document | {"done": int(stored.sum()), "failed": len(failed)}


def _jobs(data: bytes) -> dict[str, dict[str, Any]] | None:
    """The entries of an ``index.json``, or None if it is somebody else's."""
    try:
        document = json.loads(data)
        if document["format"] != JOBS_FORMAT:
            return None
        return {str(entry["id"]): dict(entry) for entry in document["jobs"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


#: key -> whether an object there was written by some version of filterfarm
_OURS: dict[str, Callable[[bytes], bool]] = {
    keys.JOBS_PAGE: site.is_ours,
    keys.JOBS_SCRIPT: lambda data: data.startswith(b'filterfarm.receive("jobs"'),
    keys.JOBS: lambda data: _jobs(data) is not None,
}
