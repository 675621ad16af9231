"""Handles one queue message: decode, claim, render, store, record. Independent of Celery.

message or event                                      outcome
tile stored or failed, claimed by another message,
or of a cancelled job                                 acknowledged without work
body names no tile of a known job                     logged as dropped, acknowledged
tile rendered                                         PNG stored, then recorded in the ledger
no machine can render the tile                        failure record stored, then recorded in the ledger
tile cannot be rendered here                          Requeue for other machines; once three of them, or all there are
                                                      after a wait, have tried: as if no machine could
object store unreachable, device lost, worker stops,
machine without weights or cache, job of a later
version                                               Requeue
"""

import logging
import os
import signal
import threading
import uuid
from typing import TYPE_CHECKING, NoReturn

import redis

from workers.clients.broker import connect
from workers.clients.claims import Attempts, Claim
from workers.clients.ledger import Ledger
from workers.clients.presence import Presence, machine_of
from workers.clients.retrying_storage import RetryingStore
from workers.contract import keys
from workers.contract.errors import (
    MACHINE_ERRORS,
    STORAGE_ERRORS,
    CorruptJob,
    DeviceLost,
    Draining,
    FilterfarmError,
    JobNotUnderstood,
    NoJob,
    TransientError,
    Unrenderable,
    one_line,
)
from workers.contract.job import Job, Task, decode_task
from workers.contract.keys import RedisKeys
from workers.contract.records import FailureRecord
from workers.contract.settings import Settings
from workers.runtime.artifacts import tile_artifacts
from workers.runtime.batch_runner import BatchRunner, Cancelled
from workers.runtime.batch_size import candidate_sizes, max_batch_size
from workers.runtime.batcher import Batcher
from workers.runtime.job_cache import JobCache
from workers.runtime.machine_health import MachineHealth
from workers.runtime.other_machines import OtherMachines
from workers.runtime.render_process import Renderer

if TYPE_CHECKING:
    from workers.rendering.tile import Tile

log = logging.getLogger(__name__)

#: A tile of which this many attempts never ended is a failure: it probably ends whole workers. High enough that
#: preempted spot machines do not reach it.
MAX_STARTS = 10

#: Seconds before a message is requeued because of an error that is likely to last.
REQUEUE_DELAY_S = 5.0

#: Seconds that an incomplete batch waits for more messages. A message takes a millisecond or two, or longer if it is
#: submitted on a machine whose cores are all busy rendering.
BATCH_WAIT_S = 0.25

#: Duration of a claim as a share of the visibility timeout. A claim begins up to a quarter of the timeout after the
#: message became invisible, and must not outlast it. The heartbeat renews both.
CLAIM_SHARE = 0.7


class Requeue(Exception):
    """Raised when a message must be delivered again."""


