"""Which filters of a whole network are dead: ``python -m tests.benchmarks.dead``. Takes an hour on two cores.

Renders every filter of every layer of the trained EfficientNet-Lite0, small and with few steps, by the function that a
worker calls. Filters that are dead then are rendered again with all steps and the full size of the default recipe. In
small pictures nothing excites some filters: on a map of 2 x 2, a position meets 4 of the 25 weights of a 5 x 5 kernel.
The dead filters should be exactly those whose batch-norm passes nothing.
"""

import argparse

import torch

from producer.planning import job_builder as planning
from producer.planning.options import Options
from workers.contract.recipe import Recipe
from workers.networks import process_tuning, tracing, weights
from workers.networks.fusion import FusedConvolutions
from workers.networks.layer_extractor import LayerExtractor
from workers.rendering.render import render_layer


def main() -> None:
    """Print a line per layer, the sums, and each filter that is either dead or inert but not both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default="all", help="comma-separated names and globs")
    parser.add_argument("--size", type=int, default=64, help="size of the first rendering in pixels")
    parser.add_argument("--steps", type=int, default=8, help="steps of the first rendering")
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args()
    process_tuning.tune()
    options = Options.make(model="efficientnet_lite0", method="fourier", layers=arguments.layers, filters="all")
    job, checkpoint = planning.make_job(options)
    model = weights.load(job.model, job.weights, checkpoint, seed=0).to(memory_format=torch.channels_last)
    trace, kernels = tracing.trace(model), FusedConvolutions()
    small = {"height_px": arguments.size, "width_px": arguments.size, "steps": arguments.steps}
    short = job.recipe.model_copy(update=small)
    print(f"{job.model}: {job.recipe.described}, after a first rendering: {short.described}", flush=True)
    filters = inert = dead = 0
    wrong: list[str] = []
    for layer in job.layers:
        tap = LayerExtractor(model, trace, layer.name, job.recipe.tap, "fp32", kernels)
        names = set(range(layer.channels))
        again = _dead(tap, layer.name, names, short, arguments.batch)
        found = _dead(tap, layer.name, again, job.recipe, arguments.batch)
        expected = {filter_ for filter_ in names if tap.inert[filter_]}
        wrong += [f"{layer.name}/{filter_}" for filter_ in sorted(found ^ expected)]
        filters, inert, dead = filters + len(names), inert + len(expected), dead + len(found)
        print(f"{layer.name:22} {len(names):5} filters {len(expected):4} inert {len(found):4} dead", flush=True)
    print(f"all: {filters} filters, {inert} inert, {dead} dead; dead xor inert: {', '.join(wrong) or 'none'}")


def _dead(tap: LayerExtractor, layer: str, filters: set[int], recipe: Recipe, batch: int) -> set[int]:
    """Those of ``filters`` that are dead when rendered with ``recipe``."""
    ordered = sorted(filters)
    tiles = [
        tile
        for first in range(0, len(ordered), batch)
        for tile in render_layer(tap, layer, ordered[first : first + batch], recipe, torch.device("cpu"))
    ]
    return {tile.filter for tile in tiles if tile.status == "dead"}


if __name__ == "__main__":
    main()
