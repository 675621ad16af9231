"""In which order a worker asks the jobs' queues: each job gets a turn of one batch.

Kombu's own round robin changes the queue after each message, which would leave a worker with half a batch of every job.
"""

from collections import Counter
from collections.abc import Iterable


class QueueOrder:
    """The order of the queues, as Kombu's ``queue_order_strategy`` wants it; the first that holds a message is read."""

    def __init__(self, size: int) -> None:
        #: messages in a turn
        self._size = size
        self._order: list[str] = []
        self._taken: Counter[str] = Counter()

    def update(self, queues: Iterable[str]) -> None:
        """These are the queues now. New ones come first: whoever waited has not had a turn yet."""
        now = list(dict.fromkeys(queues))
        kept = [queue for queue in self._order if queue in now]
        self._order = [queue for queue in now if queue not in kept] + kept
        self._taken = Counter({queue: self._taken[queue] for queue in kept})

    def consume(self, count: int) -> list[str]:
        """The first ``count`` queues, in order."""
        return self._order[:count]

    def rotate(self, queue: str) -> str:
        """A message has come from ``queue``; once its turn is over, it goes to the end."""
        if queue in self._order:
            self._taken[queue] += 1
            if self._taken[queue] >= self._size:
                del self._taken[queue]
                self._order.remove(queue)
                self._order.append(queue)
        return queue