class MessageHandler:
    """Handles the messages of one Celery process. Thread-safe: each message is handled in a thread of its own.

    ``name``: the name of this worker in Redis. The constructor raises DeviceLost if the device cannot compute.
    """

    def __init__(self, settings: Settings, names: RedisKeys, name: str) -> None:
        self._settings = settings
        self._machine = machine_of(name)
        self._stopping = threading.Event()
        client = connect(settings, retries=20)
        self.ledger = Ledger(client, names)
        self.presence = presence = Presence(client, names)
        self._store = RetryingStore(
            settings, stop=self._stopping, report=lambda error: presence.report_storage_error(name, error)
        )
        self._others = OtherMachines(self._machine, presence, self._store)
        self._claim_s = CLAIM_SHARE * settings.visibility_timeout_s
        #: (job id, tile number) of what this process has claimed
        self._claims: set[tuple[str, int]] = set()
        self._renderer = Renderer(hang_s=settings.hang_s, sizes=candidate_sizes(settings.batch, settings.device))
        try:
            self._renderer.check(settings.device)  # before any message is taken that another worker could handle
        except DeviceLost:
            self._renderer.stop()
            raise
        self._jobs = JobCache(self._store, settings.cache_dir, allows=settings.allows)
        self.health = MachineHealth(self._machine, presence, stop=lambda: os.kill(os.getpid(), signal.SIGTERM))
        self._runner = runner = BatchRunner(settings, names, self._renderer, self._jobs, self.health)
        self._batcher: Batcher[Tile] = Batcher(
            lambda group, filters: runner.run(group, filters, self._batcher.resolve_previous),
            size=settings.batch or max_batch_size(settings.device),
            wait_s=BATCH_WAIT_S,
        )

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
        except JobNotUnderstood as error:
            if self._others.take_job(error):
                log.warning("requeued reason=%s", error)
                self._requeue(error)
            log.error("dropped message reason=no job %r in the bucket, and %s", error.job_id, error)
            return
        except STORAGE_ERRORS as error:
            log.warning("requeued reason=%s", error)
            self._requeue(error)
        number, token = job.tiles.number(task.layer, task.filter), uuid.uuid4().hex
        claim = self.ledger.claim(job.id, number, token, self._claim_s)
        if claim is None:
            return
        self._claims.add((job.id, number))
        stored = False
        try:
            stored = self._attempt(task, job, number, claim)
        finally:
            self._claims.discard((job.id, number))
            self._runner.begun.discard((job.id, number))
            self.ledger.end_claim(job.id, number, token, stored=stored)

    @property
    def silent_s(self) -> float:
        """Seconds for which the renderer has had work and shown no progress."""
        return self._renderer.silent_s

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
        task = decode_task(body)
        job = self._jobs.job(task.job)
        if (task.layer, task.filter) not in job.tiles:
            raise CorruptJob(f"job {task.job} has no filter {task.filter} of layer {task.layer!r}")
        return task, job

    def _attempt(self, task: Task, job: Job, number: int, claim: Claim) -> bool:
        """Render and store the tile. Returns True if it is stored, False if its job is cancelled or it failed."""
        try:
            return self._render_and_store(task, job, number, claim)
        except Cancelled:
            self._undo(job, number)
            return False
        except Draining as error:
            self._undo(job, number)
            raise Requeue from error
        except (TransientError, *MACHINE_ERRORS, *STORAGE_ERRORS) as error:
            self._undo(job, number)
            self._requeue_tile(task, str(error), error)

    def _undo(self, job: Job, number: int) -> None:
        """Subtract the attempt at a tile whose message is requeued, if it was on the device."""
        if (job.id, number) in self._runner.begun:
            self.ledger.undo_start(job.id, number)

    def _render_and_store(self, task: Task, job: Job, number: int, claim: Claim) -> bool:
        key = keys.tile(job.id, task.layer, task.filter)
        if claim.starts and self._store.exists(key):  # its worker died between storing and recording it
            return True
        attempts = claim.attempts
        try:
            if claim.starts >= MAX_STARTS:
                raise Unrenderable(f"{MAX_STARTS} workers ended while rendering it")
            if self._machine in attempts.reasons:
                return self._leave_to_others(task, job, number, attempts)
            artifacts = self._render(task, job, 1 + claim.starts + len(attempts.reasons))
        except Unrenderable as error:
            self._store_failure(task, job, number, claim.starts, str(error))
            return False
        except (TransientError, *MACHINE_ERRORS, *STORAGE_ERRORS, Cancelled, redis.RedisError, Requeue):
            raise
        except Exception as error:  # of this machine, of the tile, or a bug
            known = isinstance(error, FilterfarmError)
            reason = str(error) if known else f"{type(error).__name__}: {one_line(error, 300)}"
            if not known:
                tile = job.id, task.layer, task.filter
                log.error("unexpected job=%s layer=%s filter=%d reason=%s", *tile, reason, exc_info=error)
            attempts = attempts.with_reason(self._machine, reason)
            self.ledger.record_attempts(job.id, number, attempts)
            return self._leave_to_others(task, job, number, attempts)
        for name, body, content_type in artifacts:
            self._store.put(name, body, content_type)
        return True

    def _leave_to_others(self, task: Task, job: Job, number: int, attempts: Attempts) -> bool:
        """Requeue a tile that this machine cannot render; once no other is left to try, record its failure."""
        *_, reason = attempts.reasons.values()
        if self._others.may_try(attempts):
            self._undo(job, number)
            self._requeue_tile(task, f"left to other machines: {reason}", None)
        where = f" (on {', '.join(attempts.reasons)})" if len(attempts.reasons) > 1 else ""
        self._store_failure(task, job, number, len(attempts.reasons), f"{reason}{where}")
        return False

    def _render(self, task: Task, job: Job, attempt: int) -> list[tuple[str, bytes, str]]:
        """Key, body and content type of each object to store. Raises Unrenderable, and what the batch raises."""
        try:
            self._jobs.checkpoint(job)  # downloads in this thread, so that other jobs' batches do not wait
        except MACHINE_ERRORS as error:
            self.health.failed(str(error))
            raise
        tile = self._batcher.submit((job.id, task.layer), task.filter).result()
        if tile.error:
            raise Unrenderable(tile.error)
        return tile_artifacts(job, task, tile, attempt)

    def _store_failure(self, task: Task, job: Job, number: int, starts: int, reason: str) -> None:
        log.error("failed job=%s layer=%s filter=%d reason=%s", job.id, task.layer, task.filter, reason)
        failure = FailureRecord(job=job.id, layer=task.layer, filter=task.filter, reason=reason, attempts=starts)
        key = keys.failed(job.id, task.layer, task.filter)
        self._store.put(key, failure.model_dump_json(indent=1).encode(), "application/json")
        self.ledger.mark_failed(job.id, number, reason)

    def _requeue_tile(self, task: Task, reason: str, error: BaseException | None) -> NoReturn:
        log.warning("requeued job=%s layer=%s filter=%d reason=%s", task.job, task.layer, task.filter, reason)
        self._requeue(error)

    def _requeue(self, error: BaseException | None) -> NoReturn:
        self._stopping.wait(REQUEUE_DELAY_S)
        raise Requeue from error
