"""The collector: a loop that compares what each job should have with what it has, and makes what is missing.

It is level-triggered. Each pass reads the whole state (job.json, ledger, bucket), so the collector may be killed,
started twice or started late. It sends messages as queues empty, re-enqueues tiles whose message was lost, assembles
complete layers, previews others in the gallery, finishes complete jobs, and restores jobs from the bucket after Redis
was emptied.
"""

import logging
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import redis
from celery import Celery
from kombu.exceptions import KombuError
from redis.exceptions import LockError

from producer.collector.jobs_index import JobsIndex
from producer.collector.lost_messages import LostMessages
from producer.collector.previews import Previews
from producer.collector.watched_job import WatchedJob
from producer.jobs.feeding import feed, send
from producer.jobs.inventory import inventory, read_state, reasons_by_tile, write_status
from workers.clients.ledger import Ledger
from workers.clients.presence import COLLECTOR, Presence
from workers.clients.storage import Store
from workers.contract import keys
from workers.contract.errors import STORAGE_ERRORS, CorruptJob, FilterfarmError, NoJob, one_line
from workers.contract.settings import Settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

#: Pause between two passes. A pass without changes costs a few Redis commands.
PASS_S = 1.0

#: Pause between two listings of the bucket for jobs that Redis does not know.
RESCAN_S = 60.0

#: Additional pause after a pass that failed with an object store error, besides the client's own retries.
STORAGE_PAUSE_S = 5.0

#: The collector's lock expires after this long without a renewal, and another collector takes over.
LOCK_S = 30.0

#: Seconds between two renewals.
_RENEW_S = 5.0


