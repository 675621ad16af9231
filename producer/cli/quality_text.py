"""Output of ``filterfarm quality``: statistics of each layer and of the whole job, as table or JSON."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from producer.cli.text import table
from producer.quality.quality import LayerQuality
from workers.contract.job import Job

LEGEND = """\
dead      of all tiles: the filter's batch-norm has no gain, so no picture excites it; excluded from the rest
grey      tiles without a picture although their filter is not dead
rescued   tiles whose filter was zero on the start image, and was rescued
gain      median of activation over start activation, of the tiles whose start activation is above 0 (in brackets)
self-id   tiles that no other tile of the layer beats, by more than 0.1 %, at exciting their own filter
select.   median of own activation over that of the best other tile
high-f.   median share of the picture's power beyond a quarter of a cycle per pixel (white noise: 80 %)"""

LEGEND_AGAINST = """\
alike     median likeness to the other job's tile of the same filter: cosine of what the two do to the layer's filters,
          0 for any two tiles of the layer and 1 for the same
matched   tiles whose most alike among the other job's is that of the same filter"""

LEGEND_CLASSES = """\
top-1     tiles that the network puts into their class; of other networks, whose input is the tile at their input size
top-5     tiles whose class is one of the network's first five"""

#: A class among the network's first five has a rank below it.
_FIRST = 5


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Shares of tiles, in 0..1, whose class is a network's first, and one of its first five."""

    top1: float | None
    top5: float | None


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Statistics of a set of tiles. Shares are in 0..1; None if there are no tiles to compute one from."""

    planned: int
    measured: int
    #: stored tiles that cannot be read
    broken: int
    dead: float | None
    grey: float | None
    rescued: float | None
    gain: float | None
    #: number of tiles with a start activation above 0; ``gain`` is their median
    gain_of: int
    self_identification: float | None
    selectivity: float | None
    high_frequency: float | None
    similarity: float | None
    matched: float | None
    #: of tiles of classes, by the job's own network; other network -> by that network
    accuracy: Accuracy
    read_by: dict[str, Accuracy]


def figures(layers: Sequence[LayerQuality]) -> Figures:
    """The statistics of all tiles of ``layers``."""
    every = [tile for layer in layers for tile in layer.tiles]
    # Grey tiles of filters that can be excited count as failures.
    alive = [tile for tile in every if not tile.inert]
    gains = [tile.activation / tile.start_activation for tile in alive if tile.start_activation > 0]
    return Figures(
        planned=sum(layer.planned for layer in layers),
        measured=len(every),
        broken=sum(len(layer.broken) for layer in layers),
        dead=_share([tile.inert for tile in every]),
        grey=_share([tile.status == "dead" for tile in alive]),
        rescued=_share([tile.status == "rescued" for tile in alive]),
        gain=_median(gains),
        gain_of=len(gains),
        self_identification=_share([tile.identified for tile in alive]),
        selectivity=_median([tile.selectivity for tile in alive]),
        high_frequency=_median([tile.high_frequency for tile in alive]),
        similarity=_median([tile.similarity for tile in alive]),
        matched=_share([tile.matched for tile in alive]),
        accuracy=_accuracy([tile.rank for tile in alive]),
        read_by={
            name: _accuracy([tile.read_by.get(name) for tile in alive])
            for name in dict.fromkeys(name for tile in alive for name in tile.read_by)
        },
    )


def as_json(job: Job, layers: Sequence[LayerQuality], against: Job | None) -> dict[str, Any]:
    """The statistics and each tile's values for ``--json``. Infinite selectivity is null: JSON has no infinity."""
    return {
        "job": job.id,
        "against": against.id if against else None,
        "whole": _finite(asdict(figures(layers))),
        "layers": [
            {
                "layer": layer.layer,
                **_finite(asdict(figures([layer]))),
                "broken_tiles": layer.broken,
                "tiles": [_finite(asdict(tile)) for tile in layer.tiles],
            }
            for layer in layers
        ],
    }


def as_table(layers: Sequence[LayerQuality], *, against: bool) -> str:
    """A table with a row per layer and one for all, one with a row per network if there are classes, and legends."""
    head = ("layer", "tiles", "dead", "grey", "rescued", "gain", "self-id", "select.", "high-f.")
    rows = [head + (("alike", "matched") if against else ())]
    rows += [_row(layer.layer, figures([layer]), against=against) for layer in layers]
    if len(layers) > 1:
        rows.append(_row("all", figures(layers), against=against))
    legend = f"{LEGEND}\n{LEGEND_AGAINST}" if against else LEGEND
    return f"{table(rows, names=1)}\n\n{legend}{_classes(figures(layers))}"


def _classes(of: Figures) -> str:
    if of.accuracy.top1 is None:
        return ""
    networks = {"the network itself": of.accuracy, **of.read_by}
    rows = [(name, _percent(one.top1), _percent(one.top5)) for name, one in networks.items()]
    return f"\n\n{table([('classes read by', 'top-1', 'top-5'), *rows], names=1)}\n\n{LEGEND_CLASSES}"


def _row(name: str, of: Figures, *, against: bool) -> tuple[str, ...]:
    tiles = str(of.measured) if of.measured == of.planned else f"{of.measured} of {of.planned}"
    gain = "-" if of.gain is None else f"{of.gain:.2f} ({of.gain_of})"
    shares = (_percent(of.dead), _percent(of.grey), _percent(of.rescued), gain)
    numbers = (_percent(of.self_identification), _number(of.selectivity), _percent(of.high_frequency))
    return (name, tiles, *shares, *numbers, *((_number(of.similarity), _percent(of.matched)) if against else ()))


def _accuracy(ranks: Sequence[int | None]) -> Accuracy:
    known = [rank for rank in ranks if rank is not None]
    return Accuracy(top1=_share([rank == 0 for rank in known]), top5=_share([rank < _FIRST for rank in known]))


def _share(answers: Sequence[bool | None]) -> float | None:
    known = [answer for answer in answers if answer is not None]
    return sum(known) / len(known) if known else None


def _median(numbers: Sequence[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return median(known) if known else None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"


def _number(number: float | None) -> str:
    return "-" if number is None else f"{number:.2f}"


def _finite(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in fields.items()
    }
