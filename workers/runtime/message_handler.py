"""One queue message from its body to its end: decode, check, render, store, record. Knows no Celery.

What happens to a message:

    a tile that is stored or has failed, that another
    message is about, or whose job is cancelled           dropped
    a body that names no tile of a known job              logged, dropped
    rendered                                              PNG stored, then noted in the ledger
    cannot be rendered                                    failure stored with its reason, then noted
    an error that may be this machine's, or a bug of ours Requeue; after the third, as one that cannot be rendered
    storage out of reach, device lost, worker stopping    Requeue: the queue gets it again
"""

import json
import logging
import os
import signal
import threading
import uuid
from typing import TYPE_CHECKING, NoReturn

import redis

from workers.clients.broker import connect
from workers.clients.ledger import Ledger
from workers.clients.presence import Presence
from workers.clients.retrying_storage import RetryingStore
from workers.contract import keys
from workers.contract.errors import (
    STORAGE_ERRORS,
    CorruptJob,
    DeviceLost,
    Draining,
    FilterfarmError,
    NoJob,
    RenderFailed,
    TransientError,
)
from workers.contract.job import Job, Task, decode
from workers.contract.records import FailureRecord
from workers.contract.settings import Settings
from workers.runtime.artifacts import tile_artifacts
from workers.runtime.batch_size import candidate_sizes, max_batch_size
from workers.runtime.batcher import Batcher, Group
from workers.runtime.job_cache import JobCache
from workers.runtime.render_process import Batch, Renderer

if TYPE_CHECKING:
    from workers.rendering.tile import Tile

log = logging.getLogger(__name__)

#: Work on a tile that began this often and never ended takes whole workers down with it. Far above what spot
#: machines that vanish can do to one tile, and low enough that a poison ends.
MAX_STARTS = 10

#: Errors that may be one machine's fault (weights it cannot load, too little memory) get this many machines' tries.
MAX_ATTEMPTS = 3

#: Pause before a message goes back because of an error that will still be there in a moment.
HAND_BACK_PAUSE_S = 5.0

#: An incomplete batch waits this long for its next message. One takes a millisecond or two, but a job that is submitted
#: while the device keeps all cores busy sends its messages more slowly.
LINGER_S = 0.25

#: A claim lasts this share of the visibility timeout. Less than all of it, because it begins later than the message's
#: visibility, by up to a quarter; the heartbeat renews both.
CLAIM_SHARE = 0.7

#: What a batch that is about to begin waits for an answer from Redis.
_ANSWER_S = 1.0


class _Cancelled(FilterfarmError):
    """Raised for a tile whose job was cancelled while it waited for its batch."""


class Requeue(Exception):
    """Raised when a message has to go back to the queue."""


