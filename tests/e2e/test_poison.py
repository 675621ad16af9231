"""Filters that crash the renderer, and hostile objects in the bucket."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from producer.gallery import site
from tests.e2e.fleet import Fleet, descendants, wait_for
from tests.e2e.whole import check_everything, has_ended, stored
from tests.injection import into_renderer
from workers.contract import keys
from workers.networks import registry

LAYER = "features.0"
NAN_FILTER = 11

#: filter -> code that its rendering runs, and the reason that is recorded
POISONS = {
    1: ("ctypes.string_at(0)", "renderer died: signal 11 (3 attempts)"),
    6: ("os.abort()", "renderer died: signal 6 (3 attempts)"),
    9: ("os.kill(os.getpid(), signal.SIGKILL)", "renderer died: signal 9 (3 attempts)"),
}


def checkpoint_with_nan(folder: Path) -> Path:
    """A checkpoint in which the weights of one filter are NaN."""
    state = registry.build("squeezenet1_1", seed=3).state_dict()
    state[f"{LAYER}.weight"][NAN_FILTER] = float("nan")
    torch.save(state, folder / "nan.pth")
    return folder / "nan.pth"


def render_with(farm: Fleet, poisons: dict[int, tuple[str, str]], timeout_s: float) -> None:
    # Given a worker whose renderer some filters crash, and a checkpoint in which the weights of another are NaN
    body = "\n".join(f"if {filter_} in filters: {deed}" for filter_, (deed, _) in poisons.items())
    farm.start("collector")
    worker = farm.start("worker", "--batch", "8", FILTERFARM_HANG_S="30", **into_renderer(farm.folder / "poison", body))
    checkpoint = checkpoint_with_nan(farm.folder)

    # When a job with these filters and others is rendered
    recipe = ("--layers", LAYER, "--filters", "0-15", "--size", "32", "--steps", "2", "--method", "notebook")
    job_id = farm.submit("squeezenet1_1", "--weights", str(checkpoint), *recipe)["job"]
    wait_for("a Celery process", lambda: descendants(worker.pid), 60)
    celery = descendants(worker.pid)[0]
    wait_for("the job to end", lambda: has_ended(farm, job_id), timeout_s)

    # Then exactly these have failed, and every other tile is stored
    status = farm.status(job_id)
    reasons = {f"{LAYER}/{filter_}": reason for filter_, (_, reason) in poisons.items()}
    nan_reason = status["reasons"].pop(f"{LAYER}/{NAN_FILTER}")
    assert "not a finite number" in nan_reason
    assert status["reasons"] == reasons
    assert (status["stored"], status["failed"]) == (16 - len(poisons) - 1, len(poisons) + 1)
    check_everything(farm, job_id, failed=[(LAYER, filter_) for filter_ in (*poisons, NAN_FILTER)])

    # And the failure records in the bucket hold the same reasons
    objects = farm.objects()
    for filter_, (_, reason) in poisons.items():
        assert json.loads(objects[keys.failed(job_id, LAYER, filter_)][1])["reason"] == reason

    # And the worker processes are the same as before
    assert worker.poll() is None
    assert descendants(worker.pid)[0] == celery


def test_poison_filters_fail_alone_with_their_reasons(farm: Fleet) -> None:
    render_with(farm, POISONS, 240)


@pytest.mark.faults  # each of its three attempts waits for the time limit
@pytest.mark.timeout(600)
def test_a_filter_that_never_ends_fails_alone_with_its_reason(farm: Fleet) -> None:
    endless = ("any(iter(int, 1))", "renderer made no progress for 30 s (3 attempts)")
    render_with(farm, {4: endless}, 400)


def test_hostile_objects_in_the_bucket_are_refused_and_change_nothing(farm: Fleet) -> None:
    # Given a job that is rendered but not assembled
    worker = farm.start("worker", "--batch", "4")
    tiles = ("--weights", "none", "--layers", LAYER, "--filters", "0-3")
    good = farm.submit("squeezenet1_1", *tiles, "--size", "16", "--steps", "2", "--method", "notebook")["job"]
    wait_for("all tiles", lambda: stored(farm, good) == 4, 90)

    # When a tile is replaced by a PNG that decompresses to 400 MB
    bomb = io.BytesIO()
    Image.fromarray(np.zeros((20_000, 20_000), np.uint8)).save(bomb, "PNG", optimize=True)
    farm.put(keys.tile(good, LAYER, 2), bomb.getvalue())
    # And there are jobs in the bucket that name code, a path, a future version, or a layer of 10 kB
    job = json.loads(farm.objects()[keys.job(good)][1])
    foreign = {
        "evil-code": {**job, "model": "os:system"},
        "evil-path": {**job, "weights": {"source": "file", "name": "../../../etc/passwd", "sha256": "0" * 64}},
        "evil-future": {**job, "format": 2},
        "evil-layer": {**job, "layers": [{**job["layers"][0], "name": "x" * 10_240}]},
        "evil-extra": {**job, "factory": "package.module:build"},
    }
    for name, body in foreign.items():
        farm.put(keys.job(name), json.dumps(body).encode())
        farm.redis.sadd(farm.names.jobs, name)
    before = farm.objects()
    collector = farm.start("collector")

    # Then the good job completes
    wait_for("the job to end", lambda: has_ended(farm, good), 90)
    # And each bad one is ignored with one line of less than 1000 characters
    for name in foreign:
        wait_for(f"{name} to be refused", lambda name=name: has_ended(farm, name), 30)  # type: ignore[misc]
    lines = [line for line in farm.log(collector).splitlines() if "ignoring unreadable job=" in line]
    assert len(lines) == len(foreign)
    assert all(len(line) < 1000 for line in lines)
    assert "Traceback" not in farm.log(collector) + farm.log(worker)
    assert collector.poll() is None
    assert worker.poll() is None

    # And no object was written but those of the good job
    after = farm.objects()
    new = {key for key in after if key not in before}
    root = {keys.JOBS_PAGE, keys.JOBS, keys.JOBS_SCRIPT, *(keys.asset("", name) for name in site.assets())}
    assert {keys.grid(good, LAYER), keys.records(good, LAYER), keys.index(good), *root} <= new
    assert all(key.startswith(f"{good}/") for key in new - root)
    changed = {key for key in before if after.get(key) != before[key]}
    assert changed == {keys.tile(good, LAYER, 2), keys.status(good)}
    assert not [line for line in farm.log(worker).splitlines() if "evil" in line]
