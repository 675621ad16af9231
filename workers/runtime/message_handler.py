"""Handles one queue message: decode, claim, render, store, record. Independent of Celery.

message or event                                      outcome
tile stored or failed, claimed by another message,
or of a cancelled job                                 acknowledged without work
body names no tile of a known job                     logged as dropped, acknowledged
tile rendered                                         PNG stored, then recorded in the ledger
tile cannot be rendered                               failure record stored, then recorded in the ledger
error of unknown cause (machine or bug)               Requeue; at the third attempt handled as "cannot be rendered"
object store unreachable, device lost, worker stops   Requeue
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
    one_line,
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

#: A tile of which this many attempts never ended is a failure: it probably ends whole workers. High enough that
#: preempted spot machines do not reach it.
MAX_STARTS = 10

#: Attempts after errors that may be specific to one machine, such as weights it cannot load or too little memory.
MAX_ATTEMPTS = 3

#: Seconds before a message is requeued because of an error that is likely to last.
REQUEUE_DELAY_S = 5.0

#: Seconds that an incomplete batch waits for more messages. A message takes a millisecond or two, or longer if it is
#: submitted on a machine whose cores are all busy rendering.
BATCH_WAIT_S = 0.25

#: Duration of a claim as a share of the visibility timeout. A claim begins up to a quarter of the timeout after the
#: message became invisible, and must not outlast it. The heartbeat renews both.
CLAIM_SHARE = 0.7

#: Timeout in seconds of the cancellation check before each batch.
_ANSWER_S = 1.0


class _Cancelled(FilterfarmError):
    """The job was cancelled while its tile waited for a batch."""


class Requeue(Exception):
    """Raised when a message must be delivered again."""


class MessageHandler:
    """Handles the messages of one Celery process. Thread-safe: each message is handled in a thread of its own.

    ``name``: the name of this worker in Redis. The constructor raises DeviceLost if the device cannot compute.
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
        #: Fail-fast client for the cancellation check. If Redis is unreachable, the batch runs anyway.
        self._fail_fast_ledger = Ledger(connect(settings, retries=0, answer_s=_ANSWER_S))
        self._renderer = Renderer(hang_s=settings.hang_s, sizes=candidate_sizes(settings.batch, settings.device))
        try:
            self._renderer.check(settings.device)  # before any message is taken that another worker could handle
        except DeviceLost:
            self._renderer.stop()
            raise
        self._batcher: Batcher[Tile] = Batcher(
            self._run, size=settings.batch or max_batch_size(settings.device), wait_s=BATCH_WAIT_S
        )
        self._jobs = JobCache(self._store, settings.cache_dir)

    def handle(self, body: object) -> None:
        """Handle one message. Returns when it may be acknowledged, raises Requeue if it must be delivered again."""
        try:
            self._store.wait_until_ready()  # without the store, rendering would be wasted
            task, job = self._decode(body)
        except (CorruptJob, NoJob) as error:
            log.error("dropped message reason=%s", error)
            return
        except Draining as error:
            raise Requeue from error
        except STORAGE_ERRORS as error:
            log.warning("requeued reason=%s", error)
            self._requeue(error)
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
        """Renew the claims of this process. Called by the heartbeat, with its own client."""
        ledger.renew_claims(list(self._claims), self._claim_s)

    def drain(self, timeout_s: float) -> None:
        """Stop: finish the batch on the device within ``timeout_s`` seconds, requeue all other messages."""
        self._batcher.close()
        if not self._batcher.join(timeout_s):
            log.warning("requeued the batch on the device reason=not finished within %g s", timeout_s)
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
        """Render and store the tile. Returns True if it is stored, False if its job is cancelled or it failed."""
        try:
            return self._render_and_store(task, job, number, starts)
        except _Cancelled:
            self.ledger.undo_start(job.id, number)
            return False
        except Draining as error:
            self.ledger.undo_start(job.id, number)
            raise Requeue from error
        except (TransientError, *STORAGE_ERRORS) as error:
            self.ledger.undo_start(job.id, number)
            self._requeue_tile(task, str(error), error)

    def _render_and_store(self, task: Task, job: Job, number: int, starts: int) -> bool:
        key = keys.tile(job.id, task.layer, task.filter)
        if starts > 1 and self._store.exists(key):  # its worker died between storing and recording it
            return True
        try:
            if starts > MAX_STARTS:
                raise RenderFailed(f"{MAX_STARTS} workers ended while rendering it")
            artifacts = self._render(task, job, starts)
        except RenderFailed as error:
            self._store_failure(task, job, number, starts, str(error))
        except (TransientError, *STORAGE_ERRORS, _Cancelled, redis.RedisError):
            raise
        except Exception as error:  # of this machine, or a bug; not requeued without end
            known = isinstance(error, FilterfarmError)
            reason = str(error) if known else f"{type(error).__name__}: {one_line(error, 300)}"
            if not known:
                tile = job.id, task.layer, task.filter
                log.error("unexpected job=%s layer=%s filter=%d reason=%s", *tile, reason, exc_info=error)
            if self.ledger.count_attempt(job.id, number) < MAX_ATTEMPTS:
                self._requeue_tile(task, reason, error)
            self._store_failure(task, job, number, starts, reason)
        else:
            for name, body, content_type in artifacts:
                self._store.put(name, body, content_type)
            return True
        return False

    def _render(self, task: Task, job: Job, starts: int) -> list[tuple[str, bytes, str]]:
        """Key, body and content type of each object to store. Raises RenderFailed, and what the batch raises."""
        self._jobs.checkpoint(job)  # downloads in this thread, so that other jobs' batches do not wait
        tile = self._batcher.submit((job.id, task.layer), task.filter).result()
        if tile.error:
            raise RenderFailed(tile.error)
        return tile_artifacts(job, task, tile, starts)

    def _store_failure(self, task: Task, job: Job, number: int, starts: int, reason: str) -> None:
        log.error("failed job=%s layer=%s filter=%d reason=%s", job.id, task.layer, task.filter, reason)
        failure = FailureRecord(job=job.id, layer=task.layer, filter=task.filter, reason=reason, attempts=starts)
        key = keys.failed(job.id, task.layer, task.filter)
        self._store.put(key, failure.model_dump_json(indent=1).encode(), "application/json")
        self.ledger.mark_failed(job.id, number, reason)

    def _requeue_tile(self, task: Task, reason: str, error: BaseException) -> NoReturn:
        log.warning("requeued job=%s layer=%s filter=%d reason=%s", task.job, task.layer, task.filter, reason)
        self._requeue(error)

    def _requeue(self, error: BaseException) -> NoReturn:
        self._stopping.wait(REQUEUE_DELAY_S)
        raise Requeue from error

    def _run(self, group: Group, filters: tuple[int, ...]) -> "dict[int, Tile | FilterfarmError]":
        """Render one batch; called by the batcher's thread."""
        try:
            cancelled = self._fail_fast_ledger.is_cancelled(group[0])
        except redis.RedisError:
            cancelled = False
        if cancelled:
            raise _Cancelled(f"job {group[0]} was cancelled")
        job = self._jobs.job(group[0])
        checkpoint = self._jobs.checkpoint(job)
        batch = Batch(job=job, layer=group[1], filters=filters, checkpoint=checkpoint, device=self._settings.device)
        try:
            tiles = self._renderer.render(batch, self._batcher.resolve_previous)
        except DeviceLost as error:
            log.error("stopping reason=%s", error)
            os.kill(os.getpid(), signal.SIGTERM)
            raise
        seconds = sum(tile.seconds for tile in tiles.values() if not isinstance(tile, FilterfarmError))
        log.info("rendered job=%s layer=%s filters=%d seconds=%.2f", job.id, group[1], len(filters), seconds)
        return tiles
