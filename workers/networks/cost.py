"""Floating-point operations and map size of each layer at a picture size."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from workers.networks.tracing import convolutions


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Floating-point operations and map size of one layer at one picture size."""

    #: height and width of the layer's map
    output_px: tuple[int, int]
    #: floating-point operations (a multiply-add counts two) to run one picture through everything before the layer
    upstream_flop: float
    #: the same for one filter of the layer itself
    filter_flop: float

    def step_gflop(self, filters: int = 1) -> float:
        """GFLOP of one gradient step of one picture that ``filters`` filters of the layer see.

        Forward, and backward to the picture, which costs the same again.
        """
        return 2e-9 * (self.upstream_flop + filters * self.filter_flop)


def costs(model: nn.Module, graph: fx.Graph, size_px: tuple[int, int]) -> dict[str, Cost]:
    """Layer -> its cost, for every layer that a picture of that height and width reaches.

    The model is on the meta device.
    """
    return dict(_costs(model, graph, size_px))


def _costs(model: nn.Module, graph: fx.Graph, size_px: tuple[int, int]) -> Iterator[tuple[str, Cost]]:
    wanted = {node: name for name, node in convolutions(model, graph).items()}
    runner = _CountingInterpreter(model, graph)
    runner.env[next(node for node in graph.nodes if node.op == "placeholder")] = torch.empty(
        1, 3, *size_px, device="meta"
    )
    before: dict[fx.Node, frozenset[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "output":
            return
        before[node] = frozenset().union(*(before[source] | {source} for source in node.all_input_nodes))
        if node.op == "placeholder":
            continue
        try:
            runner.env[node] = runner.count(node)
        except (RuntimeError, AssertionError, ValueError):
            return  # the picture is too small, or of a size this network does not take
        if node in wanted:
            height, width = runner.env[node].shape[-2:]
            upstream = sum(runner.flop.get(source, 0.0) for source in before[node])
            channels = int(model.get_submodule(str(node.target)).out_channels)  # type: ignore[arg-type]  # a convolution
            yield (
                wanted[node],
                Cost(
                    output_px=(int(height), int(width)),
                    upstream_flop=upstream,
                    filter_flop=runner.flop[node] / channels,
                ),
            )


class _CountingInterpreter(fx.Interpreter):
    """Runs a graph node by node and keeps each node's floating-point operations."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(model, graph=graph)
        self.flop: dict[fx.Node, float] = {}

    def count(self, node: fx.Node) -> torch.Tensor:
        counter = FlopCounterMode(display=False)
        with counter:
            result: torch.Tensor = self.run_node(node)
        self.flop[node] = float(counter.get_total_flops())
        return result
