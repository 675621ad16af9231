"""Galleries of large jobs, of pictures that a stub renderer makes."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from producer.gallery import documents, site
from producer.gallery.layer_objects import Entry, entry, layer_cells, layer_objects
from producer.planning.layers import layers
from tests.jobs import sample_job
from workers.contract import keys
from workers.contract.job import Job, Layer
from workers.contract.records import TileRecord

#: The layer of the first job, and the number of its filters.
LAYER, FILTERS = "conv", 2_048

#: Waves of a picture.
_WAVES = 4


def textures(count: int, size_px: int, seed: int) -> "NDArray[np.uint8]":
    """Pictures of a few waves each in random colours, (count, size_px, size_px, 3) uint8."""
    rng = np.random.default_rng(seed)
    place = np.arange(size_px, dtype=np.float32) / size_px
    frequency = rng.uniform(-12, 12, (2, count, _WAVES, 1)).astype(np.float32)
    phase = rng.uniform(0, 1, (count, _WAVES, 1)).astype(np.float32)
    colour = rng.normal(0, 30, (count, _WAVES, 3)).astype(np.float32)
    rows = np.exp(2j * np.pi * frequency[0] * place).astype(np.complex64)
    columns = np.exp(2j * np.pi * (frequency[1] * place + phase)).astype(np.complex64)
    waves = (rows[..., :, None] * columns[..., None, :]).real  # (count, waves, size_px, size_px)
    mixed = np.einsum("nwyx,nwc->nyxc", waves, colour)
    noise = rng.normal(0, 6, mixed.shape).astype(np.float32)
    clipped: NDArray[np.uint8] = np.clip(128 + mixed + noise, 0, 255).astype(np.uint8)
    return clipped


def one_layer() -> Job:
    """A job of one layer of 2,048 filters."""
    return sample_job(Layer(name=LAYER, channels=FILTERS, filters=f"0-{FILTERS - 1}"), model="resnet50", size_px=128)


def inception() -> Job:
    """Every filter of Inception v3's 94 layers."""
    plans = layers("inception_v3", (299, 299))
    return sample_job(
        *(Layer(name=plan.name, channels=plan.channels, filters=f"0-{plan.channels - 1}") for plan in plans),
        model="inception_v3",
        size_px=128,
    )


def write(folder: Path, job: Job) -> None:
    """Write the gallery of a finished job below ``folder``, without its tiles, which are not loaded here."""
    facts = {}
    for layer in job.layers:
        objects, facts[layer.name] = layer_objects(job, layer, _entries(job, layer), sheet_tile_px=job.recipe.tile_px)
        for made in objects:
            _put(folder / made.key, made.body)
    done = {layer.name: len(layer.selected) for layer in job.layers}
    document = documents.job_document(job, state="finished", layers=facts, done=done, failed={}, updated=0)
    _put(folder / job.id / "gallery.json", documents.to_json(document))
    _put(folder / job.id / "gallery.js", documents.javascript("job", job.id, document))
    _put(folder / keys.index(job.id), site.job_page(job.id))
    for name, body in site.assets().items():
        _put(folder / job.id / "assets" / name, body)


def _entries(job: Job, layer: Layer) -> dict[int, Entry]:
    plan = layer_cells(job, layer)
    found = {}
    rng = np.random.default_rng(len(layer.selected))
    for filter_, pixels in zip(
        layer.selected, textures(len(layer.selected), plan.cell_px[0], seed=layer.channels), strict=True
    ):
        start, end = rng.uniform(0, 1), rng.uniform(1, 9)
        record = TileRecord(
            job=job.id,
            layer=layer.name,
            filter=filter_,
            seed=job.recipe.seed,
            status="rescued" if rng.uniform() < 0.1 else "live",
            start_activation=start,
            activation=end,
            stored_activation=end * rng.uniform(0.99, 1.01),
            restarts=0,
            steps=job.recipe.steps,
            seconds=rng.uniform(1, 2),
            attempts=1,
            device="cpu",
            versions={"filterfarm": "0"},
        )
        found[filter_] = entry(record, pixels, plan)
    return found


def _put(path: Path, body: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
