"""The parts of the speed benchmark that need real processes: a job through the farm, and what a renderer keeps."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.benchmarks.subjects import Subject
from tests.e2e.fleet import Fleet, descendants, fleet, wait_for
from workers.contract.job import Job, Layer, Weights
from workers.contract.recipe import Preprocess, Recipe
from workers.runtime.batch_size import candidate_sizes, max_batch_size
from workers.runtime.render_process import Batch, Renderer

#: A network that costs next to nothing at this size.
_CHEAP = ("squeezenet1_1", "--weights", "none", "--method", "notebook", "--steps", "1", "--size", "32", "--no-rescue")


def job_against_engine(subject: Subject, filters: int, steps: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of a warm job through queue, worker, store and collector, and of the engine alone on its tiles.

    With 40 steps it is the notebook's recipe. The engine's are taken before the first round and after each, because a
    machine changes its mind; a round's ratio is that to the mean of those beside it. Each round is a farm of its own.
    """
    layer, size_px = "features.10", 150
    options = ["vgg16", "--weights", "none", "--layers", layer]
    options += ["--method", "notebook", "--size", str(size_px), "--steps", str(steps)]
    recipe = Recipe(
        method="notebook", preprocess=Preprocess(name="raw"), height_px=size_px, width_px=size_px, steps=steps
    )

    def alone() -> float:
        answer = subject.ask(
            "tiles", model="vgg16", trained=False, layers=[layer], recipe=recipe.model_dump(mode="json"),
            filters=filters, batch=max_batch_size("cpu"), warm=True,
        )  # fmt: skip
        return float(answer["seconds"])

    def through_farm() -> float:
        with TemporaryDirectory() as folder, fleet(Path(folder), "rclone") as farm:
            del farm.environ["OMP_NUM_THREADS"]  # the engine alone has all cores, too
            farm.start("worker")
            farm.start("collector")
            # Other filters, so many that the worker has tried every batch size. The same seed: another would be another
            # network, and loading that no part of a warm job.
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
    """CPU milliseconds per tile of the Celery process, without its renderer, on tiles that cost nothing."""
    with TemporaryDirectory() as folder, fleet(Path(folder), "rclone") as farm:
        supervisor = farm.start("worker")
        _finish(farm, *_CHEAP, "--layers", "features.0", "--filters", "0-31")
        celery = descendants(supervisor.pid)[0]
        before_s = _cpu_s(celery)
        _finish(farm, *_CHEAP, "--layers", "features.6.*,features.7.*", "--seed", "1")
        spent_s = _cpu_s(celery) - before_s
        tiles = sum("/tiles/" in key for key in farm.objects()) - 32
    return {"tiles": tiles, "ms": 1e3 * spent_s / tiles}


#: Layers from the first to the last, in turn; of VGG16's some keep kernels of Winograd's algorithm.
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
    """Peak resident memory of the renderer's process after 100 and 500 tiles of six layers in turn, in MB."""
    layers = _MIXED[model]
    job = Job(
        model=model,
        weights=Weights(source="none", name="none"),
        layers=tuple(Layer(name=name, channels=32, filters="0-31") for name in layers),
        recipe=Recipe(method="notebook", preprocess=Preprocess(name="raw"), height_px=96, width_px=96, steps=3),
    )
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
        # What is in flight is asked for first: counting what is queued, by a scan of all keys, cost the farm time.
        wait_for("the end of a job", lambda: not farm.redis.hlen("unacked") and farm.outstanding() == 0, 3600)
        return time.monotonic() - began


def _cpu_s(pid: int) -> float:
    """Seconds of processor time that a process has had, in user mode and in the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _renderers() -> list[int]:
    """Processes that this one has spawned to render."""
    return [pid for pid in descendants(os.getpid()) if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


def _peak_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
