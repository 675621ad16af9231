"""Speed of the engine on this machine, and overhead of the farm around it: ``make bench``.

Takes half an hour on two cores; ``ARGS=--quick`` takes a few minutes and is less exact. Nothing is asserted.
"""

import argparse
import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

from tests.benchmarks import farm
from tests.benchmarks.subjects import Subject
from tests.benchmarks.tables import CAVEATS, Row, print_rows, targets
from workers.networks import cost, registry, tracing

OUTPUT = Path(__file__).parents[2] / "build" / "speed.json"

#: Network -> size of its pictures in pixels, and N: --quick measures every N-th layer, for itself and the next N - 1.
BANKS = {"vgg16": (150, 3), "inception_v3": (299, 36), "resnet50": (224, 21), "efficientnet_lite0": (224, 21)}


def rows_of(model: str, size_px: int, every: int) -> list[Row]:
    """The layers to measure, each with the number of filters that it represents."""
    network = registry.skeleton(model)
    trace = tracing.trace(network)
    costs = cost.costs(network, trace, (size_px, size_px))
    rows: list[Row] = []
    for place, (layer, price) in enumerate(costs.items()):
        if place % every == 0:
            rows.append(Row(model=model, layer=layer, filters=0, step_gflop=price.step_gflop()))
        rows[-1].filters += int(network.get_submodule(layer).out_channels)  # type: ignore[arg-type]  # a convolution's
    return rows


class Bench:
    """One run: the processes of the subjects, and the best peaks measured so far."""

    def __init__(self, *, quick: bool, batches: tuple[int, ...]) -> None:
        self._quick = quick
        self._batches = batches
        self._subjects = {name: Subject(name) for name in ("ours", "plain", "lucent")}
        self.ours = self._subjects["ours"]
        self.auto: str = self.ours.ask("precision")
        #: fp32, and the precision that ``auto`` chooses on this device
        self.precisions = tuple(dict.fromkeys(("fp32", self.auto)))
        self.peaks: dict[str, float] = {}
        self._last_peak = self._measure_peak()

    def close(self) -> None:
        """End the subjects' processes."""
        for subject in self._subjects.values():
            subject.close()

    def _measure_peak(self) -> dict[str, float]:
        """GFLOP/s of the best single 3 x 3 convolution now, by precision. Updates ``peaks``, the run's best."""
        now: dict[str, float] = {
            precision: max(self.ours.ask("peak", precision=precision)) for precision in self.precisions
        }
        for precision, best in now.items():
            self.peaks[precision] = max(best, self.peaks.get(precision, 0.0))
        return now

    def measure(self, row: Row, size_px: int, *, closely: bool) -> None:
        """Fill in a row; the subjects alternate. ``closely``: for longer, and with ``lucent`` and the peak."""
        how = {
            "model": row.model,
            "layer": row.layer,
            "size": size_px,
            "steps": 4,
            "seconds": 2 if closely and not self._quick else 0.7,
        }
        turns: list[tuple[str, str, dict[str, Any]]] = []
        for batch in self._batches:
            for precision in self.precisions:
                turns.append((precision, "ours", {"precision": precision, "batch": batch}))
        turns += [(name, name, {}) for name in ("plain", "lucent") if closely or name != "lucent"]
        for _ in range(2 if closely and not self._quick else 1):
            for name, subject, more in turns:
                seconds = min(self._subjects[subject].ask("steps", **how, **more))
                if seconds < row.seconds.get(name, float("inf")):
                    row.seconds[name] = seconds
                    row.batch = more.get("batch", row.batch) if name == self.auto else row.batch
        row.seconds["auto"] = row.seconds[self.auto]
        if closely:
            before, self._last_peak = self._last_peak, self._measure_peak()
            row.peaks = {name: max(before[name], self._last_peak[name]) for name in self.precisions}

    def evidence(self, *, size_px: int, filters: int, every: int, steps: int) -> dict[str, Any]:
        """Final activations in bf16 over those in fp32, both evaluated in fp32, over layers of a trained network."""
        network = registry.skeleton("efficientnet_lite0")
        layers = list(tracing.convolutions(network, tracing.trace(network)))[::every]
        recipe = {
            "method": "notebook", "preprocess": {"name": "model", "mean": [0.5] * 3, "std": [0.5] * 3},
            "height_px": size_px, "width_px": size_px, "steps": steps, "rescue": False,
        }  # fmt: skip
        answers = {
            precision: self.ours.ask(
                "tiles", model="efficientnet_lite0", trained=True, layers=layers, filters=filters, batch=8, warm=False,
                recipe={**recipe, "precision": precision},
            )["activations"]
            for precision in ("fp32", "bf16")
        }  # fmt: skip
        ratios = {layer: list(_ratios(answers, layer)) for layer in layers}
        found = {layer: mean(values) for layer, values in ratios.items() if values}
        return {
            "layers": found, "mean": mean(found.values()), "lowest": min(found.values()),
            "tiles": sum(map(len, ratios.values())), "size_px": size_px, "steps": steps,
        }  # fmt: skip


