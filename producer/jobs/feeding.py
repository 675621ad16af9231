"""Sends a job's messages in a window, so that Redis holds a bounded queue however large the job is.

A submission sends the first window. The collector tops it up. Tiles are sent in the order of their numbers; the ledger
holds how many have been sent.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from celery import Celery

from workers.clients.broker import enqueue, message_counts
from workers.clients.ledger import Ledger
from workers.contract.job import Job, Task

#: Messages of one job in its queue after a top-up, if few jobs are open, and of all jobs together if many are.
WINDOW = 4096
_WINDOWS_TOGETHER = 4 * WINDOW

#: Least window of a job. A worker holds at most 128 messages.
_LEAST_WINDOW = 256

#: Messages sent between two renewals of the submission's mark and of the number of sent tiles.
_CHUNK = 1024


def window(open_jobs: int) -> int:
    """Messages in the queue of one job, if so many jobs are open."""
    return max(_LEAST_WINDOW, min(WINDOW, _WINDOWS_TOGETHER // max(1, open_jobs)))


def feed(job: Job, ledger: Ledger, app: Celery, *, open_jobs: int) -> int:
    """Top up a job's queue once it is half empty; returns the number of messages sent. Raises broker errors."""
    size = window(open_jobs)
    fed, total = ledger.fed(job.id), len(job.tiles)
    if fed >= total:
        return 0
    queued, _ = message_counts(ledger.client, ledger.names, [job.id])
    if queued[job.id] > size // 2:
        return 0
    ended = ledger.done(job.id, total)
    ended[list(ledger.failed(job.id))] = True
    waiting = np.flatnonzero(~ended[fed:]) + fed
    numbers = waiting[: size - queued[job.id]].tolist()
    sent = 0
    for start in range(0, len(numbers), _CHUNK):
        chunk = numbers[start : start + _CHUNK]
        ledger.begin_submission(job.id)
        sent += send(job, chunk, ledger, app)
        ledger.set_fed(job.id, chunk[-1] + 1)
    if len(numbers) == len(waiting):
        ledger.set_fed(job.id, total)
    ledger.end_submission(job.id)
    return sent


def send(job: Job, numbers: Iterable[int], ledger: Ledger, app: Celery) -> int:
    """Enqueue one message for each tile number, in that order; returns how many."""

    def tasks() -> Iterator[Task]:
        for number in numbers:
            layer, filter_ = job.tiles[number]
            yield Task(job=job.id, layer=layer, filter=filter_)

    return enqueue(app, ledger.names, tasks())
