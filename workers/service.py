"""One queue message from its body to its end: decode, check, render, store, record. Knows no Celery.

What happens to a message:

    a tile that is stored, or whose job is cancelled      dropped
    a body that names no tile of a known job              logged, dropped
    rendered                                              PNG stored, then noted in the ledger
    cannot be rendered                                    failure stored with its reason, then noted
    storage out of reach, worker stopping                 HandBack: the queue gets it again
"""

import json
import logging
import os
import threading
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from workers.batching import Batcher, Group
from workers.contract import keys
from workers.contract.broker import connect
from workers.contract.errors import (
    CorruptJob,
    Draining,
    FilterfarmError,
    NoBucket,
    NoJob,
    RenderFailed,
    StorageDenied,
    TransientError,
)
from workers.contract.job import Job, Task, decode
from workers.contract.ledger import Ledger
from workers.contract.settings import Settings
from workers.contract.storage import Store
from workers.contract.tile import FailureRecord, TileRecord
from workers.png import encode_frames, encode_tile
from workers.renderer import Batch, Renderer

if TYPE_CHECKING:
    from workers.render import Tile

log = logging.getLogger(__name__)

#: Work on a tile that began this often and never ended takes whole workers down with it. Far above what spot
#: machines that vanish can do to one tile, and low enough that a poison ends.
MAX_STARTS = 10

#: Errors that may be one machine's fault (weights it cannot load, too little memory) get this many machines' tries.
MAX_ATTEMPTS = 3

#: Pause before a message goes back because of an error that will still be there in a moment.
HAND_BACK_PAUSE_S = 5.0

#: An incomplete batch waits this long for its next message; a message takes a millisecond or two.
LINGER_S = 0.1

#: Tiles per batch where nobody chose; the supervisor does, by device.
DEFAULT_BATCH = 8

_VERSION_NAMES = ("torch", "torchvision", "numpy", "pillow")


class _Cancelled(FilterfarmError):
    """Raised for a tile whose job was cancelled while it waited for its batch."""


class HandBack(Exception):
    """Raised when a message has to go back to the queue."""


