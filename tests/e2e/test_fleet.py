"""A whole job through real processes, and what a fleet has to survive."""

import json
import os
import re
import signal

import numpy as np
import pytest
import torch

from tests.e2e.fleet import Fleet, descendants, is_running, kill_group, wait_for
from tests.e2e.whole import check_everything
from workers.contract.job import Job
from workers.contract.tile_png import decode_tile
from workers.networks import registry, tracing, weights
from workers.rendering.render import render

#: Three layers of a trained network, from stem to head; small and short, so that a CPU takes seconds.
JOB = ("efficientnet_lite0", "--layers", "conv_stem,blocks.2.0.conv_pw,conv_head", "--filters", "0-8,20")
FAST = ("--size", "32", "--steps", "4", "--method", "notebook")

#: Enough work for a kill to hit the middle of it.
LONG = (
    "squeezenet1_1",
    "--weights",
    "none",
    "--layers",
    "features.0,features.3.squeeze",
    "--size",
    "48",
    "--steps",
    "60",
    "--method",
    "notebook",
)


def test_two_workers_and_a_collector_render_a_job_and_a_second_submission_does_nothing_twice(
    strict_farm: Fleet,
) -> None:
    farm = strict_farm
    # Given two workers and a collector
    processes = [farm.start("collector"), farm.start("worker", "--batch", "4"), farm.start("worker", "--batch", "4")]

    # When a job of several layers is submitted
    done = farm.run("submit", *JOB, *FAST, "--wait")

    # Then it ends, and every tile, record and sheet is there and right
    assert done.returncode == 0, done.stderr + "".join(map(farm.log, processes))
    job_id = done.stdout.strip()
    assert re.fullmatch(r"efficientnet_lite0-notebook-[0-9a-f]{8}", job_id)
    job = check_everything(farm, job_id)

    # And a tile from a batch is the tile that is rendered alone in this process
    model = weights.load(job.model, job.weights, None, seed=0)
    objects = farm.objects()
    for layer, filter_ in (("conv_stem", 5), ("conv_head", 20)):
        alone = render(model, tracing.trace(model), layer, [filter_], job.recipe, torch.device("cpu"))[0]
        pixels, record = decode_tile(objects[f"{job_id}/tiles/{layer}/{filter_}.png"][1], (32, 32))
        assert record.activation == pytest.approx(alone.activation, rel=1e-3)
        assert np.abs(pixels.astype(int) - alone.pixels.astype(int)).mean() < 0.5

    # And the same job again enqueues nothing and writes no tile
    again = farm.submit(*JOB, *FAST)
    assert (again["job"], again["stored"], again["enqueued"]) == (job_id, 30, 0)
    wait_for("the resumed job to end", lambda: farm.status(job_id)["state"] == "finished", 30)
    after = farm.objects()
    assert {key: value for key, value in after.items() if "/tiles/" in key or "/grids/" in key} == {
        key: value for key, value in objects.items() if "/tiles/" in key or "/grids/" in key
    }
    assert farm.outstanding() == 0

    # And what is fetched is what is stored
    fetched = farm.folder / "fetched"
    assert farm.run("fetch", job_id, str(fetched)).returncode == 0
    files = {str(path.relative_to(fetched)): path.read_bytes() for path in fetched.rglob("*") if path.is_file()}
    assert files == {key.removeprefix(f"{job_id}/"): body for key, (_, body) in after.items()}

    # And SIGTERM ends all three in good order, leaving no child behind
    children = [pid for process in processes for pid in descendants(process.pid)]
    assert len(children) >= 4
    for process in processes:
        process.send_signal(signal.SIGTERM)
    assert [process.wait(30) for process in processes] == [0, 0, 0], "".join(map(farm.log, processes))
    wait_for("all children to be gone", lambda: not any(map(is_running, children)), 10)
    assert "Traceback" not in "".join(map(farm.log, processes))


def test_a_worker_killed_in_the_middle_loses_nothing(farm: Fleet) -> None:
    # Given a job of 80 tiles under way on two workers
    farm.start("collector")
    victim, _ = farm.start_slow_worker(), farm.start_slow_worker()
    job_id = farm.submit(*LONG)["job"]
    wait_for("the first tiles", lambda: farm.status(job_id)["stored"] >= 5, 60)

    # When one of them vanishes with all its processes, while it holds messages
    kill_group(victim)
    assert farm.status(job_id)["stored"] < 80, "the job was over before the kill; make it longer"

    # Then the other finishes the job, and every tile is there
    wait_for("the job to end", lambda: farm.status(job_id)["state"] == "finished", 120)
    check_everything(farm, job_id)
    assert farm.status(job_id)["failed"] == 0