class MessageHandler:
    """What one Celery process does with messages. ``handle`` is called by many threads.

    ``MessageHandler(settings, name)`` raises DeviceLost where nothing can be rendered here.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings = settings
        self._stopping = threading.Event()
        client = connect(settings, retries=20)
        self.ledger = Ledger(client)
        self.presence = presence = Presence(client)
        self._store = RetryingStore(
            settings, stop=self._stopping, report=lambda error: presence.report_storage_error(name, error)
        )
        self._claim_s = CLAIM_SHARE * settings.visibility_timeout_s
        #: (job id, tile number) of what this process has claimed
        self._claims: set[tuple[str, int]] = set()
        #: for the batcher, which does not wait for a Redis that is gone: a batch may begin all the same
        self._impatient = Ledger(connect(settings, retries=0, answer_s=_ANSWER_S))
        self._renderer = Renderer(hang_s=settings.hang_s, sizes=candidate_sizes(settings.batch, settings.device))
        try:
            self._renderer.check(settings.device)  # before a message is taken that others could deal with
        except DeviceLost:
            self._renderer.stop()
            raise
        self._batcher: Batcher[Tile] = Batcher(
            self._run, size=settings.batch or max_batch_size(settings.device), linger_s=LINGER_S
        )
        self._jobs = JobCache(self._store, settings.cache_dir)

    def handle(self, body: object) -> None:
        """Deal with one message; returns when it may be acknowledged. Raises Requeue when it may not."""
        try:
            self._store.wait_until_ready()  # before the work: it could not be stored
            task, job = self._decode(body)
        except (CorruptJob, NoJob) as error:
            log.error("dropped a message: %s", error)
            return
        except Draining as error:
            raise Requeue from error
        except STORAGE_ERRORS as error:
            self._hand_back(error)
        number, token = job.numbers[task.layer, task.filter], uuid.uuid4().hex
        starts = self.ledger.claim(job.id, number, token, self._claim_s)
        if not starts:
            return
        self._claims.add((job.id, number))
        stored = False
        try:
            stored = self._attempt(task, job, number, starts)
        finally:
            self._claims.discard((job.id, number))
            self.ledger.end_claim(job.id, number, token, stored=stored)

    def renew_claims(self, ledger: Ledger) -> None:
        """Called every few seconds: keep what this process has claimed."""
        ledger.renew_claims(list(self._claims), self._claim_s)

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
        job = self._jobs.job(task.job)
        if (task.layer, task.filter) not in job.numbers:
            raise CorruptJob(f"job {task.job} has no filter {task.filter} of layer {task.layer!r}")
        return task, job

    def _attempt(self, task: Task, job: Job, number: int, starts: int) -> bool:
        """Whether the tile is stored now."""
        try:
            return self._make(task, job, number, starts)
        except _Cancelled:
            self.ledger.undo_start(job.id, number)
            return False
        except Draining as error:
            self.ledger.undo_start(job.id, number)
            raise Requeue from error
        except (TransientError, *STORAGE_ERRORS) as error:
            self.ledger.undo_start(job.id, number)
            self._hand_back(error)

    def _make(self, task: Task, job: Job, number: int, starts: int) -> bool:
        key = keys.tile(job.id, task.layer, task.filter)
        if starts > 1 and self._store.exists(key):  # its worker died between storing and noting it
            return True
        try:
            if starts > MAX_STARTS:
                raise RenderFailed(f"{MAX_STARTS} workers ended while they rendered it")
            made = self._render(task, job, starts)
        except RenderFailed as error:
            self._give_up(task, job, number, starts, str(error))
        except (TransientError, *STORAGE_ERRORS, _Cancelled, redis.RedisError):
            raise
        except Exception as error:  # of this machine, or a bug of ours: the message must not go round for ever
            known = isinstance(error, FilterfarmError)
            reason = str(error) if known else f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            if not known:
                log.error("unexpected: %s", reason, exc_info=error)
            if self.ledger.count_attempt(job.id, number) < MAX_ATTEMPTS:
                self._hand_back(error)
            self._give_up(task, job, number, starts, reason)
        else:
            for name, body, content_type in made:
                self._store.put(name, body, content_type)
            return True
        return False

    def _render(self, task: Task, job: Job, starts: int) -> list[tuple[str, bytes, str]]:
        """What is to be stored: key, body and content type. The tile is last, because one that is stored is done."""
        self._jobs.checkpoint(job)  # here, where others do not wait for it
        tile = self._batcher.submit((job.id, task.layer), task.filter).result()
        if tile.error:
            raise RenderFailed(tile.error)
        return tile_artifacts(job, task, tile, starts)

    def _give_up(self, task: Task, job: Job, number: int, starts: int, reason: str) -> None:
        log.error("failed job=%s layer=%s filter=%d: %s", job.id, task.layer, task.filter, reason)
        failure = FailureRecord(job=job.id, layer=task.layer, filter=task.filter, reason=reason, attempts=starts)
        key = keys.failed(job.id, task.layer, task.filter)
        self._store.put(key, failure.model_dump_json(indent=1).encode(), "application/json")
        self.ledger.mark_failed(job.id, number, reason)

    def _hand_back(self, error: BaseException) -> NoReturn:
        log.warning("handed a message back: %s", error)
        self._stopping.wait(HAND_BACK_PAUSE_S)
        raise Requeue from error

    def _run(self, group: Group, filters: tuple[int, ...]) -> "dict[int, Tile | FilterfarmError]":
        try:
            cancelled = self._impatient.is_cancelled(group[0])
        except redis.RedisError:
            cancelled = False
        if cancelled:
            raise _Cancelled(f"job {group[0]} was cancelled")
        job = self._jobs.job(group[0])
        checkpoint = self._jobs.checkpoint(job)
        batch = Batch(job=job, layer=group[1], filters=filters, checkpoint=checkpoint, device=self._settings.device)
        try:
            tiles = self._renderer.render(batch, self._batcher.settle)
        except DeviceLost as error:
            log.error("stopping: %s", error)
            os.kill(os.getpid(), signal.SIGTERM)
            raise
        seconds = sum(tile.seconds for tile in tiles.values() if not isinstance(tile, FilterfarmError))
        log.info("rendered job=%s layer=%s filters=%d seconds=%.2f", job.id, group[1], len(filters), seconds)
        return tiles
