"""Tables of the speed benchmark's measurements."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import mean, median
from typing import Any

CAVEATS = """\
Times are the best of several steps; the subjects alternate. They hold for this machine at this time only.
Networks have random parameters, which take the same time as trained ones. GFLOP/s count the operations of a direct
convolution, so that Winograd's algorithm may exceed the "peak". The peak is the best of torch's own 3 x 3 convolutions,
each measured for half a second: either right before and after the layer, or of the whole run. On a shared machine the
speed may vary by half within minutes.
A bank is every filter of every layer, so layers are weighted by their filters. With --quick, each layer shown
represents those up to the next one shown. VGG16 is measured twice, the others once and for a third of the time.
"plain" is one picture at a time in NCHW, cut at the layer, parameters frozen, allocator untuned. "lucent" is the whole
network with weight gradients. Neither is Keras or Lucent itself."""


@dataclass(kw_only=True)
class Row:
    """Measurements of one layer; seconds are per tile and step."""

    model: str
    layer: str
    #: number of filters that it represents
    filters: int
    step_gflop: float
    #: subject -> the best seconds
    seconds: dict[str, float] = field(default_factory=dict)
    #: the fastest batch size of ours
    batch: int = 0
    #: precision -> GFLOP/s of the best single 3 x 3 convolution right before and after; empty if not measured
    peaks: dict[str, float] = field(default_factory=dict)

    def gflops(self, precision: str) -> float:
        """Useful GFLOP/s of ours."""
        return self.step_gflop / self.seconds[precision]

    def share(self, precision: str) -> float:
        """``gflops`` over the peak right before and after."""
        return self.gflops(precision) / self.peaks[precision]


def bank_ms(rows: list[Row], subject: str) -> float:
    """Milliseconds per tile and step of a whole bank, layers weighted by their filters."""
    return 1e3 * sum(row.filters * row.seconds[subject] for row in rows) / sum(row.filters for row in rows)


def print_rows(rows: list[Row]) -> None:
    """Print a line per layer, with ``lucent`` and the peaks if they were measured."""
    closely = bool(rows[0].peaks)
    subjects = ["auto", "fp32", "plain", *(["lucent"] if closely else [])]
    precisions = list(rows[0].peaks) or ["fp32"]
    what = ", the peak at the same time, and their share of it" if closely else ""
    print(f"\n{rows[0].model}: ms per tile and step; useful GFLOP/s of {' and '.join(precisions)}{what}")
    head = f"{'layer':34}{'filters':>8}" + "".join(f"{name:>9}" for name in subjects)
    rates = f"{'GFLOP/s':>9}" + (f"{'peak':>6}{'share':>6}" if closely else "")
    print(f"{head}{'batch':>6}" + rates * len(precisions))
    for row in rows:
        times = "".join(f"{1e3 * row.seconds[name]:9.1f}" for name in subjects)
        rates = "".join(
            f"{row.gflops(name):9.0f}" + (f"{row.peaks[name]:6.0f}{row.share(name):6.2f}" if closely else "")
            for name in precisions
        )
        print(f"{row.layer:34}{row.filters:8}{times}{row.batch:6}{rates}")
    times = "".join(f"{bank_ms(rows, name):9.1f}" for name in subjects)
    print(f"{'bank':34}{sum(row.filters for row in rows):8}{times}")


def targets(
    rows: list[Row], peaks: dict[str, float], figures: dict[str, Any], auto: str
) -> Iterator[tuple[str, str, str]]:
    """(quantity, target, measurement) of each target; ``peaks`` are the run's best, by precision."""
    for model in dict.fromkeys(row.model for row in rows):
        bank = [row for row in rows if row.model == model]
        gain = {name: bank_ms(bank, "plain") / bank_ms(bank, name) for name in ("auto", "fp32")}
        if model == "vgg16":
            yield f"{model} bank against plain, auto (here {auto})", ">= 3", f"{gain['auto']:.2f}"
            yield f"{model} bank against plain, fp32", ">= 1.4", f"{gain['fp32']:.2f}"
            lucent = bank_ms(bank, "lucent") / bank_ms(bank, "auto")
            yield f"{model} bank against lucent, auto (here {auto})", ">= 5", f"{lucent:.2f}"
            what = f"{model} from block2 on: lowest, mean share of the peak"
            for precision, best in peaks.items():
                beside = [row.share(precision) for row in bank[2:]]
                of_all = [row.gflops(precision) / best for row in bank[2:]]
                for whose, found in (("beside", beside), ("of all", of_all)):
                    yield f"{what} {whose} in {precision}", ">= 0.9", f"{min(found):.2f}, {mean(found):.2f}"
        else:
            worst = min(bank, key=lambda row: row.seconds["plain"] / row.seconds["auto"])
            slowest = worst.seconds["plain"] / worst.seconds["auto"]
            yield f"{model} bank against plain, auto (here {auto})", ">= 1.5", f"{gain['auto']:.2f}"
            yield f"{model} slowest layer against plain", ">= 1", f"{slowest:.2f} ({worst.layer})"
    ratios = figures["farm"]["ratios"]
    in_all = f"{median(ratios):.3f} (of {', '.join(f'{ratio:.3f}' for ratio in ratios)})"
    yield "a job through the farm over the engine alone, median", "<= 1.10", in_all
    yield "CPU per tile around the engine", "<= 6 ms", f"{figures['interpreter']['ms']:.1f} ms"
    for model, memory in figures["memory"].items():
        grown = f"{memory['growth']:+.1%} of {memory['after_100_mb']:.0f} MB"
        yield f"peak memory of {model}'s renderer, 500 tiles over 100", "< +5 %", grown
    if "evidence" in figures:
        evidence = figures["evidence"]
        yield (
            "bf16 tiles' activation over fp32 tiles', mean over layers",
            ">= 0.99",
            (f"{evidence['mean']:.4f} (lowest {evidence['lowest']:.3f}, {evidence['tiles']} tiles)"),
        )
