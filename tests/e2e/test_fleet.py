"""Whole jobs through real processes, and the common faults of a fleet."""

import json
import re
import signal

import numpy as np
import pytest
import torch

from tests.e2e.fleet import Fleet, descendants, is_running, kill_group, wait_for
from tests.e2e.whole import check_everything, has_ended, stored
from workers.contract.job import Job
from workers.contract.tile_png import decode_tile
from workers.networks import registry, tracing, weights
from workers.rendering.render import render

#: Three layers of a trained network, from stem to head; small and short, so that a CPU takes seconds.
JOB = ("efficientnet_lite0", "--layers", "conv_stem,blocks.2.0.conv_pw,conv_head", "--filters", "0-8,20")
FAST = ("--size", "32", "--steps", "4", "--method", "notebook")

#: A job of 80 tiles, long enough for a fault to occur during it.
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


def test_two_workers_and_a_collector_render_a_job_and_a_second_submission_renders_nothing_again(
    strict_farm: Fleet,
) -> None:
    farm = strict_farm
    # Given two workers and a collector
    processes = [farm.start("collector"), farm.start("worker", "--batch", "4"), farm.start("worker", "--batch", "4")]

    # When a job of several layers is submitted
    done = farm.run("submit", *JOB, *FAST, "--wait")

    # Then it ends, and every tile, record and sheet exists and is correct
    assert done.returncode == 0, done.stderr + "".join(map(farm.log, processes))
    job_id = done.stdout.strip()
    assert re.fullmatch(r"efficientnet_lite0-notebook-[0-9a-f]{12}", job_id)
    job = check_everything(farm, job_id)

    # And a tile of a batch equals the tile rendered alone in this process
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
    wait_for("the resumed job to end", lambda: has_ended(farm, job_id), 60)
    assert farm.status(job_id)["state"] == "finished"
    after = farm.objects()
    assert {key: value for key, value in after.items() if "/tiles/" in key or "/grids/" in key} == {
        key: value for key, value in objects.items() if "/tiles/" in key or "/grids/" in key
    }
    assert farm.outstanding() == 0

    # And what is fetched equals what is stored
    fetched = farm.folder / "fetched"
    assert farm.run("fetch", job_id, str(fetched)).returncode == 0
    files = {str(path.relative_to(fetched)): path.read_bytes() for path in fetched.rglob("*") if path.is_file()}
    own = f"{job_id}/"
    assert files == {key.removeprefix(own): body for key, (_, body) in after.items() if key.startswith(own)}

    # And SIGTERM ends all three with code 0, and none of their children remains
    children = [pid for process in processes for pid in descendants(process.pid)]
    assert len(children) >= 4
    for process in processes:
        process.send_signal(signal.SIGTERM)
    assert [process.wait(30) for process in processes] == [0, 0, 0], "".join(map(farm.log, processes))
    wait_for("all children to be gone", lambda: not any(map(is_running, children)), 10)
    assert "Traceback" not in "".join(map(farm.log, processes))


def test_a_job_waits_for_a_worker_and_completes_although_its_messages_were_lost(farm: Fleet) -> None:
    # Given a submitted job, a collector, and no worker
    farm.start("collector")
    job_id = farm.submit(*JOB, *FAST)["job"]
    wait_for("the collector", lambda: farm.redis.exists(farm.names.collector), 60)

    # Then its status says what it waits for
    status = farm.status(job_id)
    assert (status["state"], status["queued"], status["workers"]) == ("running", 30, 0)
    assert "a worker" in status["waiting_for"]

    # And when its queue is lost, and a worker starts
    farm.redis.delete(farm.names.queue(job_id))
    farm.start("worker", "--batch", "4")

    # Then the collector enqueues every tile again, and the job completes
    wait_for("the job to end", lambda: has_ended(farm, job_id), 120)
    check_everything(farm, job_id)
    assert farm.status(job_id)["requeued"] == 30


def test_a_job_outlives_its_redis(farm: Fleet) -> None:
    # Given a job of which some tiles are stored
    collector, worker = farm.start("collector"), farm.start_slow_worker()
    job_id = farm.submit(*LONG)["job"]
    wait_for("the first tiles", lambda: stored(farm, job_id) >= 5, 90)
    kill_group(worker)
    kill_group(collector)
    before = {key: when for key, (when, _) in farm.objects().items() if "/tiles/" in key}

    # When Redis is empty after a restart
    farm.redis.flushall()
    farm.start("collector")
    farm.start("worker", "--batch", "4")

    # Then the job resumes from the bucket without a command, and no stored tile is rendered again
    wait_for("the collector to find the job", lambda: not has_ended(farm, job_id), 90)
    wait_for("the job to end", lambda: has_ended(farm, job_id), 120)
    check_everything(farm, job_id)
    after = farm.objects()
    assert {key: after[key][0] for key in before} == before