class Service:
    """What one Celery process does with messages. ``handle`` is called by many threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stopping = threading.Event()
        self._store = Store(settings, patience_s=settings.storage_patience_s, stop=self._stopping)
        self.ledger = Ledger(connect(settings, retries=20))
        self._renderer = Renderer(hang_s=settings.hang_s)
        self._batcher: Batcher[Tile] = Batcher(self._run, size=settings.batch or DEFAULT_BATCH, linger_s=LINGER_S)
        self._jobs: dict[str, tuple[Job, Path | None]] = {}
        self._jobs_lock = threading.Lock()
        self._versions = {name: version(name) for name in ("filterfarm", *_VERSION_NAMES)}

    def handle(self, body: object) -> None:
        """Deal with one message; returns when it may be acknowledged. Raises HandBack when it may not."""
        try:
            task, job = self._decode(body)
        except (CorruptJob, NoJob) as error:
            log.error("dropped a message: %s", error)
            return
        except (TransientError, StorageDenied, NoBucket) as error:
            self._hand_back(error)
        number = job.numbers[task.layer, task.filter]
        if self.ledger.is_cancelled(job.id) or self.ledger.is_done(job.id, number):
            return
        starts = self.ledger.begin(job.id, number)
        try:
            self._make(task, job, number, starts)
        except _Cancelled:
            self.ledger.abandon(job.id, number)
        except Draining as error:
            self.ledger.abandon(job.id, number)
            raise HandBack from error
        except (TransientError, StorageDenied, NoBucket) as error:
            self.ledger.abandon(job.id, number)
            self._hand_back(error)

    def drain(self, timeout_s: float) -> None:
        """Stop: finish the batch on the device if that takes no longer than ``timeout_s``, hand back the rest."""
        self._batcher.close()
        if not self._batcher.join(timeout_s):
            log.warning("the batch on the device did not finish within %g s and goes back to the queue", timeout_s)
        self._renderer.stop()
        self._batcher.join(5.0)
        self._stopping.set()

    def _decode(self, body: object) -> tuple[Task, Job]:
        task = decode(Task, json.dumps(body), "a task message")
        job, _ = self._job(task.job)
        if (task.layer, task.filter) not in job.numbers:
            raise CorruptJob(f"job {task.job} has no filter {task.filter} of layer {task.layer!r}")
        return task, job

    def _job(self, job_id: str) -> tuple[Job, Path | None]:
        """The frozen job, read once, and its checkpoint on this machine."""
        with self._jobs_lock:
            if job_id not in self._jobs:
                data = self._store.get(keys.job(job_id))
                if data is None:
                    raise NoJob(f"no job {job_id!r} in the bucket")
                job = decode(Job, data, f"job {job_id}")
                if job.id != job_id:
                    raise CorruptJob(f"job {job_id} holds the content of {job.id}")
                self._jobs[job_id] = job, self._fetch_checkpoint(job)
            return self._jobs[job_id]

    def _fetch_checkpoint(self, job: Job) -> Path | None:
        """A copy of the job's own checkpoint, kept by its hash so that many jobs share it."""
        if job.weights.source != "file" or job.weights.sha256 is None:
            return None
        # The suffix tells safetensors from pickle.
        folder = self._settings.cache_dir.expanduser() / "weights"
        path = folder / f"{job.weights.sha256}{Path(job.weights.name).suffix}"
        if not path.exists():
            data = self._store.get(keys.weights(job.id, job.weights.sha256))
            if data is None:
                raise NoJob(f"job {job.id} has lost its checkpoint {job.weights.name}; submit it again")
            folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.name}.{os.getpid()}")
            partial.write_bytes(data)
            partial.replace(path)
        return path

    def _make(self, task: Task, job: Job, number: int, starts: int) -> None:
        key = keys.tile(job.id, task.layer, task.filter)
        if starts > 1 and self._store.exists(key):  # its worker died between storing and noting it
            self.ledger.mark_done(job.id, number)
            return
        try:
            if starts > MAX_STARTS:
                raise RenderFailed(f"{MAX_STARTS} workers ended while they rendered it")
            tile = self._batcher.submit((job.id, task.layer), task.filter).result()
            if tile.error:
                raise RenderFailed(tile.error)
        except RenderFailed as error:
            self._give_up(task, job, number, starts, str(error))
        except (TransientError, StorageDenied, NoBucket, _Cancelled):
            raise
        except FilterfarmError as error:
            if self.ledger.count_attempt(job.id, number) < MAX_ATTEMPTS:
                self._hand_back(error)
            self._give_up(task, job, number, starts, str(error))
        else:
            if tile.frames:  # first, because a tile that is stored is done
                animation = encode_frames(tile.frames)
                self._store.put(keys.frames(job.id, task.layer, task.filter), animation, "image/webp")
            self._store.put(key, encode_tile(tile.pixels, self._record(task, job, tile, starts)), "image/png")
            self.ledger.mark_done(job.id, number)

    def _record(self, task: Task, job: Job, tile: "Tile", starts: int) -> TileRecord:
        return TileRecord(
            job=job.id,
            layer=task.layer,
            filter=task.filter,
            seed=job.recipe.seed,
            status=tile.status,
            start_activation=tile.start_activation,
            activation=tile.activation,
            stored_activation=tile.stored_activation,
            restarts=tile.restarts,
            steps=job.recipe.steps,
            seconds=tile.seconds,
            attempts=starts,
            device=tile.device,
            precision=tile.precision,
            versions=self._versions,
        )

    def _give_up(self, task: Task, job: Job, number: int, starts: int, reason: str) -> None:
        log.error("failed job=%s layer=%s filter=%d: %s", job.id, task.layer, task.filter, reason)
        failure = FailureRecord(job=job.id, layer=task.layer, filter=task.filter, reason=reason, attempts=starts)
        key = keys.failed(job.id, task.layer, task.filter)
        self._store.put(key, failure.model_dump_json(indent=1).encode(), "application/json")
        self.ledger.mark_failed(job.id, number, reason)

    def _hand_back(self, error: BaseException) -> NoReturn:
        log.warning("handed a message back: %s", error)
        self._stopping.wait(HAND_BACK_PAUSE_S)
        raise HandBack from error

    def _run(self, group: Group, filters: tuple[int, ...]) -> "dict[int, Tile | FilterfarmError]":
        if self.ledger.is_cancelled(group[0]):
            raise _Cancelled(f"job {group[0]} was cancelled")
        job, checkpoint = self._job(group[0])
        batch = Batch(job=job, layer=group[1], filters=filters, checkpoint=checkpoint, device=self._settings.device)
        tiles = self._renderer.render(batch)
        seconds = sum(tile.seconds for tile in tiles.values() if not isinstance(tile, FilterfarmError))
        log.info("rendered job=%s layer=%s filters=%d seconds=%.2f", job.id, group[1], len(filters), seconds)
        return tiles
