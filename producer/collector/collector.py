"""The collector: a loop that compares what each job should have with what it has, and makes what is missing.

It is level-triggered. Each pass reads the whole state (job.json, ledger, bucket), so the collector may be killed,
started twice or started late. It re-enqueues tiles whose message was lost, assembles complete layers, finishes complete
jobs, and restores jobs from the bucket after Redis was emptied.
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

#: Pause between two passes. A pass without changes costs a few Redis commands.
PASS_S = 1.0

#: A job that lacks tiles and has had no message for this long has lost them. Longer than the moment in which a message
#: is neither in its queue nor in Kombu's ``unacked`` hash.
LOST_S = 5.0

#: Pause between two listings of the bucket for jobs that Redis does not know.
RESCAN_S = 60.0

#: Additional pause after a pass that failed with an object store error, besides the client's own retries.
STORAGE_PAUSE_S = 5.0

#: The collector's lock expires after this long without a renewal, and another collector takes over.
LOCK_S = 30.0


@dataclass(kw_only=True)
class _Watched:
    """A job's state between two passes. It is a cache: losing it costs a few requests."""

    job: Job
    #: id of the submission; a later submission may have deleted records
    submission: str
    assembled: set[str] = field(default_factory=set)
    #: number of tiles that are stored or failed, -1 before the first pass
    ended: int = -1
    progress_at: float = field(default_factory=time.monotonic)
    #: time of the first pass in a row that found no message of the job
    idle_since: float | None = None


