"""The loop that makes every job end: what should exist against what does.

It is level-triggered: each round looks at the whole state (job.json, ledger, bucket) and does what is missing, so it
can be killed, doubled or started late without harm. It re-enqueues what Celery on Redis lost, assembles each layer
that is whole, finishes the job, and takes up jobs again that an emptied Redis has forgotten.
"""

import logging
import threading
import time
from dataclasses import dataclass, field

import redis
from celery import Celery
from kombu.exceptions import KombuError
from redis.exceptions import LockError

from producer.collector.assembly import assemble, write_gallery
from producer.jobs.inventory import inventory, load_job, read_state, reasons_by_tile, write_status
from producer.jobs.submit import enqueue_tiles
from workers.clients.broker import outstanding
from workers.clients.ledger import Ledger
from workers.clients.presence import COLLECTOR, Presence
from workers.clients.storage import Store
from workers.contract import keys
from workers.contract.errors import STORAGE_ERRORS, CorruptJob, FilterfarmError, NoJob, one_line
from workers.contract.job import Job
from workers.contract.settings import Settings

log = logging.getLogger(__name__)

#: Between rounds; a round costs a handful of Redis commands.
ROUND_S = 1.0

#: Nothing of a job queued and nothing with a worker, for this long, while tiles are missing: their messages are lost.
#: It only has to outlast the moment in which a message is between the queue and Kombu's ``unacked``.
LOST_S = 5.0

#: Between looks at the bucket for jobs that Redis does not know.
RESCAN_S = 60.0

#: Between rounds while the object store refuses or fails, beside the store's own retries.
STORAGE_PAUSE_S = 5.0

#: The collector that acts says so this often, or another one takes over.
LOCK_S = 30.0


@dataclass(kw_only=True)
class _Watched:
    """What this collector remembers of a job between rounds; losing it costs a few requests."""

    job: Job
    #: the submission it belongs to: a later one may have taken sheets back
    submission: str
    assembled: set[str] = field(default_factory=set)
    ended: int = -1
    progress_at: float = field(default_factory=time.monotonic)
    #: since when it has had no message at all
    idle_since: float | None = None


