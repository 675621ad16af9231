"""What must hold of a job that has ended, whatever happened on the way."""

import io
import json

import numpy as np
from PIL import Image

from tests.e2e.fleet import Fleet
from workers.contract.job import Job
from workers.png import decode_tile


def check_everything(farm: Fleet, job_id: str) -> Job:
    """Every object of the job is there, whole and right, and there is no other."""
    objects = {key: body for key, (_, body) in farm.objects().items()}
    job = Job.model_validate_json(objects[f"{job_id}/job.json"])
    assert job.id == job_id
    expected = {f"{job_id}/job.json", f"{job_id}/index.html", f"{job_id}/status.json"}
    for layer in job.layers:
        expected |= {f"{job_id}/grids/{layer.name}.png", f"{job_id}/layers/{layer.name}.json"}
        expected |= {f"{job_id}/tiles/{layer.name}/{filter_}.png" for filter_ in layer.selected}
    assert set(objects) == expected
    size, margin = job.recipe.height_px, job.grid.margin_px
    for layer in job.layers:
        sheet = np.asarray(Image.open(io.BytesIO(objects[f"{job_id}/grids/{layer.name}.png"])))
        records = json.loads(objects[f"{job_id}/layers/{layer.name}.json"])["filters"]
        assert [record["filter"] for record in records] == list(layer.selected)
        columns = int(np.ceil(np.sqrt(len(layer.selected))))
        assert sheet.shape[1] == columns * (size + margin) - margin
        for place, filter_ in enumerate(layer.selected):
            pixels, record = decode_tile(objects[f"{job_id}/tiles/{layer.name}/{filter_}.png"], job.recipe.tile_px)
            assert record.model_dump(mode="json") == records[place]
            top, left = place // columns * (size + margin), place % columns * (size + margin)
            shown = sheet[top : top + size, left : left + size]
            inner = slice(2, -2)  # a frame around a dead tile reaches into it on the rim of the sheet
            assert np.array_equal(shown[inner, inner], pixels[inner, inner])
    return job
