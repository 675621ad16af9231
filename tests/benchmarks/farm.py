"""The parts of the speed benchmark that need real processes: a job on a farm, and the memory of the render process."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.benchmarks.subjects import Subject
from tests.e2e.fleet import Fleet, descendants, fleet, wait_for
from tests.jobs import sample_job
from tests.recipes import RAW, recipe_of
from workers.runtime.batch_size import candidate_sizes, max_batch_size
from workers.runtime.render_process import Batch, Renderer

#: Options of a job whose tiles take almost no time to render.
_CHEAP = ("squeezenet1_1", "--weights", "none", "--method", "notebook", "--steps", "1", "--size", "32", "--no-rescue")


def job_against_engine(subject: Subject, filters: int, steps: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of a warm job on a farm (queue, worker, store, collector), and of the engine alone on the same tiles.

    With 40 steps it is the notebook's recipe. The engine is measured before the first round and after each, because the
    machine's speed varies. The ratio of a round is to the mean of the two measurements around it. Each round starts a
    new farm.
    """
    layer, size_px = "features.10", 150
    options = ["vgg16", "--weights", "none", "--layers", layer]
    options += ["--method", "notebook", "--size", str(size_px), "--steps", str(steps)]
    recipe = recipe_of(preprocess=RAW, size_px=size_px, steps=steps, precision="auto", seed=0)

    def alone() -> float:
        answer = subject.ask(
            "tiles", model="vgg16", trained=False, layers=[layer], recipe=recipe.model_dump(mode="json"),
            filters=filters, batch=max_batch_size("cpu"), warm=True,
        )  # fmt: skip
        return float(answer["seconds"])

    def through_farm() -> float:
        with TemporaryDirectory() as folder, fleet(Path(folder), "rclone") as farm:
            del farm.environ["OMP_NUM_THREADS"]  # the engine alone uses all cores too
            farm.start("worker")
            farm.start("collector")
            # Warms up with other filters, enough that the worker has timed every batch size. The seed is the same: with
            # another, the parameters would differ, and loading the network is not part of a warm job.
            tried = 2 * sum(candidate_sizes(0, "cpu"))
            _finish(farm, *options, "--filters", f"{filters}-{filters + tried - 1}")
            return _finish(farm, *options, "--filters", f"0-{filters - 1}")

    engine_s, wall_s = [alone()], []
    for _ in range(rounds):
        wall_s.append(through_farm())
        engine_s.append(alone())
    ratios = [2 * wall / (before + after) for wall, (before, after) in zip(wall_s, pairwise(engine_s), strict=True)]
    return {"wall_s": wall_s, "engine_s": engine_s, "ratios": ratios}


def interpreter_ms() -> dict[str, float]:
    """CPU milliseconds per tile of the Celery process alone, on tiles that take almost no time."""
    with TemporaryDirectory() as folder, fleet(Path(folder), "rclone") as farm:
        supervisor = farm.start("worker")
        _finish(farm, *_CHEAP, "--layers", "features.0", "--filters", "0-31")
        celery = descendants(supervisor.pid)[0]
        before_s = cpu_s(celery)
        _finish(farm, *_CHEAP, "--layers", "features.6.*,features.7.*", "--seed", "1")
        spent_s = cpu_s(celery) - before_s
        tiles = sum("/tiles/" in key for key in farm.objects()) - 32
    return {"tiles": tiles, "ms": 1e3 * spent_s / tiles}


#: Layers from the first to the last, rendered in turn. Before some of VGG16's, compiled convolutions keep kernels.
_MIXED = {
    "efficientnet_lite0": (
        "conv_stem",
        "blocks.1.0.conv_dw",
        "blocks.2.0.conv_pw",
        "blocks.3.0.conv_pw",
        "blocks.5.0.conv_pwl",
        "conv_head",
    ),
    "vgg16": ("features.0", "features.5", "features.10", "features.14", "features.21", "features.28"),
}


def renderer_growth(model: str) -> dict[str, float]:
    """Peak resident memory of the render process after 100 and 500 tiles of six layers in turn, in MB."""
    layers = _MIXED[model]
    job = sample_job(*layers, model=model, channels=32, filters="0-31", size_px=96, steps=3)
    renderer = Renderer(hang_s=600)
    try:
        peaks: dict[int, float] = {}
        tiles = 0
        while tiles < 500:
            layer = layers[tiles // 8 % len(layers)]
            filters = tuple((tiles + place) % 32 for place in range(8))
            batch = Batch(job=job, layer=layer, filters=filters, checkpoint=None, device="auto")
            tiles += len(renderer.render(batch))
            peaks[tiles] = max(map(_peak_mb, _renderers()))
        first = min(count for count in peaks if count >= 100)
        return {"after_100_mb": peaks[first], "after_500_mb": peaks[tiles], "growth": peaks[tiles] / peaks[first] - 1}
    finally:
        renderer.stop()


def _finish(farm: Fleet, *options: str) -> float:
    """Submit a job; seconds from its first message to the end of its last."""
    with ThreadPoolExecutor(1) as pool:
        submitted = pool.submit(farm.submit, *options)
        while not farm.outstanding() and not submitted.done():
            time.sleep(0.01)
        began = time.monotonic()
        submitted.result()
        # Checks messages in flight first: counting queued ones scans all keys, which slows the farm down.
        wait_for("the end of a job", lambda: not farm.redis.hlen(farm.names.unacked) and farm.outstanding() == 0, 3600)
        return time.monotonic() - began


def cpu_s(pid: int) -> float:
    """Processor time of a process in seconds, in user mode and in the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _renderers() -> list[int]:
    """Process ids of the render processes that this one has started."""
    return [pid for pid in descendants(os.getpid()) if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


def _peak_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
