"""Makes the frozen job from options, and computes what it costs."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from producer.planning.classes import check_classifier, class_names, numbered, with_class_count
from producer.planning.layers import KINDS, LayerPlan, accepted_sizes, input_channels, layers, select
from producer.planning.network_size import in_network_size, size_notes, with_class_defaults
from producer.planning.options import Options
from producer.planning.recipe_builder import chosen_method, chosen_size, make_grid, make_recipe, named_preprocess
from workers.contract.errors import BadOption
from workers.contract.filter_ranges import absent, format_filters, parse_filters
from workers.contract.geometry import layer_stride, seen_px, wider_px
from workers.contract.job import Grid, Job, Layer, Weights
from workers.contract.network import split_address
from workers.contract.recipe import Preprocess, Recipe
from workers.contract.tile_png import MAX_TILE_PIXELS


def make_job(options: Options) -> tuple[Job, Path | None]:
    """The frozen job, and the local path of its checkpoint if it has one.

    Raises UnknownModel, UnknownLayer, BadFilters, BadOption, WeightsMissing and WeightsUnreadable.
    """
    options = with_class_defaults(in_network_size(options))
    size_px = chosen_size(options)
    chosen = select(layers(options.model, size_px, KINDS), options.layers, options.model)
    not_computed = next((plan.name for plan in chosen if plan.output_px is None), None)
    if not_computed:
        sizes = accepted_sizes(options.model, not_computed)
        raise BadOption(
            f"{options.model} does not compute {not_computed} for {size_px[0]}x{size_px[1]} px pictures; "
            f"use another --size, such as {', '.join(map(str, sizes)) or '224'}"
        )
    from workers.networks import weights as loading

    weights, checkpoint = loading.choose(options.model, options.weights)
    recipe = make_recipe(options, _preprocess(options, weights), input_channels(options.model))
    _check_tile(recipe)
    for plan in chosen:
        _check_layer(recipe, plan, options.model)
    check_classifier(chosen, options.model, weights)
    chosen = with_class_count(chosen, options.model, weights, checkpoint)
    names = class_names(chosen, recipe, options, weights)
    widest = max(chosen, key=lambda plan: _tiles(recipe, plan))
    named = parse_filters(numbered(options.filters, chosen, names), _tiles(recipe, widest), widest.name)
    frozen = tuple(_layer(recipe, plan, named, names) for plan in chosen)
    if weights.layout == "torch" and not options.model.startswith("vgg"):
        # Part of a job's content: with Keras's names, jobs of convolutions of earlier versions would have other ids.
        frozen = tuple(layer.model_copy(update={"aliases": ()}) if layer.kind == "conv" else layer for layer in frozen)
    grid = make_grid(options)
    _check_grid(grid, frozen)
    packages = ("filterfarm", "torch", "torchvision", "timm", "numpy", "pillow")
    model, network = split_address(options.model)
    job = Job(
        model=model,
        network=network,
        weights=weights,
        layers=frozen,
        recipe=recipe,
        grid=grid,
        versions={package: version(package) for package in packages},
    )
    return job, checkpoint


def _preprocess(options: Options, weights: Weights) -> Preprocess:
    """The chosen preprocessing; for pictures that are not RGB, the guess is 0..1."""
    from workers.networks import weights as loading

    choice = options.recipe.get("preprocess", "auto")
    if choice == "auto" and input_channels(options.model) != 3:
        return Preprocess(name="model", mean=(0.0,), std=(1.0,))
    return named_preprocess(choice) or loading.preprocess(choice, options.model, weights, chosen_method(options))


def check_weights(job: Job, checkpoint: Path | None, options: Options) -> list[str]:
    """Fit a job's own checkpoint to its network; returns lines on what was chosen, removed, ignored or guessed.

    Raises WeightsUnreadable and WeightsDoNotFit.
    """
    if checkpoint is None or job.address.startswith("pt2:"):
        return []
    from workers.networks import weights

    classifier = any(layer.kind != "conv" for layer in job.layers)
    lines = list(weights.check(job.address, job.weights, checkpoint, classifier=classifier))
    recognised = job.weights.layout == "torch" and job.recipe.preprocess.name == "raw"
    if options.recipe.get("preprocess", "auto") == "auto" and not recognised:
        trained = "Keras's network" if job.weights.layout == "keras" else "the published weights"
        lines.append(
            f"preprocessing {_input(job.recipe.preprocess)} is a guess, from {trained}; --preprocess changes it"
        )
    return [f"weights {job.weights.name}: {line}" for line in lines]


def _input(preprocess: Preprocess) -> str:
    """A preprocessing for people, such as "model (mean 0.5,0.5,0.5, std 0.5,0.5,0.5)"."""
    if preprocess.name != "model":
        return preprocess.name
    mean, std = (",".join(f"{value:g}" for value in values) for values in (preprocess.mean, preprocess.std))
    return f"model (mean {mean}, std {std})"


def notes(options: Options, job: Job, checkpoint: Path | None) -> list[str]:
    """Lines for people: a size that is not the chosen one, and those of ``check_weights``, whose errors it raises."""
    lines = [*size_notes(options), *check_weights(job, checkpoint, options)]
    has_its_own = job.weights.source == "factory" or job.address.startswith("pt2:")
    if has_its_own and options.recipe.get("preprocess", "auto") == "auto":
        lines.append(f"preprocessing {_input(job.recipe.preprocess)} is a guess; --preprocess changes it")
    return lines


def as_rendered(job: Job, model: str = "") -> list[LayerPlan]:
    """The plans of a job's layers, with the cost of a step under the job's recipe.

    Some objectives need all filters of the layer, and shallow layers have an input larger than the tile. ``model``: the
    network's address on this machine, which has the path of a file.
    """
    recipe, size_px = job.recipe, (job.recipe.height_px, job.recipe.width_px)
    whole = recipe.objective in ("deepdream", "direction") or recipe.diversity > 1
    at = functools.cache(lambda px: {plan.name: plan for plan in layers(model or job.address, px, KINDS)})
    rendered = []
    for plan in (at(size_px)[layer.name] for layer in job.layers):
        seen = plan
        if recipe.method != "notebook" and plan.output_px is not None:
            stride = layer_stride(size_px, plan.output_px, at(wider_px(size_px))[plan.name].output_px)
            more = at(seen_px(size_px, stride, pinned=recipe.objective == "neuron"))[plan.name]
            # For networks that take few sizes, the input is the tile alone.
            seen = more if more.output_px is not None else plan
        rendered.append(replace(plan, step_gflop=seen.whole_step_gflop if whole else seen.step_gflop))
    return rendered


def _tiles(recipe: Recipe, plan: LayerPlan) -> int:
    """Number of tiles that a layer can have: one per filter or direction, or one of the whole layer."""
    if recipe.directions is not None:
        return recipe.directions.count
    return 1 if recipe.objective == "deepdream" else plan.channels


def _layer(recipe: Recipe, plan: LayerPlan, named: Sequence[int], names: tuple[str, ...]) -> Layer:
    """The layer with those of the named filters that exist in it: of ``0-63``, a layer of 16 filters has 16.

    Raises BadFilters if it has none of them.
    """
    tiles = _tiles(recipe, plan)
    chosen = [filter_ for filter_ in named if filter_ < tiles]
    if not chosen:
        raise absent(format_filters(named)[:80], tiles, plan.name)
    return Layer(
        name=plan.name,
        aliases=plan.aliases,
        kind=plan.kind,
        names=names if plan.kind == "logits" else (),
        channels=tiles,
        filters=format_filters(chosen),
    )


def _check_tile(recipe: Recipe) -> None:
    """Raise BadOption if a tile has more pixels than Pillow takes for harmless: the collector could not read it."""
    height, width = recipe.tile_px
    if height * width > MAX_TILE_PIXELS:
        raise BadOption(
            f"a tile would have {height}x{width} px, and readers take {MAX_TILE_PIXELS:,} pixels at most; "
            "choose a smaller --size or --diversity"
        )


def _check_layer(recipe: Recipe, plan: LayerPlan, model: str) -> None:
    """Raise BadOption if the layer has no such direction or neuron, or no map for the objective."""
    if not plan.has_map and (recipe.objective == "neuron" or recipe.diversity > 1):
        wanted = f"--diversity {recipe.diversity}" if recipe.diversity > 1 else "--objective neuron"
        raise BadOption(
            f"{wanted} needs the places of a map, and the units of {plan.name} have one value for a picture; leave it "
            "out, or choose --layers with a map"
        )
    if recipe.directions is not None and recipe.directions.channels != plan.channels:
        raise BadOption(
            f"--directions has vectors of {recipe.directions.channels} numbers, and {plan.name} has {plan.channels} "
            f"channels; choose --layers of as many ('filterfarm layers {model}' lists them)"
        )
    if recipe.neuron is not None and plan.output_px is not None:
        height, width = plan.output_px
        if recipe.neuron[0] >= height or recipe.neuron[1] >= width:
            raise BadOption(
                f"--neuron {recipe.neuron[0]},{recipe.neuron[1]} is outside of {plan.name}'s map of {height}x{width}; "
                "count rows and columns from 0"
            )


def _check_grid(grid: Grid, frozen: tuple[Layer, ...]) -> None:
    if grid.rows is None or grid.columns is None:
        return
    room = grid.rows * grid.columns
    for layer in frozen:
        if not grid.holds(len(layer.selected)):
            raise BadOption(
                f"a grid of {grid.rows}x{grid.columns} holds {room} tiles, and {layer.name} has {len(layer.selected)}; "
                f"use --grid auto or --filters 0-{room - 1}"
            )
