"""Quality of a job's tiles: the network is run on each stored tile again.

Filters whose batch-norm has zero gain, or a constant input, are reported as dead and left out of all other figures: no
image excites them. All other filters count, including those whose tile stayed grey. For a layer of logits, the network
and others read the class of each tile.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from producer.jobs.inventory import Reader
from producer.quality.class_reader import ClassReader
from producer.quality.stored_tiles import StoredResponses, measure_responses
from workers.contract import keys
from workers.contract.errors import BadNetwork, BadOption, CorruptTile, JobIncomplete, WeightsMissing
from workers.contract.job import Job, Layer
from workers.contract.settings import Settings

if TYPE_CHECKING:
    from workers.rendering.metrics import LayerProbe


@dataclass(frozen=True, kw_only=True)
class TileQuality:
    """Measures of one stored tile. Activations are spatial means of the filter's map, in the units of the tap."""

    layer: str
    filter: int
    status: str
    #: no image excites the filter: its batch-norm has zero gain, or a constant input
    inert: bool
    start_activation: float
    activation: float
    #: no other tile of the layer excites the filter more (metrics.identified); None if there is no other
    identified: bool | None
    #: activation over the largest by another tile, at least 0, infinite if no other excites the filter; None likewise
    selectivity: float | None
    #: share of the tile's power in high frequencies, 0..1
    high_frequency: float
    #: similarity to the other job's tile of the same filter, -1..1; matched: none of its other tiles is more similar
    similarity: float | None = None
    matched: bool | None = None
    #: of a class's tile: how many other classes have at least its logit, 0 if the network puts the tile into its class
    rank: int | None = None
    #: of a class's tile: other network -> the same in that network
    read_by: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LayerQuality:
    """Measures of one layer; ``planned`` is its number of tiles in the job."""

    layer: str
    planned: int
    tiles: tuple[TileQuality, ...]
    #: filter of an unreadable tile -> reason
    broken: dict[int, str]


def measure(
    job: Job,
    reader: Reader,
    *,
    device: str,
    against: Job | None = None,
    read_by: Sequence[str] = (),
    done: Callable[[str], None] = lambda _: None,
) -> list[LayerQuality]:
    """Measure every layer of a job, and its similarity to ``against``, a job of the same network.

    ``read_by`` names other networks, which read the classes of a job of logits. ``done`` is called with the name of
    each measured layer. Raises BadOption if a job maximises anything but single filters, the two cannot be compared or
    the others cannot read its classes, and the errors of loading weights and of the object store.
    """
    for one in filter(None, (job, against)):
        _check_measurable(one)
        _check_channels(one)
    if against is not None:
        _check_comparable(job, against)
    import torch

    from workers.networks import process_tuning, tracing, weights
    from workers.rendering.metrics import LayerProbe

    process_tuning.tune()
    target = torch.device(device)
    others = _class_readers(job, read_by, device)
    with _checkpoint(job, reader) as path:
        model = weights.load(job.address, job.weights, path, seed=job.recipe.seed).to(target)
    trace = tracing.trace(model, (job.recipe.height_px, job.recipe.width_px))
    result = []
    for layer in job.layers:
        probe = LayerProbe(model, trace, layer.name, job.recipe, target)
        result.append(_layer(job, layer, probe, reader, against, others if layer.kind == "logits" else []))
        done(layer.name)
    return result


def require_allowed(job: Job, settings: Settings) -> None:
    """Raise BadNetwork if the job has a network of its own whose import the settings do not permit."""
    if job.network is not None and job.network.source == "factory" and not settings.allows(job.network.name):
        raise BadNetwork(
            f"{job.id} has a network of its own, {job.network.name}; set FILTERFARM_ALLOW_FACTORIES="
            f"{job.network.name.partition(':')[0]} to import it"
        )


def require_whole(job: Job, layers: Sequence[LayerQuality]) -> None:
    """Raise CorruptTile if tiles are unreadable, JobIncomplete if tiles are missing."""
    planned, measured = len(job.tiles), sum(len(layer.tiles) for layer in layers)
    broken = {f"{layer.layer}/{filter_}": why for layer in layers for filter_, why in layer.broken.items()}
    if broken:
        tile, why = next(iter(broken.items()))
        raise CorruptTile(
            f"{len(broken)} of {planned} tiles of {job.id} cannot be read, such as {tile}: {why}; delete them and "
            f"run or submit the job again; the figures are those of {measured} tiles"
        )
    if measured < planned:
        raise JobIncomplete(
            f"{planned - measured} of {planned} tiles of {job.id} are missing; run or submit it again to resume; "
            f"the figures are those of {measured} tiles"
        )


