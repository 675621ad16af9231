"""Counts one gradient step, and says what bounds it on a GPU: ``python -m tests.benchmarks.counts``.

The engine runs on torch's meta device, which computes shapes and nothing else. Counted are floating-point operations,
bytes that operators read and write (each operator's tensors once, as if no cache kept them), and operators that launch
a kernel. A step takes at least the longest of three times: operations over a card's peak, bytes over its bandwidth,
operators over the rate at which a host launches them. The last column says how many worker processes can feed the card
at that speed: each spends processor time around a tile. Takes a few minutes and no GPU.
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from workers.contract.recipe import Preprocess, Recipe
from workers.contract.records import Precision
from workers.networks import dead_units, registry, tracing
from workers.networks.extractor import Extractor
from workers.networks.fusion import FusedConvolutions
from workers.networks.layer_extractor import LayerExtractor
from workers.rendering import lagged_mask, methods
from workers.rendering.objectives import objective
from workers.rendering.rng import PictureRng

#: Network -> size of its pictures in pixels, and N: every N-th layer is counted, for itself and the next N - 1.
NETWORKS = {"vgg16": (150, 1), "inception_v3": (299, 6), "efficientnet_lite0": (224, 3)}

BATCHES = (32, 128, 512)

#: Seconds in which a host launches one operator of torch, with autograd and Python.
LAUNCH_S = 7e-6

#: Processor time of a worker process around the engine, in seconds per tile: messages, ledger, encoding, upload. It is
#: the smaller of the two values in this folder's README.
AROUND_S = 3.5e-3

#: Gradient steps of a tile by default.
STEPS = 64

#: Operators that only make another view of a tensor, apart from those that torch marks so.
_VIEWS = {"aten.detach.default", "aten.lift_fresh.default", "aten._unsafe_view.default", "aten.scalar_tensor.default"}

BOUNDS = ("compute", "memory", "launches")


@dataclass(frozen=True, kw_only=True)
class Card:
    """Published figures of a card: dense operations and bytes per second, in the precision that ``auto`` takes."""

    name: str
    precision: Precision
    flop_s: float
    bytes_s: float


#: NVIDIA's data sheets of the H100 SXM5 and of the T4, which has neither bf16 nor TF32.
CARDS = (
    Card(name="H100", precision="bf16", flop_s=989e12, bytes_s=3.35e12),
    Card(name="T4", precision="fp32", flop_s=8.1e12, bytes_s=320e9),
)


@dataclass(frozen=True, kw_only=True)
class Count:
    """One gradient step of a layer. Operations and bytes are of one tile, and grow with the batch."""

    layer: str
    #: number of filters it stands for
    filters: int
    flop: float
    bytes: float
    #: bytes that do not depend on the batch, such as weights
    fixed_bytes: float
    launches: int

    def seconds(self, card: Card, batch: int) -> dict[str, float]:
        """Least seconds per tile and step, by what bounds it."""
        return {
            "compute": self.flop / card.flop_s,
            "memory": (self.bytes + self.fixed_bytes / batch) / card.bytes_s,
            "launches": self.launches * LAUNCH_S / batch,
        }


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operators that launch a kernel, and the bytes of their tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not (func.is_view or str(func) in _VIEWS):
            tensors = {id(leaf): leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)}
            self.launches += 1
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        return result


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Context in which the engine runs on the meta device: no filter is dead, and no value is read."""
    with (
        mock.patch.object(methods, "_channels_last", lambda pictures: np.zeros((len(pictures), 8, 8, 3), np.float32)),
        mock.patch.object(lagged_mask, "_copied", lambda mask: lagged_mask._Known(mask, False, None)),
        mock.patch.object(dead_units, "_on_host", lambda mask: torch.zeros(mask.shape, dtype=torch.bool)),
    ):
        yield