class Collector:
    """One collector. ``run`` loops; ``round`` is one look at everything."""

    def __init__(self, settings: Settings, *, store: Store, ledger: Ledger, app: Celery) -> None:
        #: a job without progress for longer than a redelivery takes has lost messages, if any are missing at all
        self._stalled_s = settings.visibility_timeout_s + 30.0
        self._store, self._ledger, self._app = store, ledger, app
        self._lock = ledger.client.lock(keys.COLLECTOR_LOCK, timeout=LOCK_S)
        self._watched: dict[str, _Watched] = {}
        self._ended_jobs: set[str] = set()
        self._presence = Presence(ledger.client)
        self._storage_failed = False
        self._scanned_at: float | None = None

    def run(self, stop: threading.Event) -> None:
        """Loop until ``stop``; errors of storage and broker are logged, and the next round tries again."""
        waiting_told, cut_short = False, ""
        try:
            while not stop.is_set():
                try:
                    if self._lock.owned() or self._lock.acquire(blocking=False):
                        waiting_told = False
                        self._lock.reacquire()
                        self.round()
                    elif not waiting_told:
                        waiting_told = True
                        log.info("another collector is at work; waiting to take over")
                    self._storage_answers()
                    cut_short = ""
                except (FilterfarmError, redis.RedisError, KombuError, OSError) as error:
                    text = f"round cut short: {one_line(error, 300)}"
                    if text != cut_short:  # once for each reason, not once a round
                        log.warning(text)
                    cut_short = text
                    if isinstance(error, STORAGE_ERRORS):
                        self._storage_fails(error)
                        stop.wait(STORAGE_PAUSE_S)
                stop.wait(ROUND_S)
        finally:
            try:
                if self._lock.owned():
                    self._lock.release()
            except redis.RedisError as error:
                log.warning("could not give up the collector's lock: %s", error)

    def _storage_answers(self) -> None:
        if self._storage_failed:
            self._presence.report_storage_error(COLLECTOR, None)
            self._storage_failed = False
            log.info("the object store answers again")

    def _storage_fails(self, error: FilterfarmError) -> None:
        """Tell whoever asks for a job's status, which the store cannot."""
        try:
            self._presence.report_storage_error(COLLECTOR, error)
            self._storage_failed = True
        except redis.RedisError as cause:
            log.warning("could not note that the object store fails: %s", cause)

    def round(self) -> None:
        """Look at every job once."""
        self._adopt_forgotten()
        ids = self._ledger.jobs()
        self._ended_jobs -= ids
        for job_id in set(self._watched) - ids:
            del self._watched[job_id]
        missing = {}
        for job_id in sorted(ids):
            self._still_mine()
            try:
                watched = self._watch(job_id)
                if watched is not None and not self._ledger.is_submitting(job_id):
                    missing[job_id] = self._advance(watched)
            except (FilterfarmError, redis.RedisError):
                raise
            except Exception as error:  # whatever is wrong with one job must not stop the others
                log.error("job %s: %s: %s", job_id, type(error).__name__, one_line(error, 300))
        self._mend(missing)

    def _adopt_forgotten(self) -> None:
        """Put jobs of the bucket that Redis does not know, and that have not ended, on the list."""
        now = time.monotonic()
        if self._scanned_at is not None and now - self._scanned_at < RESCAN_S:
            return
        self._scanned_at = now
        known = self._ledger.jobs() | self._ended_jobs
        for job_id in self._store.folders():
            if job_id in known or not keys.is_name(job_id) or not self._store.exists(keys.job(job_id)):
                continue
            if self._ledger.is_cancelled(job_id):  # the bucket hears of that a moment later
                continue
            if read_state(self._store, job_id) == "running":
                log.info("taking up job %s from the bucket", job_id)
                self._ledger.register(job_id)
            else:
                self._ended_jobs.add(job_id)

    def _watch(self, job_id: str) -> _Watched | None:
        submission = self._ledger.submission(job_id)
        if job_id not in self._watched or self._watched[job_id].submission != submission:
            try:
                self._watched[job_id] = _Watched(job=load_job(job_id, self._store), submission=submission)
            except (CorruptJob, NoJob) as error:
                log.error("gave up a job: %s", error)
                self._ledger.unregister(job_id)
                return None
        watched = self._watched[job_id]
        if not self._ledger.is_synced(job_id):
            stored, failed = inventory(watched.job, self._store)
            log.info("job %s: the ledger is new; %d tiles are stored", job_id, len(stored))
            self._ledger.sync(watched.job, stored, failed)
        return watched

    def _advance(self, watched: _Watched) -> set[int]:
        """Assemble what is whole, finish what is done; returns the numbers of missing tiles."""
        job = watched.job
        failed = self._ledger.failed(job.id)
        ended = self._ledger.done(job.id) | failed.keys()
        if len(ended) != watched.ended:
            watched.ended, watched.progress_at = len(ended), time.monotonic()
        for layer in job.layers:
            numbers = {job.numbers[layer.name, filter_] for filter_ in layer.selected}
            if layer.name in watched.assembled or not numbers <= ended:
                continue
            if not self._is_assembled(job, layer.name):
                broken = assemble(job, layer, failed, self._store, self._still_mine)
                if broken:
                    log.warning("job %s layer %s: %d tiles are not as stored", job.id, layer.name, len(broken))
                    again = {job.numbers[layer.name, filter_] for filter_ in broken}
                    self._ledger.reopen(job.id, again)
                    ended -= again
                    continue
                log.info("assembled job=%s layer=%s filters=%d", job.id, layer.name, len(layer.selected))
            watched.assembled.add(layer.name)
        if len(watched.assembled) == len(job.layers):
            unreadable = write_gallery(job, self._store)
            watched.assembled -= unreadable  # made again in the next round
            if not unreadable:
                self._finish(job, failed)
        return set(range(len(job.tiles))) - ended

    def _is_assembled(self, job: Job, layer: str) -> bool:
        return self._store.exists(keys.records(job.id, layer)) and self._store.exists(keys.grid(job.id, layer))

    def _finish(self, job: Job, failed: dict[int, str]) -> None:
        write_status(self._store, job.id, "finished", reasons=reasons_by_tile(job, failed))
        self._ledger.unregister(job.id)
        del self._watched[job.id]
        log.info("finished job=%s tiles=%d failed=%d", job.id, len(job.tiles), len(failed))

    def _mend(self, missing: dict[str, set[int]]) -> None:
        """Enqueue again what is in no queue and with no worker."""
        # Those that were finished in this very round are not watched any more.
        open_jobs = {job_id: numbers for job_id, numbers in missing.items() if numbers and job_id in self._watched}
        if not open_jobs:
            return
        now = time.monotonic()
        for job_id, messages in outstanding(self._ledger.client, open_jobs).items():
            watched, numbers = self._watched[job_id], open_jobs[job_id]
            if messages.total:
                watched.idle_since = None
            elif watched.idle_since is None:
                watched.idle_since = now
            lost = watched.idle_since is not None and now - watched.idle_since >= LOST_S
            stalled = now - watched.progress_at >= self._stalled_s and messages.total < len(numbers)
            if lost or stalled:
                log.warning("job %s: %d tiles are in no queue; enqueueing them again", job_id, len(numbers))
                self._still_mine()
                enqueue_tiles(watched.job, numbers, self._ledger, self._app)
                self._ledger.record_requeued(job_id, numbers)
                self._ledger.end_submission(job_id)
                watched.progress_at, watched.idle_since = now, None

    def _still_mine(self) -> None:
        """Renew the lock; raises redis.exceptions.LockError where another collector has taken over."""
        try:
            self._lock.reacquire()
        except LockError:
            log.warning("another collector has taken over")
            raise