def _ratios(answers: dict[str, Any], layer: str) -> Iterator[float]:
    """bf16 over fp32, of each filter that is live in both and has a positive activation in fp32."""
    halves = answers["bf16"].get(layer, {})
    for filter_, whole in answers["fp32"].get(layer, {}).items():
        if filter_ in halves and whole > 0:
            yield halves[filter_] / whole


def machine(device: str) -> dict[str, str]:
    """Processor, system, versions and device of the measurements."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": f"{len(names)} x {names[0]}" if names else platform.processor(),
        "system": platform.platform(), "python": platform.python_version(), "torch": version("torch"),
        "device": device,
    }  # fmt: skip


def main(arguments: list[str]) -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.speed", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer layers and rounds")
    parser.add_argument("--models", default=",".join(BANKS), help="networks to measure, separated by commas")
    parser.add_argument("--batches", default="8,16", help="batch sizes to try, separated by commas; the fastest counts")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="file to write the JSON to")
    options = parser.parse_args(arguments)
    bench = Bench(quick=options.quick, batches=tuple(int(text) for text in options.batches.split(",")))
    here = machine(bench.ours.ask("device"))
    print("machine: " + "; ".join(here.values()))
    print("command: python -m tests.benchmarks.speed " + " ".join(arguments), flush=True)
    rows: list[Row] = []
    for model in options.models.split(","):
        size_px, every = BANKS[model]
        mine = rows_of(model, size_px, every if options.quick else 1)
        for row in mine:
            bench.measure(row, size_px, closely=model == "vgg16")
        print_rows(mine)
        sys.stdout.flush()
        rows += mine
    figures: dict[str, Any] = {
        "farm": farm.job_against_engine(
            bench.ours,
            filters=32 if options.quick else 192,
            steps=8 if options.quick else 40,
            rounds=1 if options.quick else 3,
        ),
        "interpreter": farm.interpreter_ms(),
        "memory": {model: farm.renderer_growth(model) for model in ("efficientnet_lite0", "vgg16")},
        "evidence": bench.evidence(
            size_px=64, filters=2 if options.quick else 8, every=8 if options.quick else 1, steps=20
        ),
    }
    bench.close()
    peaks = ", ".join(f"{rate:.0f} GFLOP/s in {name}" for name, rate in bench.peaks.items())
    print(f"\npeak, the best single 3 x 3 convolution: {peaks}\n\n{'what':66}{'target':>10}  measured")
    table = list(targets(rows, bench.peaks, figures, bench.auto))
    for what, target, measured in table:
        print(f"{what:66}{target:>10}  {measured}")
    print("\n" + CAVEATS)
    if bench.auto == "fp32":
        print(
            "This device is not faster in bf16: auto is fp32 here, and rows of auto are those of fp32.\n"
            "Activations in bf16 are emulated, which takes longer and changes nothing in them."
        )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    report = {"machine": here, "arguments": arguments, "peaks": bench.peaks, "auto": bench.auto, **figures}
    report |= {"rows": [asdict(row) for row in rows], "targets": table}
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nwritten to {options.output}")


if __name__ == "__main__":
    main(sys.argv[1:])
