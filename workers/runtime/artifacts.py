"""The objects stored for a rendered tile: its PNG, which contains its record, and its animation."""

import functools
from importlib.metadata import version

from workers.contract import keys
from workers.contract.job import Job, Task
from workers.contract.records import TileRecord
from workers.contract.tile_png import encode_frames, encode_tile
from workers.rendering.tile import Tile

#: Packages whose versions may change the pixels of a tile.
_PACKAGES = ("filterfarm", "torch", "torchvision", "numpy", "pillow")


def tile_artifacts(job: Job, task: Task, tile: Tile, starts: int) -> list[tuple[str, bytes, str]]:
    """Key, body and content type of each object. The PNG is last, because a stored PNG means that the tile is complete.

    ``starts``: number of attempts at the tile, this one included.
    """
    record = TileRecord(
        job=job.id,
        layer=task.layer,
        filter=task.filter,
        name=_name(job, task),
        seed=job.recipe.seed,
        status=tile.status,
        start_activation=tile.start_activation,
        activation=tile.activation,
        stored_activation=tile.stored_activation,
        restarts=tile.restarts,
        steps=job.recipe.total_steps,
        seconds=tile.seconds,
        attempts=starts,
        device=tile.device,
        precision=tile.precision,
        kernels=tile.kernels,
        versions=_versions(),
    )
    artifacts = [(keys.tile(job.id, task.layer, task.filter), encode_tile(tile.pixels, record), "image/png")]
    if tile.frames:
        artifacts.insert(0, (keys.frames(job.id, task.layer, task.filter), encode_frames(tile.frames), "image/webp"))
    return artifacts


def _name(job: Job, task: Task) -> str:
    layer = job.layer(task.layer)
    return layer.names[task.filter] if layer is not None and layer.names else ""


@functools.cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in _PACKAGES}