class Collector:
    """One collector. ``run`` loops; ``run_pass`` examines every job once."""

    def __init__(self, settings: Settings, *, store: Store, ledger: Ledger, app: Celery) -> None:
        #: a job without progress for longer than a redelivery takes has lost its missing messages
        self._stalled_s = settings.visibility_timeout_s + 30.0
        self._store, self._ledger, self._app = store, ledger, app
        self._lock = ledger.client.lock(keys.COLLECTOR_LOCK, timeout=LOCK_S)
        self._watched: dict[str, _Watched] = {}
        self._ended_jobs: set[str] = set()
        self._presence = Presence(ledger.client)
        self._storage_failed = False
        self._scanned_at: float | None = None

    def run(self, stop: threading.Event) -> None:
        """Loop until ``stop``. Errors of the object store and the broker are logged, and the next pass retries."""
        standby_logged, last_error = False, ""
        try:
            while not stop.is_set():
                try:
                    if self._lock.owned() or self._lock.acquire(blocking=False):
                        standby_logged = False
                        self._lock.reacquire()
                        self.run_pass()
                    elif not standby_logged:
                        standby_logged = True
                        log.info("standby lock=%s", keys.COLLECTOR_LOCK)
                    self._clear_storage_error()
                    last_error = ""
                except (FilterfarmError, redis.RedisError, KombuError, OSError) as error:
                    text = f"collector pass aborted reason={one_line(error, 300)}"
                    if text != last_error:  # once per reason, not once per pass
                        log.warning(text)
                    last_error = text
                    if isinstance(error, STORAGE_ERRORS):
                        self._report_storage_error(error)
                        stop.wait(STORAGE_PAUSE_S)
                stop.wait(PASS_S)
        finally:
            try:
                if self._lock.owned():
                    self._lock.release()
            except redis.RedisError as error:
                log.warning("cannot release the collector's lock reason=%s", one_line(error))

    def _clear_storage_error(self) -> None:
        if self._storage_failed:
            self._presence.report_storage_error(COLLECTOR, None)
            self._storage_failed = False
            log.info("object store reachable again")

    def _report_storage_error(self, error: FilterfarmError) -> None:
        """Publish the error in Redis, where ``filterfarm status`` finds it."""
        try:
            self._presence.report_storage_error(COLLECTOR, error)
            self._storage_failed = True
        except redis.RedisError as cause:
            log.warning("cannot report the object store error reason=%s", one_line(cause))

    def run_pass(self) -> None:
        """Examine every job once. Raises object store and broker errors, and LockError if the lock was lost."""
        self._restore_forgotten()
        ids = self._ledger.jobs()
        self._ended_jobs -= ids
        for job_id in set(self._watched) - ids:
            del self._watched[job_id]
        missing = {}
        for job_id in sorted(ids):
            self._renew_lock()
            try:
                watched = self._watch(job_id)
                if watched is not None and not self._ledger.is_submitting(job_id):
                    missing[job_id] = self._advance(watched)
            except (FilterfarmError, redis.RedisError):
                raise
            except Exception as error:  # a fault in one job must not stop the others
                log.error("unexpected job=%s reason=%s: %s", job_id, type(error).__name__, one_line(error, 300))
        self._requeue_lost(missing)

    def _restore_forgotten(self) -> None:
        """Register unfinished jobs of the bucket that Redis does not know."""
        now = time.monotonic()
        if self._scanned_at is not None and now - self._scanned_at < RESCAN_S:
            return
        self._scanned_at = now
        known = self._ledger.jobs() | self._ended_jobs
        for job_id in self._store.folders():
            if job_id in known or not keys.is_name(job_id) or not self._store.exists(keys.job(job_id)):
                continue
            if self._ledger.is_cancelled(job_id):  # status.json is written after Redis
                continue
            if read_state(self._store, job_id) == "running":
                log.info("restored job=%s", job_id)
                self._ledger.register(job_id)
            else:
                self._ended_jobs.add(job_id)

    def _watch(self, job_id: str) -> _Watched | None:
        """The job's cached state, loaded if needed; None if the job is unreadable."""
        submission = self._ledger.submission(job_id)
        if job_id not in self._watched or self._watched[job_id].submission != submission:
            try:
                self._watched[job_id] = _Watched(job=load_job(job_id, self._store), submission=submission)
            except (CorruptJob, NoJob) as error:
                log.error("ignoring unreadable job=%s reason=%s", job_id[:128], error)
                self._ledger.unregister(job_id)
                return None
        watched = self._watched[job_id]
        if not self._ledger.is_synced(job_id):
            stored, failed = inventory(watched.job, self._store)
            log.info("synced job=%s stored=%d failed=%d", job_id, len(stored), len(failed))
            self._ledger.sync(watched.job, stored, failed)
        return watched

    def _advance(self, watched: _Watched) -> set[int]:
        """Assemble complete layers, and finish the job if all are; returns the numbers of missing tiles."""
        job = watched.job
        failed = self._ledger.failed(job.id)
        ended = self._ledger.done(job.id) | failed.keys()
        if len(ended) != watched.ended:
            watched.ended, watched.progress_at = len(ended), time.monotonic()
        for layer in job.layers:
            numbers = set(job.tiles.of_layer(layer))
            if layer.name in watched.assembled or not numbers <= ended:
                continue
            if not self._is_assembled(job, layer.name):
                broken = assemble(job, layer, failed, self._store, self._renew_lock)
                if broken:
                    log.warning("reopened job=%s layer=%s tiles=%d", job.id, layer.name, len(broken))
                    again = {job.tiles.number(layer.name, filter_) for filter_ in broken}
                    self._ledger.reopen(job.id, again)
                    ended -= again
                    continue
                log.info("assembled job=%s layer=%s filters=%d", job.id, layer.name, len(layer.selected))
            watched.assembled.add(layer.name)
        if len(watched.assembled) == len(job.layers):
            unreadable = write_gallery(job, self._store)
            watched.assembled -= unreadable  # the next pass assembles them again
            if not unreadable:
                self._finish(job, failed)
        return set(range(len(job.tiles))) - ended

    def _is_assembled(self, job: Job, layer: str) -> bool:
        return self._store.exists(keys.records(job.id, layer)) and self._store.exists(keys.grid(job.id, layer))

    def _finish(self, job: Job, failed: dict[int, str]) -> None:
        write_status(self._store, job.id, "finished", reasons=reasons_by_tile(job, failed))
        self._ledger.unregister(job.id)
        del self._watched[job.id]
        log.info("finished job=%s state=finished tiles=%d failed=%d", job.id, len(job.tiles), len(failed))

    def _requeue_lost(self, missing: dict[str, set[int]]) -> None:
        """Enqueue missing tiles again whose messages are in no queue and with no worker."""
        # Jobs that this pass has finished are no longer watched.
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
                log.warning("requeued job=%s tiles=%d reason=messages lost", job_id, len(numbers))
                self._renew_lock()
                enqueue_tiles(watched.job, numbers, self._ledger, self._app)
                self._ledger.record_requeued(job_id, numbers)
                self._ledger.end_submission(job_id)
                watched.progress_at, watched.idle_since = now, None

    def _renew_lock(self) -> None:
        """Renew the lock; raises redis.exceptions.LockError if another collector has taken over."""
        try:
            self._lock.reacquire()
        except LockError:
            log.warning("lost lock=%s", keys.COLLECTOR_LOCK)
            raise
