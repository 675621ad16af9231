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
    #: floating-point operations of everything before the layer for one picture; a multiply-add counts as two
    upstream_flop: float
    #: floating-point operations of one filter of the layer for one picture
    filter_flop: float

    def step_gflop(self, filters: int = 1) -> float:
        """GFLOP of one gradient step of one picture through ``filters`` filters of the layer.

        The backward pass to the picture costs as much as the forward pass.
        """
        return 2e-9 * (self.upstream_flop + filters * self.filter_flop)


def costs(model: nn.Module, graph: fx.Graph, size_px: tuple[int, int]) -> dict[str, Cost]:
    """Layer -> its cost, for a picture of ``size_px``, (height, width). The model must be on the meta device.

    Ends at the first operation that does not accept a picture of that size.
    """
    return dict(_costs(model, graph, size_px))


def _costs(model: nn.Module, graph: fx.Graph, size_px: tuple[int, int]) -> Iterator[tuple[str, Cost]]:
    convs = {node: name for name, node in convolutions(model, graph).items()}
    runner = _CountingInterpreter(model, graph)
    runner.env[next(node for node in graph.nodes if node.op == "placeholder")] = torch.empty(
        1, 3, *size_px, device="meta"
    )
    upstream: dict[fx.Node, frozenset[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "output":
            return
        upstream[node] = frozenset().union(*(upstream[source] | {source} for source in node.all_input_nodes))
        if node.op == "placeholder":
            continue
        try:
            runner.env[node] = runner.count(node)
        except (RuntimeError, AssertionError, ValueError):
            return  # the network does not accept pictures of this size
        if node in convs:
            height, width = runner.env[node].shape[-2:]
            upstream_flop = sum(runner.flop.get(source, 0.0) for source in upstream[node])
            channels = int(model.get_submodule(str(node.target)).out_channels)  # type: ignore[arg-type]  # a convolution
            yield (
                convs[node],
                Cost(
                    output_px=(int(height), int(width)),
                    upstream_flop=upstream_flop,
                    filter_flop=runner.flop[node] / channels,
                ),
            )


class _CountingInterpreter(fx.Interpreter):
    """Runs a graph node by node and records each node's floating-point operations in ``flop``."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(model, graph=graph)
        self.flop: dict[fx.Node, float] = {}

    def count(self, node: fx.Node) -> torch.Tensor:
        counter = FlopCounterMode(display=False)
        with counter:
            result: torch.Tensor = self.run_node(node)
        self.flop[node] = float(counter.get_total_flops())
        return result
