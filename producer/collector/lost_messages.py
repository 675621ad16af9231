"""Finds tiles that were sent and have lost their message, and those alone.

Counting is cheap and done at each pass: as long as there are as many messages as unfinished tiles that were sent, none
is lost. Only if messages lack for some seconds are they read, twice, because a message is in neither its queue nor
Kombu's hash for the moment in which a worker takes it.
"""

import time
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from workers.clients.broker import message_counts, tasks_in_redis
from workers.clients.ledger import Ledger
from workers.contract.job import Job

#: Messages that lack for this many seconds are looked for.
LOST_S = 5.0


class LostMessages:
    """What the passes of one collector know of lost messages. It is a cache."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        #: monotonic time of the first pass in a row in which messages lacked
        self._since: float | None = None
        #: job -> tiles without a message at the last search
        self._suspects: dict[str, set[int]] = {}

    def find(self, missing: Mapping[str, tuple[Job, "NDArray[np.intp]"]]) -> dict[str, set[int]]:
        """Job -> numbers of its tiles that need a message again.

        ``missing``: job id -> the job, and the numbers of its tiles that were sent and have not ended. Raises
        redis.RedisError.
        """
        wanted = sum(len(numbers) for _, numbers in missing.values())
        queued, in_flight = message_counts(self._ledger.client, self._ledger.names, missing)
        if sum(queued.values()) + in_flight >= wanted:
            self._since, self._suspects = None, {}
            return {}
        now = time.monotonic()
        if self._since is None:
            self._since = now
        if now - self._since < LOST_S:
            return {}
        short = [job_id for job_id, (_, numbers) in missing.items() if len(numbers) > queued[job_id]]
        held = tasks_in_redis(self._ledger.client, self._ledger.names, short)
        suspects = {job_id: self._without_message(*missing[job_id], held[job_id]) for job_id in short}
        lost = {job_id: numbers & self._suspects.get(job_id, set()) for job_id, numbers in suspects.items()}
        self._suspects = suspects
        return {job_id: numbers for job_id, numbers in lost.items() if numbers}

    def _without_message(self, job: Job, numbers: "NDArray[np.intp]", held: set[tuple[str, int]]) -> set[int]:
        present = {job.tiles.number(*tile) for tile in held if tile in job.tiles}
        lacking = set(numbers.tolist()) - present
        return lacking - self._ledger.claimed(job.id, lacking)
