"""What this machine cannot do and others may: tiles that fail here, and jobs that a later version wrote."""

import time

from workers.clients.claims import Attempts
from workers.clients.presence import Presence
from workers.clients.retrying_storage import RetryingStore
from workers.contract import keys
from workers.contract.errors import STORAGE_ERRORS, Draining, JobNotUnderstood
from workers.runtime.job_queues import skipped

#: A tile has failed once this many different machines could not render it.
MOST_MACHINES = 3

#: Seconds from the first of these attempts, after which it has also failed if all running machines have tried.
OTHERS_S = 30.0


class OtherMachines:
    """Decides whether something is left to other machines. ``machine``: the name of this one in Redis."""

    def __init__(self, machine: str, presence: Presence, store: RetryingStore) -> None:
        self._machine = machine
        self._presence = presence
        self._store = store

    def may_try(self, attempts: Attempts) -> bool:
        """True if a machine may still render a tile that those of ``attempts`` could not. Raises redis.RedisError."""
        if len(attempts.reasons) >= MOST_MACHINES:
            return False
        if time.time() - attempts.since < OTHERS_S:
            return True
        return not self._presence.running_machines() <= attempts.reasons.keys()

    def take_job(self, error: JobNotUnderstood) -> bool:
        """True if the bucket has a job that this version does not understand. Its queue is then not read for a while,
        and the reason is published. Raises redis.RedisError.
        """
        try:
            exists = self._store.exists(keys.job(error.job_id))
        except (Draining, *STORAGE_ERRORS):
            exists = True
        if exists:
            skipped.add(error.job_id)
            self._presence.report_trouble(self._machine, str(error), job_id=error.job_id)
        return exists
