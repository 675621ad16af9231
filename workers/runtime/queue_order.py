"""The order in which a worker reads the jobs' queues: round robin, one batch per turn.

Kombu's own round robin changes the queue after each message, so that a worker would hold part of a batch of each job.
It also waits at all queues at once, and the cost of Redis's BRPOP grows with their number: here it waits at a few.
"""

from collections import Counter
from collections.abc import Iterable

#: Most queues of one BRPOP, and most of them that were empty when they were last looked at.
_MOST, _PROBES = 16, 8


class QueueOrder:
    """A ``queue_order_strategy`` of Kombu. The first queue in order that holds a message is read.

    ``size``: messages per turn. Queues that were found empty leave the order. At the beginning of each turn a few of
    them are looked at first, in rotation, and those that hold a message again join the order.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._order: list[str] = []
        #: those that were found empty, the longest ago first
        self._empty: list[str] = []
        self._taken: Counter[str] = Counter()
        #: the queues of the last read
        self._read: list[str] = []

    def update(self, queues: Iterable[str]) -> None:
        """Set the queues. New ones come first, because they have not had a turn yet."""
        now = dict.fromkeys(queues)
        self._empty = [queue for queue in self._empty if queue in now]
        kept = [queue for queue in self._order if queue in now]
        known = {*self._empty, *kept}
        self._order = [queue for queue in now if queue not in known] + kept
        self._taken = Counter({queue: self._taken[queue] for queue in kept})

    def consume(self, count: int) -> list[str]:
        """The queues to read next, in order; at most ``count``."""
        if not self._order:
            self._read = self._empty[:_MOST]
        elif self._taken[self._order[0]]:  # within a turn
            self._read = self._order[:_MOST]
        else:
            self._read = [*self._empty[:_PROBES], *self._order[: _MOST - _PROBES]]
        self._read = self._read[:count]
        return list(self._read)

    @property
    def has_more(self) -> bool:
        """True if ``consume`` has left out a queue that may hold a message, so that the read should not wait."""
        return len(self._order) > sum(queue in self._order for queue in self._read)

    def rotate(self, queue: str) -> str:
        """Count a message from ``queue``. Once its turn is over, the queue moves to the end."""
        if queue in self._read:
            self._note_empty(self._read[: self._read.index(queue)])
            self._read = []
        if queue in self._empty:
            self._empty.remove(queue)
            self._order.insert(0, queue)
        if queue in self._order:
            self._taken[queue] += 1
            if self._taken[queue] >= self._size:
                del self._taken[queue]
                self._order.remove(queue)
                self._order.append(queue)
        return queue

    def pass_over(self) -> None:
        """Note that no queue of the last read held a message."""
        self._note_empty(self._read)

    def _note_empty(self, queues: list[str]) -> None:
        known = {*self._order, *self._empty}
        found = [queue for queue in queues if queue in known]
        self._order = [queue for queue in self._order if queue not in found]
        self._empty = [queue for queue in self._empty if queue not in found] + found
        for queue in found:
            self._taken.pop(queue, None)
