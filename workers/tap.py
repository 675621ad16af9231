"""A network cut at one layer: everything before it, and of the layer itself only the filters that are asked for.

Of a last layer of 512 filters a batch of 16 tiles computes 16: its weight rows are sliced, and with them every
per-channel parameter of the batch-norm and activation behind it.
"""

import copy

import torch
from torch import fx, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd

from workers import graph as graphs


class Tap(nn.Module):
    """A frozen network up to one layer.

    ``Tap(model, graph, layer, tap)`` keeps references to the model's parameters and changes nothing in it.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph, layer: str, tap: str) -> None:
        super().__init__()
        conv = graphs.find(model, graph, layer)
        chain = graphs.tapped(model, conv, tap)
        source = conv.all_input_nodes[0]
        self._trunk = _subgraph(model, graph, upto=source)
        # Its own shallow copy, because slicing a grouped convolution changes its group count.
        self._conv: _ConvNd = copy.copy(model.get_submodule(layer))  # type: ignore[assignment]  # find() checked it
        self._tail = _tail(model, chain) if len(chain) > 1 else nn.Identity()
        self.channels = self._conv.out_channels

    def slice(self, filters: torch.Tensor) -> "SlicedTap":
        """The network up to the maps of ``filters``: (B,) int64, one for each picture of the batch."""
        return SlicedTap(self, filters)


class SlicedTap:
    """The map of one chosen filter for each picture of a batch."""

    def __init__(self, tap: Tap, filters: torch.Tensor) -> None:
        distinct, place = torch.unique(filters, return_inverse=True)
        self._tap = tap
        self._place = place
        self._conv_parameters = _rows(tap._conv, distinct, tap.channels)
        self._tail_parameters = _rows(tap._tail, distinct, tap.channels)
        self._inputs, self._groups = _group_inputs(tap._conv, distinct)

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        """Maps (B, H', W') for network input (B, 3, H, W), both in the network's dtype; picture b sees filter b."""
        features = self._tap._trunk(pictures)
        if self._inputs is not None:
            features = features[:, self._inputs]
        self._tap._conv.groups = self._groups
        maps = functional_call(self._tap._conv, self._conv_parameters, (features,))
        maps = functional_call(self._tap._tail, self._tail_parameters, (maps,))
        own: torch.Tensor = maps[
            torch.arange(len(maps), device=maps.device), self._place
        ]  # (B, K, H', W') -> (B, H', W')
        return own


def _rows(module: nn.Module, filters: torch.Tensor, channels: int) -> dict[str, torch.Tensor]:
    """Every per-channel tensor of ``module``, cut down to the rows of ``filters``."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {
        name: tensor[filters.to(tensor.device)]
        for name, tensor in named
        if tensor.ndim > 0 and tensor.shape[0] == channels
    }


def _group_inputs(conv: _ConvNd, filters: torch.Tensor) -> tuple[torch.Tensor | None, int]:
    """Of a grouped convolution, the input channels that the filters read, filter by filter, and the group count."""
    if conv.groups == 1:
        return None, 1
    per_group_in, per_group_out = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    first = filters // per_group_out * per_group_in
    inputs = first[:, None] + torch.arange(per_group_in, device=filters.device)  # (K, in channels per group)
    return inputs.flatten(), len(filters)


def _subgraph(model: nn.Module, graph: fx.Graph, upto: fx.Node) -> fx.GraphModule:
    """The model's operations that node ``upto`` depends on, and that node itself."""
    needed, todo = {upto}, [upto]
    while todo:
        for source in todo.pop().all_input_nodes:
            if source not in needed:
                needed.add(source)
                todo.append(source)
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node in needed:
            copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(copies[upto])
    return fx.GraphModule(model, part)


def _tail(model: nn.Module, chain: list[fx.Node]) -> fx.GraphModule:
    """What follows the convolution up to the tapped tensor, as a module of its own."""
    part = fx.Graph()
    copies = {chain[0]: part.placeholder("maps")}
    for node in chain[1:]:
        for source in node.all_input_nodes:
            if source not in copies and source.op == "get_attr":
                copies[source] = part.node_copy(source)
        copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(copies[chain[-1]])
    return fx.GraphModule(model, part)
