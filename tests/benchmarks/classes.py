"""Pictures of classes: which class their network and others read in them, for three methods.

``python -m tests.benchmarks.classes --classes 16``. Needs the packages of EfficientNet-Lite0 to 2, and Lucent
(``make build/lucent``) unless ``--no-lucent``. Nothing is asserted.
"""

import argparse
import platform
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from producer.collector.contact_sheet import sheet
from producer.planning import job_builder as planning
from producer.planning.options import Options
from producer.quality.class_reader import ClassReader
from tests.benchmarks.lucent import Lucent
from workers.contract.job import Grid
from workers.networks import process_tuning, tracing, units, weights
from workers.networks.tensor_extractor import extractor_of
from workers.rendering import metrics
from workers.rendering.metrics import LayerProbe
from workers.rendering.render import render_layer

if TYPE_CHECKING:
    from numpy.typing import NDArray

LITE = ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]

_BATCH = 8


def main() -> None:
    arguments = _arguments()
    process_tuning.tune()
    classes = np.linspace(0, 999, arguments.classes + 2).round().astype(int)[1:-1].tolist()
    others = [ClassReader(name, classes=1000, device="cpu") for name in LITE]
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"python -m tests.benchmarks.classes {' '.join(sys.argv[1:])}\n")
    print(f"{'pictures of':20}{'by':10}{'px':>5}{'classes':>9}{'own 1/5':>12}", end="")
    print("".join(f"{name.removeprefix('efficientnet_'):>12}" for name in LITE) + f"{'s':>7}", flush=True)
    for model, method, of in (
        (LITE[0], "fourier", classes),
        (LITE[0], "maco", classes),
        *([(LITE[0], "lucent", classes)] if arguments.lucent else []),
        # A larger network takes as long for fewer.
        *((name, "fourier", classes[:: arguments.every]) for name in (*LITE[1:], *arguments.networks)),
    ):
        _bench(model, method, of, others, arguments.pictures)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=60, help="number of classes, spread over the thousand")
    parser.add_argument("--every", type=int, default=4, help="other networks than Lite0: one class of so many")
    parser.add_argument("--no-lucent", dest="lucent", action="store_false")
    parser.add_argument("--networks", nargs="*", default=[], help="further networks, as MODEL or MODEL=WEIGHTS")
    parser.add_argument("--pictures", type=Path, help="folder for a sheet of each row")
    return parser.parse_args()


def _bench(network: str, method: str, classes: list[int], others: list[ClassReader], folder: Path | None) -> None:
    """Render classes of one network, and print who reads them."""
    model, _, file = network.partition("=")
    job, checkpoint = planning.make_job(
        Options.make(
            model=model,
            weights=file or None,
            layers="logits",
            filters=",".join(map(str, classes)),
            method="fourier" if method == "lucent" else method,
        )  # fmt: skip
    )
    loaded = weights.load(model, job.weights, checkpoint, seed=0).to(memory_format=torch.channels_last)
    trace, recipe, device = tracing.trace(loaded), job.recipe, torch.device("cpu")
    # Before Lucent, whose hooks hold tensors of the network that cannot be copied.
    probe = LayerProbe(loaded, trace, units.LOGITS, recipe, device)
    began = time.monotonic()
    pictures: list[NDArray[np.uint8]] = []
    extractor = extractor_of(loaded, trace, units.LOGITS, recipe.tap, (recipe.height_px, recipe.width_px))
    for first in range(0, len(classes), _BATCH):
        batch = classes[first : first + _BATCH]
        if method == "lucent":
            lucent = Lucent(loaded, trace, units.LOGITS, recipe.tap, recipe.preprocess)
            pictures.extend(lucent.render(batch, passes=[recipe.steps], seed=0)[recipe.steps])
        else:
            tiles = render_layer(extractor, units.LOGITS, batch, recipe, device)
            pictures.extend(tile.pixels for tile in tiles)
    seconds = time.monotonic() - began
    stacked = np.stack(pictures)
    cells = [_cell(probe.responses(stacked), classes)]
    cells += ["-" if other.name == model else _cell(other.logits(stacked), classes) for other in others]
    row = f"{model:20}{method:10}{stacked.shape[1]:5}{len(classes):9}"
    print(row + "".join(f"{cell:>12}" for cell in cells) + f"{seconds:7.0f}", flush=True)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        canvas = sheet([(picture, "live") for picture in pictures], Grid(margin_px=2), stacked.shape[1:3])
        Image.fromarray(canvas).save(folder / f"{model}-{method}.png")


def _cell(logits: "NDArray[np.float32]", classes: list[int]) -> str:
    """Percentages of pictures whose class is first, and among the first five."""
    ranks = metrics.ranks(logits, np.array(classes))
    return f"{100 * (ranks == 0).mean():.0f} / {100 * (ranks < 5).mean():.0f}"


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # Lucent's libraries are of 2020
    main()
