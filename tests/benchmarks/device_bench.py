"""Measures layers on one device, for ``python -m tests.benchmarks.gpu``.

The subjects are those of ``subjects.py``: ours, a plain implementation of one picture at a time, and Lucent's way, the
whole network with weight gradients.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import torch

from tests.benchmarks.subjects import Networks, peak, step_of
from workers.contract.recipe import Preprocess, Recipe
from workers.networks import devices
from workers.networks.layer_extractor import LayerExtractor
from workers.rendering.render import render_layer

BATCHES = (32, 128, 512)

#: Seconds for which a subject is measured, after a warm-up.
_MEASURED_S = 0.25

#: Sides of the square matrices whose product gives the peak.
_MATRICES = (2048, 4096, 8192)

#: Steps of the tiles that are rendered whole, and of tiles by default.
_TILE_STEPS, _STEPS = 8, 64


@dataclass
class Row:
    """One layer in one precision. Times are in ms per tile and gradient step."""

    network: str
    layer: str
    precision: str
    gflop: float
    #: batch size -> ms; batches that did not fit are absent
    ms: dict[int, float] = field(default_factory=dict)
    plain_ms: float | None = None
    lucent_ms: float | None = None
    busy: float | None = None
    peak_mib: float | None = None
    tiles_per_s: float | None = None

    @property
    def batch(self) -> int:
        """The fastest batch size."""
        return min(self.ms, key=self.ms.__getitem__)

    @property
    def tflop_s(self) -> float:
        """Useful operations per second, in 10^12."""
        return self.gflop / self.ms[self.batch]


class Bench:
    """One run on one device."""

    def __init__(self, device: torch.device, *, tiny: bool) -> None:
        self._device, self._tiny = device, tiny
        self._networks = {name: Networks(name) for name in ("ours", "plain", "lucent")}
        for networks in self._networks.values():
            networks.device = device
        self.batches = (1, 2) if tiny else BATCHES
        self.seconds = 0.01 if tiny else _MEASURED_S

    def synchronize(self) -> None:
        """Wait for the device."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def peaks(self, precision: str) -> dict[str, float]:
        """TFLOP/s of the best convolution, forward and backward, and of the best matrix product."""
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        products = []
        for side in (64,) if self._tiny else _MATRICES:
            left, right = (torch.randn(side, side, device=self._device, dtype=dtype) for _ in range(2))
            products.append(2e-12 * side**3 / self._seconds(functools.partial(torch.matmul, left, right)))
        quick = {"shapes": [[4, 8]], "batches": [1], "seconds": 0.01}
        ask = {"precision": precision, **(quick if self._tiny else {"batches": [32, 128], "seconds": 0.1})}
        return {"convolution": max(peak(self._networks["ours"], ask)) / 1e3, "product": max(products)}

    def _seconds(self, work: Callable[[], object]) -> float:
        """Median seconds of one call."""
        work()
        self.synchronize()
        taken: list[float] = []
        while len(taken) < 3 or sum(taken) < self.seconds:
            began = time.perf_counter()
            work()
            self.synchronize()
            taken.append(time.perf_counter() - began)
        return median(taken)

    def step_ms(self, name: str, row: Row, size_px: int, batch: int) -> float:
        """ms per tile of a gradient step of a subject, as in ``subjects.py``."""
        return 1e3 * self._seconds(self._step(name, row, size_px, batch)) / batch

    def _step(self, name: str, row: Row, size_px: int, batch: int) -> Callable[[], None]:
        precision = _network_precision(row.precision)
        ask = {"model": row.network, "layer": row.layer, "size": size_px, "batch": batch, "precision": precision}
        return step_of(name, self._networks[name], ask)

    def measure(self, row: Row, size_px: int) -> None:
        """Fill in a row."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        for batch in self.batches:
            try:
                row.ms[batch] = self.step_ms("ours", row, size_px, batch)
            except RuntimeError as error:
                if not devices.is_full(error):
                    raise
                break
        if self._device.type == "cuda":
            row.peak_mib = torch.cuda.max_memory_allocated(self._device) / 2**20
            row.busy = self._busy(self._step("ours", row, size_px, row.batch))
        for name in ("plain", "lucent"):
            setattr(row, f"{name}_ms", self.step_ms(name, row, size_px, 1))
        row.tiles_per_s = self._tiles_per_s(row, size_px)

    def _busy(self, step: Callable[[], object]) -> float:
        """Share of the time of a few steps in which a kernel runs on the GPU."""
        step()
        self.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            began = time.perf_counter()
            for _ in range(3):
                step()
            self.synchronize()
            seconds = time.perf_counter() - began
        return float(1e-6 * sum(event.self_device_time_total for event in profiler.key_averages()) / seconds)

    def _tiles_per_s(self, row: Row, size_px: int) -> float:
        """Tiles of the default recipe rendered a second, start images and pixels included."""
        extractor, recipe = self.extractor(row.network, row.layer, row.precision), _recipe(size_px, row.precision)
        filters = [number % extractor.channels for number in range(row.batch)]
        steps = 1 if self._tiny else _TILE_STEPS
        one, more = (
            self._seconds(functools.partial(render_layer, extractor, row.layer, filters, changed, self._device))
            for changed in (recipe.model_copy(update={"steps": count}) for count in (steps, 2 * steps))
        )
        around = max(0.0, 2 * one - more)
        return len(filters) / (around + _STEPS * max(1e-9, more - one) / steps)

    def extractor(self, network: str, layer: str, precision: str) -> LayerExtractor:
        """The engine's network up to a layer."""
        model, graph, fused = self._networks["ours"].get(network)
        return LayerExtractor(model, graph, layer, "activation", _network_precision(precision), fused)

    def batch_against_alone(self, network: str, layer: str, size_px: int, batch: int) -> dict[str, float]:
        """How far a tile of a large batch is from the same tile rendered alone, in activation and in grey levels."""
        found = {}
        for precision in ("bf16", "fp32"):
            extractor, recipe = self.extractor(network, layer, precision), _recipe(size_px, precision)
            filters = [number % extractor.channels for number in range(batch)]
            with tf32(precision):
                together = render_layer(extractor, layer, filters, recipe, self._device)[1]
                (alone,) = render_layer(extractor, layer, filters[1:2], recipe, self._device)
            difference = np.abs(together.pixels.astype(float) - alone.pixels.astype(float)).mean()
            found[f"{precision}, activation in the batch"] = together.activation
            found[f"{precision}, activation alone"] = alone.activation
            found[f"{precision}, mean difference in grey levels"] = float(difference)
        return found


@contextlib.contextmanager
def tf32(precision: str) -> Iterator[None]:
    """Context in which float32 convolutions and matrix products use TF32, or not."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def _network_precision(precision: str) -> Any:
    return "bf16" if precision == "bf16" else "fp32"


def _recipe(size_px: int, precision: str) -> Recipe:
    preprocess = Preprocess(name="model", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return Recipe(
        preprocess=preprocess, height_px=size_px, width_px=size_px, steps=_TILE_STEPS, rescue=False,
        precision=_network_precision(precision),
    )  # fmt: skip
