"""Quality of the tiles by layer, compared with Lucent's: ``make bench-quality``. Takes hours on two cores.

Renders some filters of every layer of a trained EfficientNet-Lite0 with the defaults of ``filterfarm run --method
fourier``, by the function that a worker calls, and measures the saved pixels as ``filterfarm quality`` does. Lucent
gets the same number of forward passes per tile, including restarts. Each finished layer is a line of the output file,
and the same command resumes after it.
"""

import argparse
import json
import platform
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import fx, nn
from torch.nn import functional as F

from producer.collector.contact_sheet import sheet
from producer.planning import job_builder as planning
from producer.planning.options import Options
from tests.benchmarks.lucent import Lucent
from workers.contract.job import Grid, Job, Layer
from workers.networks import process_tuning, tracing, weights
from workers.rendering import metrics
from workers.rendering.metrics import LayerProbe
from workers.rendering.render import render
from workers.rendering.tile import Tile

if TYPE_CHECKING:
    from numpy.typing import NDArray

Item = TypeVar("Item")

#: Size at which Lucent shows its pictures to the network, and the second size of the comparison.
LUCENT_VIEW_PX = 224

TARGETS = "targets: grey 0; self-id >= 0.99 overall and >= 0.95 in every layer; vs Lucent >= 1 in every layer"

CAVEATS = """\
grey      tiles marked dead although their filter's batch-norm passes something
self-id   share of the tiles, dead filters excluded, whose own filter no other tile excites by more than 0.1 % more; the
          share falls with the number of tiles
vs Lucent median over the same filters of our activation over Lucent's, both of the saved 8-bit 128 px pictures shown
          to the same network: at 128 px, at 224 px (the size to which Lucent enlarges its pictures), and each at the
          better of the two. Forward passes are equal, not seconds: Lucent's, at 224 px, take three times as long.
          If Lucent's activation is 0 or less, the ratio is infinite if ours is above 0, and 1 otherwise."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Measurements of one layer."""

    layer: str
    settings: str
    tiles: int
    inert: int
    grey: int
    rescued: int
    identified: int
    selectivity: float
    high_frequency: float
    #: median start activation, and medians of ours and Lucent's on the saved picture at 128 px
    start: float
    ours: float
    lucent: float | None
    at_128: float | None
    at_224: float | None
    at_best: float | None
    seconds: float
    lucent_seconds: float


def main() -> None:
    arguments = _arguments()
    process_tuning.tune()
    options = Options.make(
        model=arguments.model, method=arguments.method, layers=arguments.layers, filters="all",
        size=str(arguments.size),
        steps=arguments.steps, step_size=arguments.step_size, seed=arguments.seed,
    )  # fmt: skip
    job, checkpoint = planning.make_job(options)
    model = weights.load(job.model, job.weights, checkpoint, seed=0).to(memory_format=torch.channels_last)
    trace = tracing.trace(model)
    settings = _settings(job, arguments)
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{sys.executable.rpartition('/')[2]} -m tests.benchmarks.quality {' '.join(sys.argv[1:])}")
    print(f"{job.model}: {job.recipe.described}, step size {job.recipe.step_size:g}\n")
    done = _finished(arguments.out, settings)
    print(_HEAD, flush=True)
    rows = []
    for layer in job.layers[:: arguments.every]:
        if layer.name not in done:
            row = _bench(model, trace, job, layer, arguments, settings)
            with arguments.out.open("a") as file:
                file.write(json.dumps(asdict(row)) + "\n")
            done[layer.name] = row
        rows.append(done[layer.name])
        print(_line(rows[-1]), flush=True)
    alive = sum(row.tiles - row.inert for row in rows)
    print(f"\nall: {sum(row.tiles for row in rows)} tiles, {sum(row.inert for row in rows)} dead, ", end="")
    print(f"{sum(row.grey for row in rows)} grey, self-id {sum(row.identified for row in rows) / alive:.4f}, ", end="")
    print(f"lowest {min(_identified(row) for row in rows):.3f}; ", end="")
    worst = [min(found) for field in ("at_128", "at_224", "at_best") if (found := _known(rows, field))]
    print(f"lowest vs Lucent (128, 224, best) {', '.join(f'{ratio:.2f}' for ratio in worst) or '-'}")
    print(f"{TARGETS}\n\n{CAVEATS}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--layers", default="all", help="comma-separated names and globs")
    parser.add_argument("--every", type=int, default=1, help="only every N-th of these layers")
    parser.add_argument("--filters", type=int, default=32, help="the first N filters of each layer")
    parser.add_argument("--method", default="fourier")
    parser.add_argument("--size", type=int, default=128, help="pixels; Lucent's are 128")
    parser.add_argument("--steps", type=int, help="default: the method's")
    parser.add_argument("--step-size", type=float, help="default: the method's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--no-lucent", dest="lucent", action="store_false", help="measure our tiles only")
    parser.add_argument("--lucent-view", type=int, help="side in pixels of what Lucent's network sees; default: 224")
    parser.add_argument("--out", type=Path, default=Path("build/quality.jsonl"))
    parser.add_argument("--pictures", type=Path, help="folder for contact sheets of both")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    return arguments


