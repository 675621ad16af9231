"""A network cut at any tensor with channels: a sum of branches, a linear layer, the class logits.

All channels of the tensor are computed and the requested ones are selected: unlike with a convolution, most of the cost
is in what they share.
"""

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from workers.contract.records import Precision
from workers.networks import dead_units, tracing, units
from workers.networks.extractor import Extractor, Slice, exactly
from workers.networks.fusion import FusedConvolutions
from workers.networks.gradient_override import GradientOverride
from workers.networks.layer_extractor import LayerExtractor
from workers.networks.layouts import POOLS, Layout, as_maps, layout_of
from workers.networks.subgraphs import part, subgraph


def extractor_of(
    model: nn.Module,
    graph: fx.Graph,
    layer: str,
    tap: str,
    size_px: tuple[int, int],
    precision: Precision = "fp32",
    fused: FusedConvolutions | None = None,
) -> Extractor:
    """The extractor of a layer of any kind, for pictures of about ``size_px``. Raises UnknownLayer."""
    if layer in tracing.convolutions(model, graph):
        return LayerExtractor(model, graph, layer, tap, precision, fused)
    return TensorExtractor(model, graph, layer, tap, size_px, precision, fused)


def maximised(model: nn.Module, graph: fx.Graph, layer: str, tap: str) -> fx.Node:
    """The node whose tensor ``tap`` names: of a linear layer, by default that after its activation function."""
    unit = units.find(model, graph, layer)
    return tracing.tapped(model, unit.node, tap)[-1] if unit.kind == "linear" else unit.node


class TensorExtractor(Extractor):
    """A frozen network up to one tensor. ``layer``: its name, see :mod:`workers.networks.units`.

    If the tensor is the output of an activation function, the input of that is its pre-activation. Otherwise both are
    the same. Raises UnknownLayer if there is no such tensor, or it has no axis of channels.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: fx.Graph,
        layer: str,
        tap: str,
        size_px: tuple[int, int],
        precision: Precision = "fp32",
        fused: FusedConvolutions | None = None,
    ) -> None:
        after = maximised(model, graph, layer, tap)
        before = after.all_input_nodes[0] if tracing.is_activation(model, after) else after
        layout = layout_of(model, graph, after, size_px)
        upstream = subgraph(model, graph, upto=before, beside=layout.grid)
        super().__init__(upstream, next(model.parameters()).device, precision, fused)
        self._axis = layout.axis
        #: axis of the channels of the tensor whose places the tokens are, if they are a map
        self._grid_axis = None if layout.grid is None else layout.grid_axis
        self._activation = None if after is before else part(model, [before, after])
        self.channels = layout.channels
        self.stem = layout.has_map and _is_stem(upstream)
        own = units.find(model, graph, layer).node
        if dead_units.is_known(model, own):
            self.inert = dead_units.inert(model, own, tap)
        else:
            self.inert = torch.zeros(self.channels, dtype=torch.bool)

    def maps(self, pictures: torch.Tensor, override: GradientOverride | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The maps of all units, and their pre-activations, (B, C, H', W') each, in the dtype of the pictures."""
        with exactly():
            features = self.features(pictures, override)
            before, grid_px = features, None
            if self._grid_axis is not None:
                before, grid = features
                grid_px = Layout(shape=tuple(grid.shape), axis=self._grid_axis).map_px
            before = before.to(pictures.dtype)
            # A copy, because an activation may work in place.
            after = before if self._activation is None else self._activation(before.clone())
        before_maps = as_maps(before, self._axis, grid_px)
        return (before_maps if after is before else as_maps(after, self._axis, grid_px)), before_maps

    def slice(self, filters: torch.Tensor) -> Slice:
        """The extractor of ``filters``, (B,) int64: one for each picture of the batch."""
        return _Selection(self, filters)


class _Selection(Slice):
    """Chosen channels of a tensor."""

    def __init__(self, extractor: TensorExtractor, filters: torch.Tensor) -> None:
        self._extractor, device = extractor, extractor.device
        # On the host, so that the device is not waited for.
        self._filters, self._distinct = filters.to(device), torch.unique(filters.cpu()).to(device)

    def both(
        self, pictures: torch.Tensor, override: GradientOverride | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        after, before = self._extractor.maps(pictures, override)
        rows = torch.arange(len(after), device=after.device)
        return after[rows, self._filters], before[rows, self._filters]

    def whole(
        self, pictures: torch.Tensor, override: GradientOverride | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        after, before = self._extractor.maps(pictures, override)
        return after[:, self._distinct], before[:, self._distinct]


def _is_stem(upstream: fx.GraphModule) -> bool:
    """True if at most one convolution, its norm and activation function, and poolings make the tensor."""
    called = [node for node in upstream.graph.nodes if node.op.startswith("call_")]
    convolutions = sum(tracing.is_module(upstream, node, (_ConvNd,)) for node in called)
    simple = all(
        tracing.is_module(upstream, node, (_ConvNd, *POOLS))
        or tracing.is_norm(upstream, node)
        or tracing.is_pass_through(upstream, node)
        or tracing.is_activation(upstream, node)
        for node in called
    )
    return simple and convolutions <= 1
