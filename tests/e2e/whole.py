"""The objects that a finished job must have, and its progress, read from Redis and the bucket without a command."""

import io
import json
from collections.abc import Iterable

import numpy as np
from PIL import Image

from producer.gallery import site
from tests.e2e.fleet import Fleet
from workers.contract import keys
from workers.contract.job import Job
from workers.contract.tile_png import decode_tile


def stored(farm: Fleet, job_id: str) -> int:
    """Number of stored tiles in the ledger."""
    return int(farm.redis.bitcount(farm.names.field(job_id, "done")))


def has_ended(farm: Fleet, job_id: str) -> bool:
    """Whether the job is finished or cancelled: it is no longer in the set of open jobs."""
    return not farm.redis.sismember(farm.names.jobs, job_id)


def check_everything(farm: Fleet, job_id: str, *, failed: Iterable[tuple[str, int]] = ()) -> Job:
    """Check that the bucket holds exactly the objects of this job, and that each is complete and correct.

    ``failed``: (layer, filter) of the filters that have a failure record and no tile.
    """
    failed = set(failed)
    objects = {key: body for key, (_, body) in farm.objects().items()}
    job = Job.model_validate_json(objects[keys.job(job_id)])
    assert job.id == job_id
    expected = {keys.job(job_id), keys.index(job_id), keys.status(job_id)}
    expected |= {keys.gallery(job_id), keys.gallery_script(job_id)}
    expected |= {keys.asset(folder, name) for folder in (job_id, "") for name in site.assets()}
    expected |= {keys.JOBS_PAGE, keys.JOBS, keys.JOBS_SCRIPT}
    if job.weights.source == "file":
        expected.add(keys.weights(job_id, str(job.weights.sha256)))
    expected |= {keys.failed(job_id, layer, filter_) for layer, filter_ in failed}
    for layer in job.layers:
        expected |= {keys.grid(job_id, layer.name), keys.records(job_id, layer.name)}
        expected |= {keys.layer_script(job_id, layer.name), keys.atlas(job_id, layer.name)}
        if any((layer.name, filter_) not in failed for filter_ in layer.selected):
            expected.add(keys.strip(job_id, layer.name))
        expected |= {
            keys.tile(job_id, layer.name, filter_) for filter_ in layer.selected if (layer.name, filter_) not in failed
        }
    assert set(objects) ^ expected == set()
    size, margin = job.recipe.height_px, job.grid.margin_px
    for layer in job.layers:
        sheet = np.asarray(Image.open(io.BytesIO(objects[keys.grid(job_id, layer.name)])))
        records = json.loads(objects[keys.records(job_id, layer.name)])["filters"]
        assert [record["filter"] for record in records] == list(layer.selected)
        columns = int(np.ceil(np.sqrt(len(layer.selected))))
        assert sheet.shape[1] == columns * (size + margin) - margin
        for place, filter_ in enumerate(layer.selected):
            if (layer.name, filter_) in failed:
                assert records[place]["status"] == "failed"
                continue
            pixels, record = decode_tile(objects[keys.tile(job_id, layer.name, filter_)], job.recipe.tile_px)
            assert record.model_dump(mode="json") == records[place]
            top, left = place // columns * (size + margin), place % columns * (size + margin)
            shown = sheet[top : top + size, left : left + size]
            assert record.status == "dead" or np.array_equal(shown, pixels)
    return job