def test_a_job_is_cancelled_resumed_and_finished_by_another_worker_than_the_stopped_one(farm: Fleet) -> None:
    # Given a job in progress
    farm.start("collector")
    worker = farm.start_slow_worker()
    job_id = farm.submit(*LONG)["job"]
    wait_for("the first tiles", lambda: stored(farm, job_id) >= 5, 90)

    # When it is cancelled
    assert farm.run("cancel", job_id).returncode == 0

    # Then its queue is deleted, and the worker drops the messages it holds when its batch has ended
    assert farm.status(job_id)["queued"] == 0
    wait_for("the worker to drop its messages", lambda: farm.outstanding() == 0, 60)
    cancelled = farm.status(job_id)
    assert cancelled["state"] == "cancelled"
    assert cancelled["stored"] < 80

    # And submitting it again resumes it
    assert farm.submit(*LONG)["enqueued"] == 80 - cancelled["stored"]
    wait_for("more tiles", lambda: stored(farm, job_id) > cancelled["stored"], 60)

    # And when the worker gets SIGTERM, it exits with code 0 and holds no message any more
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(25) == 0, farm.log(worker)
    assert farm.redis.hlen(farm.names.unacked) == 0
    assert cancelled["stored"] < stored(farm, job_id) < 80

    # And another worker finishes the job
    farm.start("worker", "--batch", "4")
    wait_for("the job to end", lambda: has_ended(farm, job_id), 120)
    check_everything(farm, job_id)
    assert farm.status(job_id)["state"] == "finished"


def test_a_checkpoint_file_reaches_the_workers_through_the_bucket(farm: Fleet) -> None:
    # Given a checkpoint with another classifier, in a file on the submitting machine
    checkpoint = farm.folder / "mine.pth"
    trained = registry.build("resnet18", seed=7)
    state = {f"module.{name}": tensor for name, tensor in trained.state_dict().items() if not name.startswith("fc.")}
    state["module.fc.weight"], state["module.fc.bias"] = torch.zeros(7, 512), torch.zeros(7)
    torch.save({"state_dict": state, "epoch": 3}, checkpoint)
    farm.start("collector")
    farm.start("worker", "--batch", "4")

    # When a job names it, and the file is deleted before a worker starts the job
    job = farm.submit(
        "resnet18", "--weights", str(checkpoint), "--layers", "conv1", "--filters", "0-3", *FAST, "--method", "fourier"
    )["job"]
    checkpoint.unlink()
    wait_for("the job to end", lambda: has_ended(farm, job), 120)

    # Then its tiles are those of that checkpoint
    objects = farm.objects()
    frozen = Job.model_validate_json(objects[f"{job}/job.json"][1])
    expected = render(trained, tracing.trace(trained), "conv1", [2], frozen.recipe, torch.device("cpu"))[0]
    _, record = decode_tile(objects[f"{job}/tiles/conv1/2.png"][1], (32, 32))
    assert record.activation == pytest.approx(expected.activation, rel=1e-3)


def test_foreign_messages_are_dropped_and_broken_tiles_are_rendered_again(farm: Fleet) -> None:
    # Given a worker, and a queue of messages that are not this application's
    worker = farm.start("worker", "--batch", "4")
    wait_for("the worker", lambda: farm.has_id and farm.is_ready(worker), 60)
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
        farm.redis.lpush(farm.names.default_queue, message)

    # When a job is submitted behind them
    job_id = farm.submit(*JOB, *FAST)["job"]

    # Then it is rendered, each foreign message is one line in the log, and none of them is left
    wait_for("all tiles", lambda: stored(farm, job_id) == 30, 120)
    wait_for("the last messages to be acknowledged", lambda: farm.outstanding() == 0, 30)
    log = farm.log(worker)
    assert log.count("dropped message reason=") == len(hostile)
    assert "Traceback" not in log
    # And it waits for a collector, which is not running
    assert "collector" in farm.status(job_id)["waiting_for"]

    # And when one tile is truncated and another overwritten with garbage, and a collector starts
    farm.put(f"{job_id}/tiles/conv_stem/3.png", farm.objects()[f"{job_id}/tiles/conv_stem/3.png"][1][:200])
    farm.put(f"{job_id}/tiles/conv_head/4.png", b"garbage")
    collector = farm.start("collector")

    # Then both are rendered again, and the job completes
    wait_for("the job to end", lambda: has_ended(farm, job_id), 90)
    check_everything(farm, job_id)
    reopened = re.findall(rf"reopened job={job_id} layer=(\S+) tiles=(\d+)", farm.log(collector))
    assert sorted(reopened) == [("conv_head", "1"), ("conv_stem", "1")]
    assert worker.poll() is None


def _message(parts: dict[str, object]) -> str:
    """A message as Celery writes it, with the given parts replaced."""
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
