"""Floating-point operations, kind and map size of each layer at a picture size."""

from collections.abc import Collection
from dataclasses import dataclass

from torch import fx, nn

from workers.contract.job import Kind
from workers.networks import units
from workers.networks.layouts import Layout, propagate

#: The kinds of layers that are convolutions.
CONVOLUTIONS: tuple[Kind, ...] = ("conv",)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One layer at one picture size: what it computes, and floating-point operations."""

    kind: Kind
    layout: Layout
    #: floating-point operations of everything before the layer for one picture; a multiply-add counts as two
    upstream_flop: float
    #: floating-point operations of one filter of the layer for one picture
    filter_flop: float

    @property
    def output_px(self) -> tuple[int, int]:
        """Height and width of the layer's map."""
        return self.layout.map_px

    def step_gflop(self, filters: int = 1) -> float:
        """GFLOP of one gradient step of one picture through ``filters`` filters of the layer.

        The backward pass to the picture costs as much as the forward pass.
        """
        return 2e-9 * (self.upstream_flop + filters * self.filter_flop)


def costs(
    model: nn.Module, graph: fx.Graph, size_px: tuple[int, int], kinds: Collection[Kind] = CONVOLUTIONS
) -> dict[str, Cost]:
    """Layer of one of these kinds -> its cost, for a picture of ``size_px``, (height, width), in execution order.

    The model must be on the meta device. Ends at the first operation that does not accept a picture of that size. Of
    other layers than convolutions, all units are computed together: all of their cost is upstream.
    """
    names = {unit.node: (name, unit.kind) for name, unit in units.named(model, graph).items() if unit.kind in kinds}
    upstream: dict[fx.Node, frozenset[fx.Node]] = {}
    flop: dict[fx.Node, float] = {}
    found: dict[str, Cost] = {}
    for step in propagate(model, graph, size_px):
        node = step.node
        sources = [source for source in node.all_input_nodes if source in flop]
        upstream[node] = frozenset(sources).union(*(upstream[source] for source in sources))
        flop[node] = step.flop
        if node not in names or step.layout is None:
            continue
        name, kind = names[node]
        before = sum(flop[source] for source in upstream[node])
        sliced = kind == "conv"
        found[name] = Cost(
            kind=kind,
            layout=step.layout,
            upstream_flop=before if sliced else before + step.flop,
            filter_flop=step.flop / step.layout.channels if sliced else 0.0,
        )
    return found
