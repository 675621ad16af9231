"""The gallery of one job: its page, which is written once, and its progress, which is written as it changes."""

import json
import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from producer.gallery import site
from producer.gallery.documents import JOB_FORMAT, LayerFacts, javascript, job_document, to_json
from producer.jobs.gallery_objects import CONTENT_TYPES
from workers.clients.storage import Store
from workers.contract import keys
from workers.contract.job import Job

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Pause between two versions of a job's progress.
EVERY_S = 5.0


class JobGallery:
    """What the gallery of one job says. It is a cache: losing it costs a few requests."""

    def __init__(self, job: Job, store: Store) -> None:
        self._job, self._store = job, store
        self._next = 0.0
        self.document = read_gallery(store, job.id)

    @property
    def stored_facts(self) -> dict[str, LayerFacts]:
        """Layer -> what was known of it when the document was last written; of incomplete layers, nothing else is."""
        return facts_in(self.document)

    def write_page(self) -> None:
        """Write page and assets if they are not those of this version."""
        write_site(self._store, self._job.id, site.job_page(self._job.id))

    def update(
        self,
        facts: Mapping[str, LayerFacts],
        done: "NDArray[np.bool_]",
        failed: Mapping[int, str],
        *,
        state: str = "running",
    ) -> bool:
        """Write the job's progress if it has changed, at most every EVERY_S while the job runs; True if written.

        ``done``: whether each tile of the job is stored. ``failed``: tile number -> reason.
        """
        if state == "running" and self.document and time.monotonic() < self._next:
            return False
        job = self._job
        document = job_document(
            job,
            state=state,
            layers=facts,
            done={name: int(done[numbers.start : numbers.stop].sum()) for name, numbers in _ranges(job)},
            failed=Counter(job.tiles[number][0] for number in failed),
            updated=int(time.time()),
        )
        if document | {"updated": 0} == self.document | {"updated": 0}:
            return False
        self.document = document
        write_gallery(self._store, document)
        self._next = time.monotonic() + EVERY_S
        return True


def read_gallery(store: Store, job_id: str) -> dict[str, Any]:
    """The stored ``gallery.json``; empty if it is missing or unreadable."""
    try:
        document = json.loads(store.get(keys.gallery(job_id), max_bytes=1 << 26) or b"{}")
        ours = document["format"] == JOB_FORMAT and document["job"] == job_id
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return dict(document) if ours else {}


def write_gallery(store: Store, document: Mapping[str, Any]) -> None:
    """Write ``gallery.js`` and then ``gallery.json``, which collectors read: if it is there, so is the script."""
    job_id = document["job"]
    store.put(keys.gallery_script(job_id), javascript("job", job_id, document), CONTENT_TYPES["js"])
    store.put(keys.gallery(job_id), to_json(document), CONTENT_TYPES["json"])


def write_site(store: Store, job_id: str, page: bytes) -> None:
    """Write a page after its assets, unless it is there. ``job_id``: "" for the page of all jobs."""
    key = keys.index(job_id) if job_id else keys.JOBS_PAGE
    if store.get(key, max_bytes=1 << 20) == page:
        return
    for name, data in site.assets().items():
        store.put(keys.asset(job_id, name), data, CONTENT_TYPES[name.rpartition(".")[2]])
    store.put(key, page, CONTENT_TYPES["html"])


def facts_in(document: Mapping[str, Any]) -> dict[str, LayerFacts]:
    """Layer -> facts of a ``gallery.json``. Sheets are not among them: they may have been deleted since."""
    try:
        return {
            str(layer["name"]): LayerFacts(
                stamp=int(layer["stamp"]),
                rescued=int(layer["rescued"]),
                dead=int(layer["dead"]),
                strip=int(layer["strip"]),
            )
            for layer in document["layers"]
        }
    except (ValueError, KeyError, TypeError):
        return {}


def _ranges(job: Job) -> list[tuple[str, range]]:
    return [(layer.name, job.tiles.of_layer(layer)) for layer in job.layers]
