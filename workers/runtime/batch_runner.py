"""Renders the batches of a worker, and notes whether this machine renders at all."""

import logging
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

import redis

from workers.clients.broker import connect
from workers.clients.ledger import Ledger
from workers.contract.errors import MACHINE_ERRORS, DeviceLost, FilterfarmError
from workers.contract.job import Job
from workers.contract.keys import RedisKeys
from workers.contract.settings import Settings
from workers.runtime.batcher import Group
from workers.runtime.job_cache import JobCache
from workers.runtime.machine_health import MachineHealth
from workers.runtime.render_process import Batch, Renderer

if TYPE_CHECKING:
    from workers.rendering.tile import Tile

log = logging.getLogger(__name__)

#: Timeout in seconds of the cancellation check before each batch.
_ANSWER_S = 1.0


class Cancelled(FilterfarmError):
    """The job was cancelled while its tile waited for a batch."""


class BatchRunner:
    """Renders one batch at a time, in the batcher's thread."""

    def __init__(
        self, settings: Settings, names: RedisKeys, renderer: Renderer, jobs: JobCache, health: MachineHealth
    ) -> None:
        self._device = settings.device
        self._renderer = renderer
        self._jobs = jobs
        self._health = health
        #: (job id, tile number) of what has been on the device, until its message ends
        self.begun: set[tuple[str, int]] = set()
        #: with a client that fails fast: if Redis is unreachable, the batch runs anyway
        self._ledger = Ledger(connect(settings, retries=0, answer_s=_ANSWER_S), names)

    def run(
        self, group: Group, filters: tuple[int, ...], on_start: Callable[[], None]
    ) -> "dict[int, Tile | FilterfarmError]":
        """Filter -> its tile or its error; ``on_start`` is called once the device is busy.

        Raises Cancelled, DeviceLost, Draining, and the errors of the job cache.
        """
        try:
            cancelled = self._ledger.is_cancelled(group[0])
        except redis.RedisError:
            cancelled = False
        if cancelled:
            raise Cancelled(f"job {group[0]} was cancelled")
        job = self._jobs.job(group[0])
        checkpoint = self._jobs.checkpoint(job)
        self._begin(job, [job.tiles.number(group[1], filter_) for filter_ in filters])
        batch = Batch(job=job, layer=group[1], filters=filters, checkpoint=checkpoint, device=self._device)
        try:
            tiles = self._renderer.render(batch, on_start)
        except DeviceLost as error:
            log.error("stopping reason=%s", error)
            os.kill(os.getpid(), signal.SIGTERM)
            raise
        self._note_health(job, group[1], tiles)
        seconds = sum(tile.seconds for tile in tiles.values() if not isinstance(tile, FilterfarmError))
        log.info("rendered job=%s layer=%s filters=%d seconds=%.2f", job.id, group[1], len(filters), seconds)
        return tiles

    def _begin(self, job: Job, numbers: list[int]) -> None:
        """Count an attempt at tiles. If Redis is unreachable, the batch runs anyway."""
        try:
            self._ledger.begin(job.id, numbers)
            self.begun |= {(job.id, number) for number in numbers}
        except redis.RedisError as error:
            log.warning("an attempt is not counted job=%s reason=%s", job.id, error)

    def _note_health(self, job: Job, layer: str, tiles: "dict[int, Tile | FilterfarmError]") -> None:
        """Note a batch of which each tile failed, unless the job is to blame: no machine has a tile of the layer."""
        errors = [tile for tile in tiles.values() if isinstance(tile, FilterfarmError)]
        if len(errors) < len(tiles):
            self._health.succeeded()
        elif isinstance(errors[0], MACHINE_ERRORS) or self._has_tiles(job, layer):
            self._health.failed(str(errors[0]))

    def _has_tiles(self, job: Job, layer: str) -> bool:
        try:
            done = self._ledger.done(job.id, len(job.tiles))
        except redis.RedisError:
            return False
        numbers = job.tiles.of_layer(next(entry for entry in job.layers if entry.name == layer))
        return bool(done[numbers.start : numbers.stop].any())
