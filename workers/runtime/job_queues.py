"""Which queues a worker reads: one per registered job, and the one that belongs to no job."""

import time
from collections.abc import Callable
from typing import Any

from workers.clients.broker import job_queue
from workers.contract.keys import RedisKeys, is_name

#: Seconds between two looks at the list of jobs, and the timeout of a BRPOP. An idle worker notices a new job after at
#: most twice this time, because Redis checks ten times a second for timeouts that are over.
REFRESH_S = 0.1


#: Seconds for which a worker leaves the messages of a job that it does not understand to others.
SKIP_S = 60.0


class SkippedJobs:
    """Jobs whose queues this process does not read for a while. Filled by any thread."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def add(self, job_id: str) -> None:
        """Do not read this job's queue for SKIP_S seconds."""
        self._until[job_id] = time.monotonic() + SKIP_S

    def __contains__(self, job_id: str) -> bool:
        return self._until.get(job_id, 0.0) > time.monotonic()


#: those of the farm of this process, which ``tasks.install`` sets
names = RedisKeys("")

#: those of this process
skipped = SkippedJobs()


class JobQueues:
    """Keeps a Kombu consumer reading the queues of the registered jobs. Used by the thread of the event loop alone.

    ``consumer``: the kombu.Consumer. ``connection_errors``: what a lost connection raises, ignored here because the
    event loop meets it too and reconnects. ``is_running``: false once the worker stops, when no queue may be added.
    """

    def __init__(
        self, consumer: Any, connection_errors: tuple[type[BaseException], ...], is_running: Callable[[], bool]
    ) -> None:
        self._consumer = consumer
        self._connection_errors = connection_errors
        self._is_running = is_running
        self._refresh_at = 0.0  # monotonic clock

    def refresh(self) -> None:
        """Read from the queues of all jobs registered now, and from no others. At most once every REFRESH_S."""
        if time.monotonic() < self._refresh_at:
            return
        if self._is_running():
            self._update()
        self._refresh_at = time.monotonic() + REFRESH_S

    def _update(self) -> None:
        try:
            with self._consumer.channel.conn_or_acquire() as client:
                found = {member.decode(errors="replace") for member in client.smembers(names.jobs)}
        except self._connection_errors:
            return
        jobs = {job_id for job_id in found if is_name(job_id) and job_id not in skipped}
        wanted = {names.default_queue, *map(names.queue, jobs)}
        for name in {queue.name for queue in self._consumer.queues} - wanted:
            self._consumer.cancel_by_queue(name)
        for job_id in sorted(jobs):
            if not self._consumer.consuming_from(names.queue(job_id)):
                self._consumer.add_queue(job_queue(names.queue(job_id)))
        self._consumer.consume()
