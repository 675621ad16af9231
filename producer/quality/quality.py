"""How good a job's pictures are: each tile is read back and shown to the network once more.

Truly dead filters, whose batch-norm lets nothing through, are counted and otherwise left out: no picture could be
better. Every other filter counts, one whose tile stayed grey as well.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from producer.jobs.inventory import Reader
from producer.quality.stored_tiles import Seen, show
from workers.contract import keys
from workers.contract.errors import BadOption, CorruptTile, JobIncomplete, WeightsMissing
from workers.contract.job import Job, Layer
from workers.contract.records import Status

if TYPE_CHECKING:
    from workers.rendering.metrics import LayerProbe


@dataclass(frozen=True, kw_only=True)
class TileQuality:
    """One tile, measured on its stored picture; activations are means of the filter's map, in the units of the tap."""

    layer: str
    filter: int
    status: Status
    #: no picture can excite the filter: its batch-norm has no gain, or never saw it vary
    inert: bool
    start_activation: float
    activation: float
    #: whether no other tile of the layer excites its filter more, as measure.identified has it; None without others
    identified: bool | None
    #: own activation over the best other tile's, 0 or more; infinite where no other excites the filter
    selectivity: float | None
    #: share of the picture's power in high frequencies, 0..1
    high_frequency: float
    #: likeness to the other job's tile of the same filter, -1..1, and whether no other of its tiles is more alike
    similarity: float | None = None
    matched: bool | None = None


@dataclass(frozen=True, kw_only=True)
class LayerQuality:
    """The tiles of one layer, and how many it should have."""

    layer: str
    planned: int
    tiles: tuple[TileQuality, ...]
    #: filters whose PNG does not read, with the reason
    broken: dict[int, str]


def measure(
    job: Job, reader: Reader, *, device: str, against: Job | None = None, done: Callable[[str], None] = lambda _: None
) -> list[LayerQuality]:
    """Measure every layer of a job, against another job of the same network where one is given.

    ``done`` is told each layer's name. Raises BadOption where a job maximises something else than single filters,
    or the two cannot be compared, and the errors of loading weights and of reading.
    """
    for one in filter(None, (job, against)):
        _check_measurable(one)
    if against is not None:
        _check_comparable(job, against)
    import torch

    from workers.networks import process_tuning, tracing, weights
    from workers.rendering.metrics import LayerProbe

    process_tuning.tune()
    target = torch.device(device)
    with _checkpoint(job, reader) as path:
        model = weights.load(job.model, job.weights, path, seed=job.recipe.seed).to(target)
    trace = tracing.trace(model)
    result = []
    for layer in job.layers:
        result.append(_layer(job, layer, LayerProbe(model, trace, layer.name, job.recipe, target), reader, against))
        done(layer.name)
    return result


def require_whole(job: Job, layers: Sequence[LayerQuality]) -> None:
    """Raise CorruptTile where tiles do not read, and JobIncomplete where some are missing."""
    planned, measured = len(job.tiles), sum(len(layer.tiles) for layer in layers)
    broken = {f"{layer.layer}/{filter_}": why for layer in layers for filter_, why in layer.broken.items()}
    if broken:
        tile, why = next(iter(broken.items()))
        raise CorruptTile(
            f"{len(broken)} of {planned} tiles of {job.id} cannot be read, such as {tile}: {why}; delete them and "
            f"run or submit the job again; what is said is of {measured} tiles"
        )
    if measured < planned:
        raise JobIncomplete(
            f"{planned - measured} of {planned} tiles of {job.id} are missing; run or submit it again to resume; "
            f"what is said is of {measured} tiles"
        )


def _layer(job: Job, layer: Layer, probe: "LayerProbe", reader: Reader, against: Job | None) -> LayerQuality:
    from workers.rendering import metrics as numbers

    seen = show(job, layer, probe, reader)
    if not seen.filters:
        return LayerQuality(layer=layer.name, planned=len(layer.selected), tiles=(), broken=seen.broken)
    own = np.stack(seen.responses)[:, seen.filters]
    alone = len(own) == 1
    identified = [None] if alone else numbers.identified(own).tolist()
    selectivity = [None] if alone else numbers.selectivity(own).tolist()
    alike = _alike(seen, against, layer, probe, reader)
    tiles = tuple(
        TileQuality(
            layer=layer.name,
            filter=filter_,
            status=seen.statuses[place],
            inert=bool(probe.inert[filter_]),
            start_activation=seen.starts[place],
            activation=float(own[place, place]),
            identified=identified[place],
            selectivity=selectivity[place],
            high_frequency=seen.high_frequency[place],
            similarity=alike[filter_][0] if filter_ in alike else None,
            matched=alike[filter_][1] if filter_ in alike else None,
        )
        for place, filter_ in enumerate(seen.filters)
    )
    return LayerQuality(layer=layer.name, planned=len(layer.selected), tiles=tiles, broken=seen.broken)


def _alike(
    seen: Seen, against: Job | None, layer: Layer, probe: "LayerProbe", reader: Reader
) -> dict[int, tuple[float, bool]]:
    """Filter -> likeness to the other job's tile of it, and whether that is the most alike of all, for common ones."""
    from workers.rendering import metrics as numbers

    other = against.layer(layer.name) if against else None
    if against is None or other is None:
        return {}
    theirs = show(against, other, probe, reader)
    common = [filter_ for filter_ in seen.filters if filter_ in set(theirs.filters)]
    if len(common) < 2:  # likeness is relative to what all tiles have in common
        return {}
    cosines = numbers.similarity(
        np.stack([seen.responses[seen.filters.index(filter_)] for filter_ in common]),
        np.stack([theirs.responses[theirs.filters.index(filter_)] for filter_ in common]),
    )
    matched = numbers.identified(cosines.T)
    return {filter_: (float(cosines[place, place]), bool(matched[place])) for place, filter_ in enumerate(common)}


def _check_measurable(job: Job) -> None:
    recipe = job.recipe
    if recipe.objective != "filter" or recipe.negative or recipe.diversity > 1:
        raise BadOption(
            f"{job.id} cannot be measured: quality is that of one picture for each filter that maximises it, and the "
            f"job has {'--negative' if recipe.negative else f'--objective {recipe.objective}'}"
            f"{f' --diversity {recipe.diversity}' if recipe.diversity > 1 else ''}"
        )


def _check_comparable(job: Job, against: Job) -> None:
    def network(one: Job) -> tuple[object, ...]:
        drawn = one.recipe.seed if one.weights.source == "none" else None
        return one.model, one.weights, drawn, one.recipe.tap, one.recipe.preprocess

    if job.id == against.id:
        raise BadOption(f"--against {against.id} is the job itself; name one that differs in its seed or recipe")
    if network(job) != network(against):
        raise BadOption(
            f"--against {against.id} is another network's or tap's than {job.id}; compare jobs of the same model, "
            "weights, preprocessing and tap (random weights change with the seed)"
        )
    if not {layer.name for layer in job.layers} & {layer.name for layer in against.layers}:
        raise BadOption(f"--against {against.id} has no layer in common with {job.id}")


@contextlib.contextmanager
def _checkpoint(job: Job, reader: Reader) -> Iterator[Path | None]:
    """A copy of the job's own checkpoint, if it has one, for as long as it takes to load."""
    if job.weights.source != "file" or job.weights.sha256 is None:
        yield None
        return
    data = reader.get(keys.weights(job.id, job.weights.sha256))
    if data is None:
        raise WeightsMissing(f"job {job.id} has lost its checkpoint {job.weights.name}; run or submit it again")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"weights{Path(job.weights.name).suffix}")
        path.write_bytes(data)
        yield path
