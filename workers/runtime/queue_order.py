"""The order in which a worker reads the jobs' queues: round robin, one batch per turn.

Kombu's own round robin changes the queue after each message, so that a worker would hold part of a batch of each job.
"""

from collections import Counter
from collections.abc import Iterable


class QueueOrder:
    """A ``queue_order_strategy`` of Kombu. The first queue in order that holds a message is read.

    ``size``: messages per turn.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._order: list[str] = []
        self._taken: Counter[str] = Counter()

    def update(self, queues: Iterable[str]) -> None:
        """Set the queues. New ones come first, because they have not had a turn yet."""
        now = list(dict.fromkeys(queues))
        kept = [queue for queue in self._order if queue in now]
        self._order = [queue for queue in now if queue not in kept] + kept
        self._taken = Counter({queue: self._taken[queue] for queue in kept})

    def consume(self, count: int) -> list[str]:
        """The first ``count`` queues, in order."""
        return self._order[:count]

    def rotate(self, queue: str) -> str:
        """Count a message from ``queue``. Once its turn is over, the queue moves to the end."""
        if queue in self._order:
            self._taken[queue] += 1
            if self._taken[queue] >= self._size:
                del self._taken[queue]
                self._order.remove(queue)
                self._order.append(queue)
        return queue
