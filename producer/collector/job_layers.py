"""The layers of one job as the collector sees them: which have a sheet, and which cannot get one."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import redis

from producer.collector.assembly import assemble
from producer.gallery.documents import LayerFacts, facts_of
from workers.clients.storage import Store
from workers.contract import keys
from workers.contract.errors import FilterfarmError, one_line
from workers.contract.job import Job, Layer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

#: A layer whose sheet could not be made this many times is reported, and the job ends without it.
MOST_ASSEMBLIES = 3


class JobLayers:
    """A cache: losing it costs a few requests."""

    def __init__(self, job: Job, facts: dict[str, LayerFacts]) -> None:
        self._job = job
        #: layer -> what the gallery says of it; none of a layer without gallery objects
        self.facts = facts
        self._done: set[str] = set()
        #: layer -> why its sheet could not be made, each time
        self._problems: dict[str, list[str]] = {}

    @property
    def are_complete(self) -> bool:
        """True if each layer has a sheet or was given up."""
        return len(self._done) == len(self._job.layers)

    @property
    def given_up(self) -> dict[str, str]:
        """Layer -> why it gets no sheet."""
        return {name: found[-1] for name, found in self._problems.items() if len(found) >= MOST_ASSEMBLIES}

    def assemble_complete(
        self,
        ended: "NDArray[np.bool_]",
        failed: dict[int, str],
        store: Store,
        renew_lock: Callable[[], None],
    ) -> set[int]:
        """Write the sheets of layers of which each tile has ended; returns tiles that must be rendered again.

        ``ended``: whether each tile of the job is stored or failed. ``failed``: tile number -> reason. Raises object
        store errors, and what ``renew_lock`` raises. Any other error is noted; the layer is tried again.
        """
        again: set[int] = set()
        for layer in self._job.layers:
            numbers = self._job.tiles.of_layer(layer)
            if layer.name in self._done or not ended[numbers.start : numbers.stop].all():
                continue
            if layer.name not in self.given_up and not self._is_assembled(layer, store):
                broken = self._assemble(layer, failed, store, renew_lock)
                again |= {self._job.tiles.number(layer.name, filter_) for filter_ in broken}
                if layer.name in self._problems and layer.name not in self.given_up:
                    continue
            self._done.add(layer.name)
        return again

    def _is_assembled(self, layer: Layer, store: Store) -> bool:
        """True if all that ``assemble`` writes is there. Records alone may be those of a layer that is not complete."""
        job_id = self._job.id
        if not (store.exists(keys.grid(job_id, layer.name)) and store.exists(keys.atlas(job_id, layer.name))):
            return False
        facts = facts_of(store.get(keys.records(job_id, layer.name)), layer)
        if facts is not None:
            self.facts[layer.name] = facts
        return facts is not None

    def _assemble(self, layer: Layer, failed: dict[int, str], store: Store, renew_lock: Callable[[], None]) -> set[int]:
        """Write one sheet; returns the filters whose tiles are unreadable."""
        problems = self._problems.setdefault(layer.name, [])
        try:
            made = assemble(self._job, layer, failed, store, renew_lock)
        except (FilterfarmError, redis.RedisError):
            raise
        except Exception as error:  # such as a disk that has no room for it
            problems.append(f"{type(error).__name__}: {one_line(error, 200)}")
            log.error("cannot assemble job=%s layer=%s reason=%s", self._job.id, layer.name, problems[-1])
            return set()
        if isinstance(made, LayerFacts):
            self.facts[layer.name] = made
            del self._problems[layer.name]
            log.info("assembled job=%s layer=%s filters=%d", self._job.id, layer.name, len(layer.selected))
            return set()
        problems.append(f"{len(made)} tiles are missing or unreadable, such as {min(made)}")
        if layer.name in self.given_up:
            log.error("given up job=%s layer=%s reason=%s", self._job.id, layer.name, problems[-1])
            return set()
        log.warning("reopened job=%s layer=%s tiles=%d", self._job.id, layer.name, len(made))
        return made