def run_on_meta(extractor: Extractor, layer: str, size_px: int, batch: int, steps: int, **changes: Any) -> None:
    """Render a batch on the meta device with the recipe's defaults and ``changes``."""
    preprocess = Preprocess(name="model", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    recipe = Recipe(preprocess=preprocess, height_px=size_px, width_px=size_px, steps=steps, **changes)
    device = torch.device("meta")
    filters = [number % extractor.channels for number in range(batch)]
    rngs = [
        PictureRng(seed=0, restart=0, layer=layer, filter=filter_, variant=variant)
        for filter_ in filters
        for variant in range(recipe.diversity)
    ]
    with without_values():
        methods.render_batch(objective(extractor, filters, recipe, device), rngs, recipe, extractor, device)


def _totals(extractor: Extractor, layer: str, size_px: int, batch: int, steps: int) -> "np.ndarray[Any, Any]":
    """Operations, bytes and launches of a whole tile of ``steps`` steps."""
    with FlopCounterMode(display=False) as flop, _Counter() as counter:
        run_on_meta(extractor, layer, size_px, batch, steps)
    return np.array([flop.get_total_flops(), counter.bytes, counter.launches], float)


def count(extractor: Extractor, layer: str, size_px: int, filters: int) -> Count:
    """One gradient step of a layer: the second step of a tile, in batches of two and four."""
    run_on_meta(extractor, layer, size_px, batch=2, steps=1)  # an extractor computes the sizes of its maps once
    two, four = (
        _totals(extractor, layer, size_px, batch, 2) - _totals(extractor, layer, size_px, batch, 1) for batch in (2, 4)
    )
    flop, per_tile, _ = (four - two) / 2
    return Count(
        layer=layer, filters=filters, flop=flop, bytes=per_tile, fixed_bytes=two[1] - 2 * per_tile, launches=int(two[2])
    )


def counts(name: str, size_px: int, every: int, precision: Precision) -> list[Count]:
    """Every ``every``-th layer of a network."""
    model = registry.skeleton(name)
    graph = tracing.trace(model)
    fused = FusedConvolutions()
    layers = list(tracing.convolutions(model, graph))
    found = []
    for place in range(0, len(layers), every):
        with without_values():
            extractor = LayerExtractor(model, graph, layers[place], "activation", precision, fused)
        stands_for = layers[place : place + every]
        filters = sum(len(model.get_parameter(f"{layer}.weight")) for layer in stands_for)
        found.append(count(extractor, layers[place], size_px, filters))
    return found


def summary(found: list[Count], card: Card, batch: int) -> dict[str, Any]:
    """The bank of a network on a card: least ms per tile and step, and the share of it that each bound takes."""
    total, shares = 0.0, dict.fromkeys(BOUNDS, 0.0)
    for entry in found:
        seconds = entry.seconds(card, batch)
        bound = max(seconds, key=seconds.__getitem__)
        total += seconds[bound] * entry.filters
        shares[bound] += seconds[bound] * entry.filters
    tiles = sum(entry.filters for entry in found)
    return {
        "ms_per_tile_and_step": 1e3 * total / tiles,
        "tiles_per_s": tiles / total / STEPS,
        "processes": AROUND_S * tiles / total / STEPS,
        **{name: share / total for name, share in shares.items()},
    }


def main(arguments: list[str]) -> None:
    """Print the table; with ``--json``, each layer's counts instead."""
    rows: list[dict[str, Any]] = []
    print("| network | card | batch | least ms per tile and step | tiles/s | compute | memory | launches | processes |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, (size_px, every) in NETWORKS.items():
        for card in CARDS:
            found = counts(name, size_px, every, card.precision)
            for batch in BATCHES:
                row = summary(found, card, batch)
                shares = " | ".join([*(f"{row[bound]:.0%}" for bound in BOUNDS), f"{row['processes']:.2g}"])
                print(
                    f"| {name}, {size_px} px | {card.name}, {card.precision} | {batch} | "
                    f"{row['ms_per_tile_and_step']:.3g} | {row['tiles_per_s']:.3g} | {shares} |",
                    flush=True,
                )
            rows += [{"network": name, "card": card.name, **vars(entry)} for entry in found]
    if "--json" in arguments:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
