"""What the speed benchmark found, as tables."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import mean, median
from typing import Any

CAVEATS = """\
Times are the best of several steps, taken in turn by the subjects, and still those of this machine at this hour.
Networks have random parameters, which cost the same. GFLOP/s count what a direct convolution needs; where a layer is
computed with fewer multiplications (Winograd), it may come out above the "peak", which is the best of the library's
own 3 x 3 convolutions, each over half a second: of those measured right before and after the layer, and of all in the
run, for a shared machine may be half as fast again in one minute as in another.
A bank is every filter of every layer, so a layer counts by its filters. Where --quick leaves layers out, each that is
shown stands for those up to the next. VGG16 is measured twice, the others once and for a third of the time.
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
    #: precision -> GFLOP/s of the best single 3 x 3 convolution right before and after; none where it was not measured
    peaks: dict[str, float] = field(default_factory=dict)

    def gflops(self, precision: str) -> float:
        """Useful GFLOP/s of ours."""
        return self.step_gflop / self.seconds[precision]

    def share(self, precision: str) -> float:
        """Of the peak beside it."""
        return self.gflops(precision) / self.peaks[precision]


def bank_ms(rows: list[Row], subject: str) -> float:
    """Milliseconds per tile and step of a whole bank, layers weighted by their filters."""
    return 1e3 * sum(row.filters * row.seconds[subject] for row in rows) / sum(row.filters for row in rows)


def print_rows(rows: list[Row]) -> None:
    """A line per layer; Lucent's way and the peaks where they were measured."""
    closely = bool(rows[0].peaks)
    subjects = ["auto", "fp32", "plain", *(["lucent"] if closely else [])]
    precisions = list(rows[0].peaks) or ["fp32"]
    what = ", the peak beside them, and their share of it" if closely else ""
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
    """What was aimed at, the aim, and what came out; ``peaks`` are the run's best, by precision."""
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