class Collector:
    """One collector. ``run`` loops; ``run_pass`` examines every job once."""

    def __init__(self, settings: Settings, *, store: Store, ledger: Ledger, app: Celery) -> None:
        self._place = settings.place
        self._store, self._ledger, self._app = store, ledger, app
        self._lock = ledger.client.lock(ledger.names.collector, timeout=LOCK_S)
        self._renew_at = 0.0
        self._lost = LostMessages(ledger)
        self._previews = Previews(store, self._renew_lock)
        self._index = JobsIndex(store)
        self._watched: dict[str, WatchedJob] = {}
        self._ended_jobs: set[str] = set()
        self._presence = Presence(ledger.client, ledger.names)
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
                        self._renew_at = 0.0
                        self.run_pass()
                    elif not standby_logged:
                        standby_logged = True
                        log.info("standby lock=%s", self._ledger.names.collector)
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
        self._renew_lock()
        self._restore_forgotten()
        ids = self._ledger.jobs()
        self._ended_jobs -= ids
        for job_id in set(self._watched) - ids:
            self._drop(self._watched.pop(job_id))
        missing = {}
        for job_id in sorted(ids):
            self._renew_lock()
            try:
                watched = self._watch(job_id)
                if watched is not None and not self._ledger.is_submitting(job_id):
                    ended = self._advance(watched)
                    if job_id in self._watched:  # which the pass has not finished
                        feed(watched.job, self._ledger, self._app, open_jobs=len(ids))
                        fed = self._ledger.fed(job_id)
                        missing[job_id] = watched.job, np.flatnonzero(~ended[:fed])
            except (FilterfarmError, redis.RedisError, KombuError):
                raise
            except Exception as error:  # a fault in one job must not stop the others
                log.error("unexpected job=%s reason=%s: %s", job_id, type(error).__name__, one_line(error, 300))
        for job_id, numbers in self._lost.find(missing).items():
            log.warning("requeued job=%s tiles=%d reason=messages lost", job_id, len(numbers))
            send(self._watched[job_id].job, sorted(numbers), self._ledger, self._app)
            self._ledger.record_requeued(job_id, numbers)
        for (job_id, layer), facts in self._previews.look().items():
            self._watched[job_id].layers.facts[layer] = facts
        self._index.write()

    def _restore_forgotten(self) -> None:
        """Register unfinished jobs of the bucket that Redis does not know."""
        now = time.monotonic()
        if self._scanned_at is not None and now - self._scanned_at < RESCAN_S:
            return
        self._scanned_at = now
        self._ledger.client.hset(keys.FARMS, self._ledger.names.farm, self._place)  # an emptied Redis has lost it
        known = self._ledger.jobs() | self._ended_jobs
        folders = set(self._store.folders())
        self._index.retain(folders)
        for job_id in sorted(folders):
            if job_id in known or not keys.is_name(job_id) or not self._store.exists(keys.job(job_id)):
                continue
            # status.json is written after Redis
            is_cancelled = self._ledger.is_cancelled(job_id)
            state = "cancelled" if is_cancelled else read_state(self._store, job_id)
            if state == "running":
                log.info("restored job=%s", job_id)
                self._ledger.register(job_id)
                continue
            self._index.note_ended(job_id, state)
            if not is_cancelled:
                self._ended_jobs.add(job_id)

    def _watch(self, job_id: str) -> WatchedJob | None:
        """The job's cached state, loaded if needed; None if the job is unreadable."""
        submission = self._ledger.submission(job_id)
        if job_id not in self._watched or self._watched[job_id].submission != submission:
            try:
                watched = self._watched[job_id] = WatchedJob.load(job_id, submission, self._store)
                self._previews.forget(job_id)
                self._index.put(watched.gallery.document)
            except (CorruptJob, NoJob) as error:
                log.error("ignoring unreadable job=%s reason=%s", job_id[:128], error)
                self._ledger.unregister(job_id)
                return None
        watched = self._watched[job_id]
        if not self._ledger.is_synced(job_id):
            before = self._ledger.done_bits(job_id)
            stored, failed = inventory(watched.job, self._store)
            log.info("synced job=%s stored=%d failed=%d", job_id, int(stored.sum()), len(failed))
            self._ledger.sync(watched.job, stored, failed, before)
        return watched

    def _drop(self, watched: WatchedJob) -> None:
        """Forget a job that is not open any more, because it was cancelled."""
        job_id = watched.job.id
        self._previews.forget(job_id)
        state = "cancelled" if self._ledger.is_cancelled(job_id) else read_state(self._store, job_id)
        if state != "running":
            self._index.note_ended(job_id, state)

    def _advance(self, watched: WatchedJob) -> "NDArray[np.bool_]":
        """Assemble complete layers, and finish the job if all are; returns whether each tile has ended."""
        job = watched.job
        failed = self._ledger.failed(job.id)
        done = self._ledger.done(job.id, len(job.tiles))
        ended = done.copy()
        ended[list(failed)] = True
        again = watched.layers.assemble_complete(ended, failed, self._store, self._renew_lock)
        if again:
            self._ledger.reopen(job.id, again)
            send(job, sorted(again), self._ledger, self._app)
            ended[list(again)] = done[list(again)] = False
        is_complete = watched.layers.are_complete
        state = "finished" if is_complete else "running"
        if watched.gallery.update(watched.layers.facts, done, failed, state=state):
            self._index.put(watched.gallery.document)
        if is_complete:
            self._finish(watched, failed)
        else:
            self._previews.note(job, ended, failed)
        return ended

    def _finish(self, watched: WatchedJob, failed: dict[int, str]) -> None:
        job, reasons = watched.job, reasons_by_tile(watched.job, failed)
        self._previews.forget(job.id)
        self._index.write(now=True)  # before the state: "filterfarm run" ends its collector once the job has ended
        write_status(self._store, job.id, "finished", reasons=reasons, problems=watched.layers.given_up)
        self._ledger.unregister(job.id)
        del self._watched[job.id]
        log.info("finished job=%s state=finished tiles=%d failed=%d", job.id, len(job.tiles), len(failed))

    def _renew_lock(self) -> None:
        """Renew the lock now and then; raises redis.exceptions.LockError if another collector has taken over."""
        if time.monotonic() < self._renew_at:
            return
        try:
            self._lock.reacquire()
        except LockError:
            log.warning("lost lock=%s", self._ledger.names.collector)
            raise
        self._renew_at = time.monotonic() + _RENEW_S
