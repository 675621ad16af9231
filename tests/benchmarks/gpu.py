"""Measures the engine on one device, without a farm: ``python -m tests.benchmarks.gpu``.

It needs torch 2.9 or newer, torchvision, timm, numpy, Pillow and pydantic, and nothing of the farm, so that it runs on
a bare GPU machine, where it takes less than 8 minutes. ``--tiny`` runs the same code on small pictures, in a minute.

"fp32" is float32 without TF32. A share is useful operations per second over those of the best single convolution, or
matrix product, of the same run and precision. Prints a table and writes JSON.
"""

import argparse
import json
import platform
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.device_bench import Bench, Row, tf32
from workers.networks import cost, devices, process_tuning, registry, tracing

OUTPUT = Path(__file__).parents[2] / "build" / "gpu.json"

#: Network -> size of its pictures in pixels, and N: every N-th layer is measured.
NETWORKS = {"vgg16": (150, 1), "inception_v3": (299, 12), "efficientnet_lite0": (224, 7)}
_TINY = {"efficientnet_lite0": (32, 30)}

PRECISIONS = ("bf16", "tf32", "fp32")

#: Network, layer, size and batch of the tile that is compared with the tile alone.
_COMPARED = "vgg16", "features.10", 150, 256
_COMPARED_TINY = "efficientnet_lite0", "blocks.1.0.conv_pw", 32, 2

#: After this many seconds no further layer is begun.
_LONGEST_S = 420.0

_HEADING = (
    "network", "layer", "precision", "ms", "TFLOP/s", "of convolution", "of product", "busy", "tiles/s", "MiB", "batch",
    "plain", "Lucent's way",
)  # fmt: skip


def rows_of(network: str, size_px: int, every: int) -> list[tuple[str, float]]:
    """The layers to measure, and GFLOP per tile and step of each."""
    model = registry.skeleton(network)
    costs = cost.costs(model, tracing.trace(model), (size_px, size_px))
    return [(layer, price.step_gflop()) for layer, price in list(costs.items())[::every]]


def cells(row: Row, peaks: dict[str, float]) -> list[str]:
    """A row of the table. ``plain`` and Lucent's way are factors by which they are slower."""
    best_ms = row.ms[row.batch]
    shares = [f"{row.tflop_s / peaks[name]:.2f}" for name in ("convolution", "product")]
    rest = ["-" if row.busy is None else f"{row.busy:.0%}", f"{row.tiles_per_s:.3g}"]
    memory = "-" if row.peak_mib is None else f"{row.peak_mib:.0f}"
    others = [f"{other / best_ms:.1f}x" for other in (row.plain_ms, row.lucent_ms) if other is not None]
    return [
        row.network, row.layer, row.precision, f"{best_ms:.3g}", f"{row.tflop_s:.3g}", *shares, *rest, memory,
        str(row.batch), *others,
    ]  # fmt: skip


def machine(device: torch.device) -> dict[str, str]:
    """Device, system and versions of the measurements."""
    packages = {name: version(name) for name in ("torch", "torchvision", "timm")}
    return {"device": devices.describe(device), "system": platform.platform(), **packages}


def main(arguments: list[str]) -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default=devices.available()[0], help="cuda:0, mps, cpu")
    parser.add_argument("--tiny", action="store_true", help="small pictures and few layers, to try the benchmark")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="file to write the JSON to")
    options = parser.parse_args(arguments)
    began, device = time.monotonic(), torch.device(options.device)
    process_tuning.tune()
    bench, rows, left_out = Bench(device, tiny=options.tiny), [], 0
    print("machine: " + "; ".join(machine(device).values()))
    print("command: python -m tests.benchmarks.gpu " + " ".join(arguments), flush=True)
    peaks: dict[str, dict[str, float]] = {}
    for precision in PRECISIONS:
        with tf32(precision):
            peaks[precision] = bench.peaks(precision)
    print(
        f"peaks, TFLOP/s: {json.dumps({name: {k: round(v, 3) for k, v in p.items()} for name, p in peaks.items()})}\n"
    )
    print(f"| {' | '.join(_HEADING)} |\n|{'---|' * len(_HEADING)}", flush=True)
    for network, (size_px, every) in (_TINY if options.tiny else NETWORKS).items():
        for layer, gflop in rows_of(network, size_px, every):
            for precision in PRECISIONS:
                if time.monotonic() - began > _LONGEST_S:
                    left_out += 1
                    continue
                row = Row(network=network, layer=layer, precision=precision, gflop=gflop)
                with tf32(precision):
                    bench.measure(row, size_px)
                print(f"| {' | '.join(cells(row, peaks[precision]))} |", flush=True)
                rows.append(row)
    compared: dict[str, Any] = bench.batch_against_alone(*(_COMPARED_TINY if options.tiny else _COMPARED))
    print("\na tile of a large batch against the tile alone: " + json.dumps(compared))
    if left_out:
        print(f"{left_out} rows are left out, because the time was over")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    found = {"machine": machine(device), "peaks_tflop_s": peaks, "rows": [asdict(row) for row in rows]}
    options.output.write_text(json.dumps({**found, "batch_against_alone": compared, "left_out": left_out}, indent=1))
    print(f"{options.output} written; {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