def _settings(job: Job, arguments: argparse.Namespace) -> str:
    """The settings that rows of one table have in common."""
    other = f"first {arguments.filters} filters, batch {arguments.batch}, Lucent "
    view = arguments.lucent_view or LUCENT_VIEW_PX
    return f"{job.model} {job.recipe.model_dump_json()} {other}{f'at {view} px' if arguments.lucent else 'left out'}"


def _finished(path: Path, settings: str) -> dict[str, Row]:
    if not path.exists():
        return {}
    rows = [Row(**json.loads(line)) for line in path.read_text().splitlines()]
    return {row.layer: row for row in rows if row.settings == settings}


def _bench(
    model: nn.Module, trace: fx.Graph, job: Job, layer: Layer, arguments: argparse.Namespace, settings: str
) -> Row:
    filters = list(range(min(arguments.filters, layer.channels)))
    device = torch.device("cpu")
    began = time.monotonic()
    tiles: list[Tile] = []
    for batch in _batches(filters, arguments.batch):
        tiles += render(model, trace, layer.name, batch, job.recipe, device)
    seconds = time.monotonic() - began
    probe = LayerProbe(model, trace, layer.name, job.recipe, device)
    alive = np.array([not probe.inert[filter_] for filter_ in filters])
    pictures = np.stack([tile.pixels for tile in tiles])
    own = probe.responses(pictures)[:, filters]
    theirs, lucent_seconds = None, 0.0
    if arguments.lucent:
        began = time.monotonic()
        theirs = _lucent(model, trace, job, layer, tiles, arguments)
        lucent_seconds = time.monotonic() - began
    ratios = _ratios(probe, filters, pictures, theirs, alive)
    if arguments.pictures:
        _keep(arguments.pictures, layer.name, pictures, theirs)
    return Row(
        layer=layer.name,
        settings=settings,
        tiles=len(filters),
        inert=int((~alive).sum()),
        grey=sum(tile.status == "dead" and bool(ok) for tile, ok in zip(tiles, alive, strict=True)),
        rescued=sum(tile.status == "rescued" for tile in tiles),
        identified=int(metrics.identified(own)[alive].sum()),
        selectivity=_median(metrics.selectivity(own)[alive]),
        high_frequency=_median(metrics.high_frequency(pictures)[alive]),
        start=_median(np.array([tile.start_activation for tile in tiles])[alive]),
        ours=_median(np.diagonal(own)[alive]),
        lucent=None if theirs is None else _median(_own(probe, filters, theirs)[alive]),
        at_128=ratios[0] if ratios else None,
        at_224=ratios[1] if ratios else None,
        at_best=ratios[2] if ratios else None,
        seconds=seconds,
        lucent_seconds=lucent_seconds,
    )


