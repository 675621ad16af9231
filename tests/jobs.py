"""The jobs that tests submit, their tiles, and the end of a worker's task."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.recipes import RAW, recipe_of
from workers.clients.ledger import Ledger
from workers.clients.storage import Store
from workers.contract import keys
from workers.contract.job import Grid, Job, Layer, Weights
from workers.contract.keys import RedisKeys
from workers.contract.records import Status, TileRecord
from workers.contract.tile_png import encode_tile

#: The Redis keys of the farm in integration tests.
NAMES = RedisKeys("f0")


def sample_job(
    *layers: str | Layer,
    filters: str = "0-3",
    channels: int = 64,
    model: str = "vgg16",
    weights: Weights | None = None,
    grid: Grid | None = None,
    **recipe: Any,
) -> Job:
    """A job of 8 px pictures.

    ``filters`` and ``channels`` are those of each layer given by its name; by default the job has one layer,
    ``features.0``. ``weights`` are random by default. Further arguments are those of ``recipe_of``.
    """
    return Job(
        model=model,
        weights=weights or Weights(source="none", name="none"),
        layers=tuple(
            layer if isinstance(layer, Layer) else Layer(name=layer, channels=channels, filters=filters)
            for layer in layers or ("features.0",)
        ),
        recipe=recipe_of(**{"size_px": 8, "preprocess": RAW, "steps": 40, "precision": "auto", "seed": 0, **recipe}),
        grid=grid or Grid(),
        versions={"filterfarm": "0"},
    )


def sample_tile(job: Job, layer: str, filter_: int, *, status: Status = "live") -> bytes:
    """The PNG of one tile of ``job``, all of its pixels (filter + 1, 0, 200)."""
    record = TileRecord(
        job=job.id,
        layer=layer,
        filter=filter_,
        seed=job.recipe.seed,
        status=status,
        start_activation=0.5,
        activation=1.5,
        stored_activation=1.25,
        restarts=0,
        steps=job.recipe.steps,
        seconds=0.25,
        attempts=1,
        device="cpu",
        versions={"filterfarm": "0"},
    )
    pixels = np.full((*job.recipe.tile_px, 3), (filter_ + 1, 0, 200), np.uint8)
    return encode_tile(pixels, record)


def finish_tiles(job: Job, numbers: set[int], store: Store, ledger: Ledger) -> None:
    """Store these tiles and mark them as done, as a worker does at the end of each task."""
    for number in sorted(numbers):
        layer, filter_ = job.tiles[number]
        store.put(keys.tile(job.id, layer, filter_), sample_tile(job, layer, filter_), "image/png")
        ledger.end_claim(job.id, number, "token", stored=True)


def bits(job: Job, numbers: set[int]) -> "NDArray[np.bool_]":
    """One bool per tile of ``job``, true for these numbers."""
    found = np.zeros(len(job.tiles), bool)
    found[sorted(numbers)] = True
    return found


def done_tiles(ledger: Ledger, job: Job) -> set[int]:
    """Numbers of the stored tiles of a job."""
    return set(np.flatnonzero(ledger.done(job.id, len(job.tiles))).tolist())