def test_a_stopped_worker_hands_its_messages_back_and_the_next_one_finishes(farm: Fleet) -> None:
    # Given a worker in the middle of a job
    farm.start("collector")
    worker = farm.start_slow_worker()
    job_id = farm.submit(*LONG)["job"]
    wait_for("the first tiles", lambda: farm.status(job_id)["stored"] >= 5, 60)

    # When it is told to stop
    worker.send_signal(signal.SIGTERM)

    # Then it leaves with code 0 and holds no message any more
    assert worker.wait(25) == 0, farm.log(worker)
    assert farm.redis.hlen("unacked") == 0
    assert 0 < farm.status(job_id)["stored"] < 80

    # And another worker finishes the job
    farm.start("worker", "--batch", "4")
    wait_for("the job to end", lambda: farm.status(job_id)["state"] == "finished", 120)
    check_everything(farm, job_id)


def test_a_renderer_that_is_killed_costs_nothing_but_time(farm: Fleet) -> None:
    # Given a worker in the middle of a job
    farm.start("collector")
    worker = farm.start_slow_worker()
    job_id = farm.submit(*LONG)["job"]
    wait_for("the first tiles", lambda: farm.status(job_id)["stored"] >= 5, 60)

    # When its renderer is killed, as for too much memory
    celery = descendants(worker.pid)[0]
    os.kill(_renderer(celery), signal.SIGKILL)

    # Then the same worker finishes the job
    wait_for("the job to end", lambda: farm.status(job_id)["state"] == "finished", 120)
    check_everything(farm, job_id)
    assert descendants(worker.pid)[0] == celery


def test_a_job_whose_messages_were_lost_completes(farm: Fleet) -> None:
    # Given a submitted job, whose queue is then lost
    job_id = farm.submit(*JOB, *FAST)["job"]
    assert farm.status(job_id)["queued"] == 30
    farm.redis.delete(f"filterfarm.render.{job_id}")

    # When worker and collector come
    farm.start("collector")
    farm.start("worker", "--batch", "4")

    # Then it completes although nobody waits for it
    wait_for("the job to end", lambda: farm.status(job_id)["state"] == "finished", 90)
    check_everything(farm, job_id)
    assert farm.status(job_id)["requeued"] == 30


def test_a_job_outlives_its_redis(farm: Fleet) -> None:
    # Given a job of which some tiles are stored
    collector, worker = farm.start("collector"), farm.start_slow_worker()
    job_id = farm.submit(*LONG)["job"]
    wait_for("the first tiles", lambda: farm.status(job_id)["stored"] >= 5, 60)
    kill_group(worker)
    kill_group(collector)
    before = {key: when for key, (when, _) in farm.objects().items() if "/tiles/" in key}

    # When Redis comes back empty
    farm.redis.flushall()
    farm.start("collector")
    farm.start("worker", "--batch", "4")

    # Then the job resumes by itself from the bucket, and no stored tile is rendered again
    wait_for("the job to end", lambda: farm.status(job_id)["state"] == "finished", 120)
    check_everything(farm, job_id)
    after = farm.objects()
    assert {key: after[key][0] for key in before} == before


def test_a_cancelled_job_stops_and_resumes_when_it_is_submitted_again(farm: Fleet) -> None:
    # Given a job under way
    farm.start("collector")
    farm.start_slow_worker()
    job_id = farm.submit(*LONG)["job"]
    wait_for("the first tiles", lambda: farm.status(job_id)["stored"] >= 5, 60)

    # When it is cancelled
    assert farm.run("cancel", job_id).returncode == 0

    # Then its messages are gone, those that the worker holds as soon as its batch is done
    assert farm.status(job_id)["queued"] == 0
    wait_for("the worker to let go", lambda: farm.outstanding() == 0, 30)
    stored = farm.status(job_id)
    assert stored["state"] == "cancelled"
    assert stored["stored"] < 80

    # And submitting it again resumes it
    assert farm.submit(*LONG)["enqueued"] == 80 - stored["stored"]
    wait_for("the job to end", lambda: farm.status(job_id)["state"] == "finished", 120)
    check_everything(farm, job_id)