def _layer(
    job: Job, layer: Layer, probe: "LayerProbe", reader: Reader, against: Job | None, others: Sequence[ClassReader]
) -> LayerQuality:
    from workers.rendering import metrics

    stored = measure_responses(job, layer, probe, reader, others)
    if not stored.filters:
        return LayerQuality(layer=layer.name, planned=len(layer.selected), tiles=(), broken=stored.broken)
    responses = np.stack(stored.responses)
    own = responses[:, stored.filters]
    alone = len(own) == 1
    identified = [None] if alone else metrics.identified(own).tolist()
    selectivity = [None] if alone else metrics.selectivity(own).tolist()
    similar = _similarities(stored, against, layer, probe, reader)
    classes = layer.kind == "logits"
    ranks = metrics.ranks(responses, np.array(stored.filters)).tolist() if classes else [None] * len(own)
    tiles = tuple(
        TileQuality(
            layer=layer.name,
            filter=filter_,
            status=stored.statuses[place],
            inert=bool(probe.inert[filter_]),
            start_activation=stored.starts[place],
            activation=float(own[place, place]),
            identified=identified[place],
            selectivity=selectivity[place],
            high_frequency=stored.high_frequency[place],
            similarity=similar[filter_][0] if filter_ in similar else None,
            matched=similar[filter_][1] if filter_ in similar else None,
            rank=ranks[place],
            read_by={name: theirs[place] for name, theirs in stored.ranks.items()},
        )
        for place, filter_ in enumerate(stored.filters)
    )
    return LayerQuality(layer=layer.name, planned=len(layer.selected), tiles=tiles, broken=stored.broken)


def _similarities(
    stored: StoredResponses, against: Job | None, layer: Layer, probe: "LayerProbe", reader: Reader
) -> dict[int, tuple[float, bool]]:
    """Filter -> (similarity to the other job's tile of it, whether none of its tiles is more similar).

    Only filters that both jobs have; empty if fewer than 2, because similarity is relative to the tiles' mean.
    """
    from workers.rendering import metrics

    other = against.layer(layer.name) if against else None
    if against is None or other is None:
        return {}
    theirs = measure_responses(against, other, probe, reader)
    common = [filter_ for filter_ in stored.filters if filter_ in set(theirs.filters)]
    if len(common) < 2:
        return {}
    cosines = metrics.similarity(
        np.stack([stored.responses[stored.filters.index(filter_)] for filter_ in common]),
        np.stack([theirs.responses[theirs.filters.index(filter_)] for filter_ in common]),
    )
    matched = metrics.identified(cosines.T)
    return {filter_: (float(cosines[place, place]), bool(matched[place])) for place, filter_ in enumerate(common)}


def _class_readers(job: Job, names: Sequence[str], device: str) -> list[ClassReader]:
    layer = next((layer for layer in job.layers if layer.kind == "logits"), None)
    if names and layer is None:
        raise BadOption(
            f"--read-by needs pictures of classes, and {job.id} has no layer of logits; render one with --layers logits"
        )
    return [ClassReader(name, classes=layer.channels, device=device) for name in dict.fromkeys(names) if layer]


def _check_measurable(job: Job) -> None:
    recipe = job.recipe
    if recipe.objective != "filter" or recipe.negative or recipe.diversity > 1:
        raise BadOption(
            f"{job.id} cannot be measured: quality needs one tile per filter that maximises it, and the "
            f"job has {'--negative' if recipe.negative else f'--objective {recipe.objective}'}"
            f"{f' --diversity {recipe.diversity}' if recipe.diversity > 1 else ''}"
        )


def _check_channels(job: Job) -> None:
    """Raise BadOption if the stored pictures are not what the network reads."""
    if job.recipe.channels not in (1, 3):
        raise BadOption(
            f"{job.id} cannot be measured: its pictures have {job.recipe.channels} channels, of which three are stored"
        )


def _check_comparable(job: Job, against: Job) -> None:
    def network(one: Job) -> tuple[object, ...]:
        drawn = one.recipe.seed if one.weights.source == "none" else None
        return one.address, one.weights, drawn, one.recipe.tap, one.recipe.preprocess

    if job.id == against.id:
        raise BadOption(f"--against {against.id} is the job itself; name a job with another seed or recipe")
    if network(job) != network(against):
        raise BadOption(
            f"--against {against.id} has another network or tap than {job.id}; compare jobs of the same model, "
            "weights, preprocessing and tap (random weights change with the seed)"
        )
    if not {layer.name for layer in job.layers} & {layer.name for layer in against.layers}:
        raise BadOption(f"--against {against.id} has no layer in common with {job.id}")


@contextlib.contextmanager
def _checkpoint(job: Job, reader: Reader) -> Iterator[Path | None]:
    """A temporary copy of the job's checkpoint; None if its weights are not a file."""
    if job.weights.source != "file" or job.weights.sha256 is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"weights{Path(job.weights.name).suffix}")
        if not reader.get_file(keys.weights(job.id, job.weights.sha256), path):
            raise WeightsMissing(f"the checkpoint {job.weights.name} of job {job.id} is missing; submit it again")
        yield path
