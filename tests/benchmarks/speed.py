"""How fast the engine is on this machine, and how close the farm is to it: ``make bench``.

About fifteen minutes on two cores; ``ARGS=--quick`` takes a few minutes and is rougher. Nothing is asserted.
"""

import argparse
import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

from tests.benchmarks import farm
from tests.benchmarks.subjects import Subject
from workers import graph, models

OUTPUT = Path(__file__).parents[2] / "build" / "speed.json"

#: Network -> size of its pictures, and of how many layers one is measured (each stands for those up to the next).
BANKS = {"vgg16": (150, 1), "inception_v3": (299, 12), "resnet50": (224, 7), "efficientnet_lite0": (224, 7)}

CAVEATS = """\
Times are the best of several steps, taken in turn by the subjects, and still those of this machine at this hour.
Networks have random parameters, which cost the same. GFLOP/s count what a direct convolution needs; where a layer is
computed with fewer multiplications (Winograd), it may come out above the "peak", which is the best of the library's
own 3 x 3 convolutions in the same run.
A bank is every filter of every layer, so a layer counts by its filters. Of large networks only the layers shown are
measured, and each stands for those that follow it up to the next.
"plain" is one picture at a time in NCHW, cut at the layer, parameters frozen, the allocator as it comes; "lucent" is
the whole network with weight gradients. Neither is Keras or Lucent itself."""


@dataclass(kw_only=True)
class Row:
    """One layer's figures; seconds are per tile and step."""

    model: str
    layer: str
    #: filters it stands for
    filters: int
    step_gflop: float
    #: subject -> the best seconds
    seconds: dict[str, float] = field(default_factory=dict)
    #: tiles per batch that was best for ours
    batch: int = 0

    @property
    def gflops(self) -> float:
        """Useful GFLOP/s of ours in fp32."""
        return self.step_gflop / self.seconds["fp32"]


def rows_of(model: str, size_px: int, every: int) -> list[Row]:
    """The layers that are measured, each with the filters that it stands for."""
    network = models.skeleton(model)
    trace = graph.trace(network)
    costs = graph.costs(network, trace, (size_px, size_px))
    rows: list[Row] = []
    for place, (layer, cost) in enumerate(costs.items()):
        if place % every == 0:
            rows.append(Row(model=model, layer=layer, filters=0, step_gflop=cost.step_gflop))
        rows[-1].filters += int(network.get_submodule(layer).out_channels)  # type: ignore[arg-type]  # a convolution's
    return rows


class Bench:
    """One run: the subjects' processes, and what they have said."""

    def __init__(self, *, quick: bool, batches: tuple[int, ...]) -> None:
        self._quick = quick
        self._batches = batches
        self._subjects = {name: Subject(name) for name in ("ours", "plain", "lucent")}
        self.ours = self._subjects["ours"]
        self.auto: str = self.ours.ask("precision")
        self.peaks: dict[str, float] = {}
        self.measure_peaks()

    def close(self) -> None:
        """End the subjects' processes."""
        for subject in self._subjects.values():
            subject.close()

    def measure_peaks(self) -> None:
        """The best single 3 x 3 convolution so far, of each precision that ``auto`` may mean here."""
        for precision in {"fp32", self.auto}:
            best = max(self.ours.ask("peak", precision=precision))
            self.peaks[precision] = max(best, self.peaks.get(precision, 0.0))

    def measure(self, row: Row, size_px: int) -> None:
        """Fill in a row, the subjects taking turns."""
        how = {
            "model": row.model,
            "layer": row.layer,
            "size": size_px,
            "steps": 4,
            "seconds": 0.7 if self._quick else 2,
        }
        turns: list[tuple[str, str, dict[str, Any]]] = []
        for batch in self._batches:
            for precision in {"fp32", self.auto}:
                turns.append((precision, "ours", {"precision": precision, "batch": batch}))
        turns += [("plain", "plain", {}), ("lucent", "lucent", {})]
        for _ in range(1 if self._quick else 2):
            for name, subject, more in turns:
                seconds = min(self._subjects[subject].ask("steps", **how, **more))
                if seconds < row.seconds.get(name, float("inf")):
                    row.seconds[name] = seconds
                    row.batch = more.get("batch", row.batch) if name == self.auto else row.batch
        row.seconds["auto"] = row.seconds[self.auto]

    def evidence(self, *, size_px: int, filters: int, every: int, steps: int) -> dict[str, Any]:
        """Final activations in bf16 over those in fp32, both evaluated in fp32, over layers of a trained network."""
        network = models.skeleton("efficientnet_lite0")
        layers = list(graph.convolutions(network, graph.trace(network)))[::every]
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
    """Of each filter that is live in both; one whose activation is not above zero has no ratio."""
    halves = answers["bf16"].get(layer, {})
    for filter_, whole in answers["fp32"].get(layer, {}).items():
        if filter_ in halves and whole > 0:
            yield halves[filter_] / whole


def bank_ms(rows: list[Row], subject: str) -> float:
    """Milliseconds per tile and step of a whole bank, layers weighted by their filters."""
    return 1e3 * sum(row.filters * row.seconds[subject] for row in rows) / sum(row.filters for row in rows)