def test_a_checkpoint_of_the_users_own_reaches_the_workers_through_the_bucket(farm: Fleet) -> None:
    # Given a checkpoint with another classifier, in a file that only the submitter has
    checkpoint = farm.folder / "mine.pth"
    trained = registry.build("resnet18", seed=7)
    state = {f"module.{name}": tensor for name, tensor in trained.state_dict().items() if not name.startswith("fc.")}
    state["module.fc.weight"], state["module.fc.bias"] = torch.zeros(7, 512), torch.zeros(7)
    torch.save({"state_dict": state, "epoch": 3}, checkpoint)
    farm.start("collector")
    farm.start("worker", "--batch", "4")

    # When a job names it, and the file is gone before a worker comes to it
    job = farm.submit(
        "resnet18", "--weights", str(checkpoint), "--layers", "conv1", "--filters", "0-3", *FAST, "--method", "fourier"
    )["job"]
    checkpoint.unlink()
    wait_for("the job to end", lambda: farm.status(job)["state"] == "finished", 90)

    # Then the tiles are those of that checkpoint
    objects = farm.objects()
    frozen = Job.model_validate_json(objects[f"{job}/job.json"][1])
    expected = render(trained, tracing.trace(trained), "conv1", [2], frozen.recipe, torch.device("cpu"))[0]
    _, record = decode_tile(objects[f"{job}/tiles/conv1/2.png"][1], (32, 32))
    assert record.activation == pytest.approx(expected.activation, rel=1e-3)


def test_what_is_no_task_is_dropped_and_the_worker_lives(farm: Fleet) -> None:
    # Given a worker, and a queue full of what it must not trip over
    farm.start("collector")
    worker = farm.start("worker", "--batch", "4")
    hostile = [
        "garbage{{{",
        "[]",
        "{}",
        _message({"body": "a string"}),
        _message({"body": [[], {"version": 1, "job": "no-such-job", "layer": "x", "filter": 0}, {}]}),
        _message({"body": [[], {"version": 9, "job": "no-such-job", "layer": "x", "filter": 0}, {}]}),
        _message({"body": [[], {"version": 1, "job": "../../etc", "layer": "x" * 10_000, "filter": -1}, {}]}),
        _message({"body": [[1, 2], {"version": 1}, {}]}),
        _message({"body": [[], {}, {}], "task": "os.system"}),
        _message({"raw": b"\x80\x04cos\nsystem\n", "type": "application/x-python-serialize"}),
        _message({"raw": b"{not json"}),
    ]
    for message in hostile:
        farm.redis.lpush("filterfarm.render", message)

    # When a job comes behind it
    job_id = farm.submit(*JOB, *FAST)["job"]

    # Then it is rendered, each foreign message is one line in the log, and nothing is left of them
    wait_for("the job to end", lambda: farm.status(job_id)["state"] == "finished", 90)
    check_everything(farm, job_id)
    log = farm.log(worker)
    assert log.count("dropped message reason=") == len(hostile)
    assert "Traceback" not in log
    assert farm.outstanding() == 0


def test_a_broken_tile_is_rendered_again(farm: Fleet) -> None:
    # Given a job whose layer is not assembled yet, because no collector runs
    worker = farm.start("worker", "--batch", "4")
    job_id = farm.submit(*JOB, *FAST)["job"]
    wait_for("all tiles", lambda: farm.status(job_id)["stored"] == 30, 60)
    assert "collector" in farm.status(job_id)["waiting_for"]

    # When one tile is truncated and another replaced by garbage
    farm.put(f"{job_id}/tiles/conv_stem/3.png", farm.objects()[f"{job_id}/tiles/conv_stem/3.png"][1][:200])
    farm.put(f"{job_id}/tiles/conv_head/4.png", b"garbage")
    farm.start("collector")

    # Then the collector notices, and the job ends whole
    wait_for("the job to end", lambda: farm.status(job_id)["state"] == "finished", 60)
    check_everything(farm, job_id)
    assert worker.poll() is None


def test_a_job_says_what_it_is_waiting_for(farm: Fleet) -> None:
    # Given a submitted job, a collector, and no worker
    farm.start("collector")
    job_id = farm.submit(*JOB, *FAST)["job"]
    wait_for("the collector", lambda: farm.redis.exists("filterfarm:collector"), 20)

    # When its status is asked for
    done = farm.run("status", job_id)

    # Then it says so
    assert "waiting for a worker: none has been seen" in done.stdout
    assert "0 of 30 tiles" in done.stdout


def _renderer(celery: int) -> int:
    """The child of a Celery process that runs the renderer."""
    for pid in descendants(celery):
        with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123 - not a path of ours
            if b"spawn_main" in file.read():
                return pid
    raise AssertionError("no renderer")


def _message(parts: dict[str, object]) -> str:
    """A message as Celery writes it, with some parts foreign."""
    import base64
    import uuid

    raw = parts.get("raw")
    body = raw if isinstance(raw, bytes) else json.dumps(parts["body"]).encode()
    identity = str(uuid.uuid4())
    headers = {"lang": "py", "task": parts.get("task", "filterfarm.render"), "id": identity, "root_id": identity}
    properties = {
        "correlation_id": identity,
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": "filterfarm.render"},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": identity,
    }
    return json.dumps(
        {
            "body": base64.b64encode(body).decode(),
            "content-encoding": "utf-8",
            "content-type": parts.get("type", "application/json"),
            "headers": headers,
            "properties": properties,
        }
    )
