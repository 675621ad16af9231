"""The layers of a model, the cost of a tile of each, and their selection by name. Loads no weights."""

import difflib
import fnmatch
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.contract.errors import UnknownLayer

if TYPE_CHECKING:
    from torch import fx, nn


#: Sizes of pictures in pixels at which published networks were trained or are often used.
_USUAL_PX = (150, 224, 256, 299, 384, 512)


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """One convolution of a model, and the cost of a tile of it."""

    name: str
    aliases: tuple[str, ...]
    channels: int
    #: height and width of its map; None if the network does not compute it for a picture of this size
    output_px: tuple[int, int] | None
    #: GFLOP of one gradient step of one picture for one filter; in a job's plan, for the recipe's objective
    step_gflop: float
    #: GFLOP of one gradient step of one picture for all filters of the layer
    whole_step_gflop: float


def layers(model_name: str, size_px: tuple[int, int]) -> list[LayerPlan]:
    """Every convolution of a model in the order of execution; raises UnknownModel. Loads no weights."""
    from workers.networks import cost as costing
    from workers.networks import registry, tracing

    model, trace = _traced(model_name)
    costs = costing.costs(model, trace, size_px)
    names = registry.aliases(model_name, model)
    result = []
    for name in tracing.convolutions(model, trace):
        cost = costs.get(name)
        channels = int(model.get_submodule(name).out_channels)  # type: ignore[arg-type]  # a convolution's
        plan = LayerPlan(
            name=name,
            aliases=names.get(name, ()),
            channels=channels,
            output_px=cost.output_px if cost else None,
            step_gflop=cost.step_gflop() if cost else 0.0,
            whole_step_gflop=cost.step_gflop(channels) if cost else 0.0,
        )
        result.append(plan)
    return result


def accepted_sizes(model_name: str, layer: str) -> list[int]:
    """Of the usual sizes in pixels, those of square pictures for which the network computes ``layer``."""
    return [
        px
        for px in _USUAL_PX
        if any(plan.name == layer and plan.output_px is not None for plan in layers(model_name, (px, px)))
    ]


def select(plans: list[LayerPlan], text: str, model_name: str) -> list[LayerPlan]:
    """The layers that match comma-separated names, aliases and globs, in order of execution; raises UnknownLayer."""
    if text.strip() == "all":
        return plans
    chosen: set[str] = set()
    for pattern in filter(None, (part.strip() for part in text.split(","))):
        matches = {
            plan.name for plan in plans if any(fnmatch.fnmatchcase(n, pattern) for n in (plan.name, *plan.aliases))
        }
        if not matches:
            every = [name for plan in plans for name in (plan.name, *plan.aliases)]
            near = difflib.get_close_matches(pattern, every, n=2, cutoff=0.3) or every[:2]
            raise UnknownLayer(
                f"no layer {pattern[:80]!r} in {model_name}; nearest: {', '.join(near)} "
                f"('filterfarm layers {model_name}' lists all)"
            )
        chosen |= matches
    if not chosen:
        raise UnknownLayer(f"--layers {text!r} names no layer; 'filterfarm layers {model_name}' lists all")
    return [plan for plan in plans if plan.name in chosen]


@functools.lru_cache(maxsize=1)
def _traced(model_name: str) -> "tuple[nn.Module, fx.Graph]":
    """The model without weights, and its graph; raises UnknownModel. Cached for calls with several sizes."""
    from workers.networks import registry, tracing

    model = registry.skeleton(model_name)
    return model, tracing.trace(model)