def print_rows(rows: list[Row], peak: float) -> None:
    """A line per layer."""
    print(f"\n{rows[0].model}: ms per tile and step; useful GFLOP/s of fp32 and their share of the peak")
    print(f"{'layer':34}{'filters':>8}{'auto':>9}{'fp32':>9}{'plain':>9}{'lucent':>9}{'batch':>6}{'GFLOP/s':>9}{'':>6}")
    for row in rows:
        times = "".join(f"{1e3 * row.seconds[name]:9.1f}" for name in ("auto", "fp32", "plain", "lucent"))
        print(f"{row.layer:34}{row.filters:8}{times}{row.batch:6}{row.gflops:9.0f}{row.gflops / peak:6.2f}")
    times = "".join(f"{bank_ms(rows, name):9.1f}" for name in ("auto", "fp32", "plain", "lucent"))
    print(f"{'bank':34}{sum(row.filters for row in rows):8}{times}")


def targets(rows: list[Row], peak: float, figures: dict[str, Any], auto: str) -> Iterator[tuple[str, str, str]]:
    """What was aimed at, the aim, and what came out."""
    for model in dict.fromkeys(row.model for row in rows):
        bank = [row for row in rows if row.model == model]
        gain = {name: bank_ms(bank, "plain") / bank_ms(bank, name) for name in ("auto", "fp32")}
        if model == "vgg16":
            yield f"{model} bank against plain, auto (here {auto})", ">= 3", f"{gain['auto']:.2f}"
            yield f"{model} bank against plain, fp32", ">= 1.4", f"{gain['fp32']:.2f}"
            lucent = bank_ms(bank, "lucent") / bank_ms(bank, "auto")
            yield f"{model} bank against lucent, auto (here {auto})", ">= 5", f"{lucent:.2f}"
            shares = [row.gflops / peak for row in bank[2:]]
            yield (
                f"{model} from block2 on: lowest, mean share of the peak",
                ">= 0.9",
                (f"{min(shares):.2f}, {mean(shares):.2f}"),
            )
        else:
            worst = min(bank, key=lambda row: row.seconds["plain"] / row.seconds["auto"])
            slowest = worst.seconds["plain"] / worst.seconds["auto"]
            yield f"{model} bank against plain, auto (here {auto})", ">= 1.5", f"{gain['auto']:.2f}"
            yield f"{model} slowest layer against plain", ">= 1", f"{slowest:.2f} ({worst.layer})"
    yield "a job through the farm over the engine alone, wall time", "<= 1.10", f"{figures['farm']['ratio']:.3f}"
    yield "CPU per tile around the engine", "<= 6 ms", f"{figures['interpreter']['ms']:.1f} ms"
    memory = figures["memory"]
    grown = f"{memory['growth']:+.1%} of {memory['after_100_mb']:.0f} MB"
    yield "peak memory of the renderer, 500 tiles over 100", "< +5 %", grown
    if "evidence" in figures:
        evidence = figures["evidence"]
        yield (
            "bf16 tiles' activation over fp32 tiles', mean over layers",
            ">= 0.99",
            (f"{evidence['mean']:.4f} (lowest {evidence['lowest']:.3f}, {evidence['tiles']} tiles)"),
        )


def machine(device: str) -> dict[str, str]:
    """What the figures are of."""
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
    parser.add_argument("--models", default=",".join(BANKS), help="which networks' banks")
    parser.add_argument("--batches", default="8,16", help="tiles per batch to choose the best of")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where the JSON goes")
    options = parser.parse_args(arguments)
    bench = Bench(quick=options.quick, batches=tuple(int(text) for text in options.batches.split(",")))
    here = machine(bench.ours.ask("device"))
    print("machine: " + "; ".join(here.values()))
    print("command: python -m tests.benchmarks.speed " + " ".join(arguments), flush=True)
    rows: list[Row] = []
    for model in options.models.split(","):
        size_px, every = BANKS[model]
        mine = rows_of(model, size_px, every * (3 if options.quick else 1))
        for row in mine:
            bench.measure(row, size_px)
        bench.measure_peaks()
        print_rows(mine, bench.peaks["fp32"])
        sys.stdout.flush()
        rows += mine
    figures: dict[str, Any] = {
        "farm": farm.job_against_engine(
            bench.ours, filters=32 if options.quick else 96, steps=8 if options.quick else 20
        ),
        "interpreter": farm.interpreter_ms(),
        "memory": farm.renderer_growth(),
        "evidence": bench.evidence(
            size_px=64, filters=2 if options.quick else 8, every=8 if options.quick else 1, steps=20
        ),
    }
    bench.close()
    peaks = ", ".join(f"{rate:.0f} GFLOP/s in {name}" for name, rate in bench.peaks.items())
    print(f"\npeak, the best single 3 x 3 convolution: {peaks}\n\n{'what':62}{'target':>10}  measured")
    table = list(targets(rows, bench.peaks["fp32"], figures, bench.auto))
    for what, target, measured in table:
        print(f"{what:62}{target:>10}  {measured}")
    print("\n" + CAVEATS)
    if bench.auto == "fp32":
        print(
            "This device has no bf16 in hardware: auto is fp32 here, and the targets for auto, which count on bf16, are"
        )
        print("not shown. The activations in bf16 are emulated, which costs time and changes nothing in them.")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    report = {"machine": here, "arguments": arguments, "peaks": bench.peaks, "auto": bench.auto, **figures}
    report |= {"rows": [asdict(row) for row in rows], "targets": table}
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nwritten to {options.output}")


if __name__ == "__main__":
    main(sys.argv[1:])