def _lucent(
    model: nn.Module, trace: fx.Graph, job: Job, layer: Layer, tiles: list[Tile], arguments: argparse.Namespace
) -> "NDArray[np.uint8]":
    """Lucent's pictures of the same filters, each after the same number of forward passes as ours."""
    lucent = Lucent(model, trace, layer.name, job.recipe.tap, job.recipe.preprocess)
    result = []
    for batch in _batches(tiles, arguments.batch):
        passes = [job.recipe.steps * (1 + tile.restarts) for tile in batch]
        stages = lucent.render(
            [tile.filter for tile in batch], passes=passes, seed=arguments.seed, view_px=arguments.lucent_view
        )
        result += [stages[count][place] for place, count in enumerate(passes)]
    return np.stack(result)


def _ratios(
    probe: LayerProbe,
    filters: list[int],
    ours: "NDArray[np.uint8]",
    theirs: "NDArray[np.uint8] | None",
    alive: "NDArray[np.bool_]",
) -> tuple[float, float, float] | None:
    """Medians of our activation over Lucent's: at the pictures' own size, enlarged, and each at its better size."""
    if theirs is None:
        return None
    small = _own(probe, filters, ours), _own(probe, filters, theirs)
    large = _own(probe, filters, _enlarged(ours)), _own(probe, filters, _enlarged(theirs))
    best = np.maximum(small[0], large[0]), np.maximum(small[1], large[1])
    at_128, at_224, at_best = (_median(_over(a, b)[alive]) for a, b in (small, large, best))
    return at_128, at_224, at_best


def _own(probe: LayerProbe, filters: list[int], pictures: "NDArray[np.uint8]") -> "NDArray[np.float32]":
    """(T,) mean activation of each picture's own filter."""
    return probe.responses(pictures)[np.arange(len(filters)), filters]


def _over(ours: "NDArray[np.float32]", theirs: "NDArray[np.float32]") -> "NDArray[np.float64]":
    result = np.where(ours > 0, np.inf, 1.0)
    return np.divide(ours, theirs, out=result, where=theirs > 0)


def _enlarged(pictures: "NDArray[np.uint8]") -> "NDArray[np.uint8]":
    batch = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
    # As Lucent's Upsample does it.
    large = F.interpolate(batch, size=(LUCENT_VIEW_PX, LUCENT_VIEW_PX), mode="bilinear", align_corners=True)
    return large.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _keep(folder: Path, layer: str, ours: "NDArray[np.uint8]", theirs: "NDArray[np.uint8] | None") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, pictures in (("ours", ours), ("lucent", theirs)):
        if pictures is not None:
            canvas = sheet([(picture, "live") for picture in pictures], Grid(margin_px=2), pictures.shape[1:3])
            Image.fromarray(canvas).save(folder / f"{layer}-{name}.png")


def _batches(items: Sequence[Item], size: int) -> list[list[Item]]:
    return [list(items[first : first + size]) for first in range(0, len(items), size)]


def _median(numbers: "NDArray[np.floating]") -> float:
    return float(median(numbers.tolist())) if len(numbers) else float("nan")


def _known(rows: list[Row], field: str) -> list[float]:
    return [value for row in rows if (value := getattr(row, field)) is not None]


_HEAD = (
    f"{'layer':22} tiles  dead  grey rescued self-id select. high-f.     start      ours    Lucent"
    f"  vs Lucent 128   224  best       s  Lucent s"
)


def _identified(row: Row) -> float:
    return row.identified / max(1, row.tiles - row.inert)


def _line(row: Row) -> str:
    text = f"{row.layer:22} {row.tiles:5} {row.inert:5} {row.grey:5} {row.rescued:7} {_identified(row):7.3f} "
    text += f"{row.selectivity:7.2f} {100 * row.high_frequency:6.1f}% {row.start:9.4f} {row.ours:9.4f} "
    if row.lucent is None:
        return f"{text}{'-':>9} {'-':>14} {'-':>5} {'-':>5} {row.seconds:7.0f} {'-':>9}"
    text += f"{row.lucent:9.4f} {row.at_128:14.2f} {row.at_224:5.2f} {row.at_best:5.2f} "
    return f"{text}{row.seconds:7.0f} {row.lucent_seconds:9.0f}"


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # Lucent's libraries are of 2020
    main()
