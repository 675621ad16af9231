"""The layers of a model, the cost of a tile of each, and their selection by name. Loads no weights."""

import difflib
import fnmatch
import functools
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from workers.contract.errors import UnknownLayer
from workers.contract.job import Kind

if TYPE_CHECKING:
    from torch import fx, nn

    from workers.networks.cost import Cost

#: Every kind of layer, and those that are listed by default.
KINDS: tuple[Kind, ...] = get_args(Kind)
CONVOLUTIONS: tuple[Kind, ...] = ("conv",)

#: Sizes of pictures in pixels at which published networks were trained or are often used.
_USUAL_PX = (150, 224, 256, 299, 384, 512)


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """One layer of a model, and the cost of a tile of it."""

    name: str
    aliases: tuple[str, ...]
    kind: Kind
    channels: int
    #: False if its units have one value for a picture
    has_map: bool
    #: pixels of the picture that one place of its map depends on, and between two places; None: not known, or all
    field_px: int | None
    stride_px: int | None
    #: height and width of its map; None if the network does not compute it for a picture of this size
    output_px: tuple[int, int] | None
    #: GFLOP of one gradient step of one picture for one unit; in a job's plan, for the recipe's objective
    step_gflop: float
    #: GFLOP of one gradient step of one picture for all units of the layer
    whole_step_gflop: float
    #: the units that no picture can excite because of the layer's weights, as in ``--filters``: "0,8-11", or "" for
    #: none; None: no weights are loaded, or they do not tell, as those before a sum
    dead_filters: str | None = None
    #: number of those units
    dead: int | None = None


def layers(model_name: str, size_px: tuple[int, int], kinds: Collection[Kind] = CONVOLUTIONS) -> list[LayerPlan]:
    """The layers of a model of these kinds, in the order of execution; raises UnknownModel. Loads no weights."""
    from workers.networks import receptive, registry, units

    model, trace = _traced(model_name, size_px)
    costs = _costs(model_name, size_px)
    known = costs if _is_complete(model_name, size_px, costs) else _known(model_name)
    names = registry.aliases(model_name, model)
    fields = receptive.fields(model, trace)
    result = []
    for name, unit in units.named(model, trace).items():
        cost, elsewhere = costs.get(name), known.get(name)
        if unit.kind not in kinds or (elsewhere is None and unit.kind != "conv"):
            continue
        channels = elsewhere.layout.channels if elsewhere else int(model.get_submodule(name).out_channels)  # type: ignore[arg-type]  # a convolution's
        alias = (units.own_name(trace, unit.node),) if unit.kind == "logits" else names.get(name, ())
        plan = LayerPlan(
            name=name,
            aliases=alias,
            kind=unit.kind,
            channels=channels,
            field_px=_finite(fields[unit.node].size_px) if unit.node in fields else None,
            stride_px=_finite(fields[unit.node].stride_px) if unit.node in fields else None,
            has_map=elsewhere is None or elsewhere.layout.has_map,
            output_px=cost.output_px if cost else None,
            step_gflop=cost.step_gflop() if cost else 0.0,
            whole_step_gflop=cost.step_gflop(channels) if cost else 0.0,
        )
        result.append(plan)
    return result


def input_channels(model_name: str) -> int:
    """Number of channels of the network's pictures; raises UnknownModel."""
    from workers.networks import tracing

    return tracing.input_channels(_network(model_name)[1])


def _finite(value: float) -> int | None:
    return round(value) if math.isfinite(value) else None


def accepted_sizes(model_name: str, layer: str) -> list[int]:
    """Of the usual sizes in pixels, those of square pictures for which the network computes ``layer``."""
    return [px for px in _USUAL_PX if layer in _costs(model_name, (px, px))]


def select(plans: list[LayerPlan], text: str, model_name: str) -> list[LayerPlan]:
    """The layers that comma-separated names, aliases and globs choose, in order of execution; raises UnknownLayer.

    A glob chooses the convolutions that it matches; if it matches none, blocks, linear layers and logits; if none of
    these, any tensor. ``all`` means all convolutions.
    """
    chosen: set[str] = set()
    for pattern in filter(None, (part.strip() for part in text.split(","))):
        if pattern == "all":
            chosen |= {plan.name for plan in plans if plan.kind == "conv"}
            continue
        matches = [
            plan for plan in plans if any(fnmatch.fnmatchcase(name, pattern) for name in (plan.name, *plan.aliases))
        ]
        if not matches:
            every = [name for plan in plans for name in (plan.name, *plan.aliases)]
            near = difflib.get_close_matches(pattern, every, n=3, cutoff=0.5) or every[:2]
            raise UnknownLayer(
                f"no layer {pattern[:80]!r} in {model_name}; nearest: {', '.join(near)} "
                f"('filterfarm layers {model_name} --kind all' lists all)"
            )
        for kinds in (CONVOLUTIONS, ("block", "linear", "logits"), KINDS):
            if names := {plan.name for plan in matches if plan.kind in kinds}:
                chosen |= names
                break
    if not chosen:
        raise UnknownLayer(f"--layers {text!r} names no layer; 'filterfarm layers {model_name}' lists all")
    return [plan for plan in plans if plan.name in chosen]


@functools.lru_cache(maxsize=1)
def _network(model_name: str) -> "tuple[nn.Module, fx.Graph]":
    """The model without weights, and its graph for pictures of a usual size; raises UnknownModel."""
    from workers.networks import registry, tracing

    model = registry.skeleton(model_name)
    return model, tracing.trace(model)


@functools.lru_cache(maxsize=2)
def _traced(model_name: str, size_px: tuple[int, int]) -> "tuple[nn.Module, fx.Graph]":
    """The model without weights, and its graph for pictures of that size; raises UnknownModel."""
    from workers.networks import tracer, tracing, untraced

    model, trace = _network(model_name)
    if tracing.depends_on_size(trace):
        trace = tracing.trace(model, size_px)
    # A network that is not traced may need values.
    return (model if untraced.is_untraced(trace) else tracer.without_values(model)), trace


@functools.lru_cache(maxsize=16)
def _costs(model_name: str, size_px: tuple[int, int]) -> "dict[str, Cost]":
    """Layer of any kind -> its cost, up to the first operation that does not accept a picture of that size."""
    from workers.networks import cost

    return cost.costs(*_traced(model_name, size_px), size_px, KINDS)


def _is_complete(model_name: str, size_px: tuple[int, int], costs: Iterable[str]) -> bool:
    """True if the network computes everything up to its output for pictures of that size."""
    from workers.networks import units

    model, trace = _traced(model_name, size_px)
    output = units.logits(trace)
    names = {name for name, unit in units.named(model, trace).items() if unit.node is output}
    return not names or not names.isdisjoint(costs)


def _known(model_name: str) -> "dict[str, Cost]":
    """The layers at a usual size that the network accepts; {} if it accepts none."""
    sizes = ((px, px) for px in _USUAL_PX)
    return next((found for px in sizes if _is_complete(model_name, px, found := _costs(model_name, px))), {})
