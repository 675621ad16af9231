"""A network cut at one layer: everything before it, and only the requested filters of the layer itself.

A batch of 16 tiles computes 16 of a layer's 512 filters: rows of its weights are selected, and of every per-channel
parameter of the batch-norm and activation function that follow it.
"""

import copy

import torch
from torch import fx, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd

from workers.contract.records import Precision
from workers.networks import dead_units, tracing
from workers.networks.extractor import Extractor, Slice, exactly
from workers.networks.fusion import FusedConvolutions
from workers.networks.gradient_override import GradientOverride
from workers.networks.subgraphs import part, subgraph


class LayerExtractor(Extractor):
    """A frozen network up to one convolution.

    ``graph`` is the model's trace, ``layer`` a dotted module name, ``tap`` "conv" or "activation". Raises UnknownLayer.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: fx.Graph,
        layer: str,
        tap: str,
        precision: Precision = "fp32",
        fused: FusedConvolutions | None = None,
    ) -> None:
        conv = tracing.find(model, graph, layer)
        chain = tracing.tapped(model, conv, tap)
        before = chain[:-1] if tracing.is_activation(model, chain[-1]) else chain
        upstream = subgraph(model, graph, upto=conv.all_input_nodes[0])
        module: _ConvNd = model.get_submodule(layer)  # type: ignore[assignment]  # find() checked it
        super().__init__(upstream, module.weight.device, precision, fused)
        #: True if no convolution precedes the layer
        self.stem = not any(
            isinstance(upstream.get_submodule(node.target), _ConvNd)
            for node in upstream.graph.nodes
            if node.op == "call_module"
        )
        self._conv = module
        #: True if each filter reads only one group of the input channels
        self.grouped = self._conv.groups > 1
        #: the batch-norm, or an identity
        self._norm = part(model, before)
        #: the activation function, or an identity
        self._activation = part(model, chain[len(before) - 1 :])
        self.channels = self._conv.out_channels
        self.inert = dead_units.inert(model, conv, tap)

    def slice(self, filters: torch.Tensor) -> "FilterExtractor":
        """The extractor of ``filters``, (B,) int64: one for each picture of the batch."""
        return FilterExtractor(self, filters)


class FilterExtractor(Slice):
    """The map of one chosen filter for each picture of a batch."""

    def __init__(self, extractor: LayerExtractor, filters: torch.Tensor) -> None:
        # On the host, so that the device is not waited for.
        distinct, place = torch.unique(filters.cpu(), return_inverse=True)
        device = extractor._conv.weight.device
        filters, distinct, place = filters.to(device), distinct.to(device), place.to(device)
        self._extractor = extractor
        self._place = place
        self._weights = _rows(extractor._conv, distinct, extractor.channels)
        self._all, self._own = (
            (_rows(extractor._norm, which, extractor.channels), _rows(extractor._activation, which, extractor.channels))
            for which in (distinct, filters)
        )
        self._inputs, groups = _group_inputs(extractor._conv, distinct)
        #: shares the network's parameters; each call substitutes the selected rows
        self._conv = copy.copy(extractor._conv)
        self._conv.groups = groups
        # timm's convolutions that standardise their weights read this number.
        self._conv.out_channels = len(distinct)

    def both(
        self, pictures: torch.Tensor, override: GradientOverride | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The maps and their pre-activations, (B, H', W') each."""
        with exactly():
            # Pictures become channels of the norm and activation, so that each has its own filter's parameters.
            maps = self._convolved(pictures, override)
            maps = maps[torch.arange(len(maps), device=maps.device), self._place][None]
            after, before = self._followed(maps.to(pictures.dtype), *self._own)
        return after.squeeze(0), before.squeeze(0)

    def whole(
        self, pictures: torch.Tensor, override: GradientOverride | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The maps of all ``filters`` for each picture, and their pre-activations.

        (B, K, H', W') each; the K filters are in ascending order and without repeats.
        """
        with exactly():
            return self._followed(self._convolved(pictures, override).to(pictures.dtype), *self._all)

    def _convolved(self, pictures: torch.Tensor, override: GradientOverride | None) -> torch.Tensor:
        features = self._extractor.features(pictures, override)
        if self._inputs is not None:
            features = features[:, self._inputs]
        weights = {name: tensor.to(features.dtype) for name, tensor in self._weights.items()}
        return functional_call(self._conv, weights, (features,))  # type: ignore[no-any-return]

    def _followed(
        self, maps: torch.Tensor, norm: dict[str, torch.Tensor], activation: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer's maps after and before its activation function."""
        before = _called(self._extractor._norm, norm, maps)
        # A copy, because an activation may work in place.
        return _called(self._extractor._activation, activation, before.clone()), before


def _called(module: nn.Module, tensors: dict[str, torch.Tensor], maps: torch.Tensor) -> torch.Tensor:
    """The module's output for maps, with ``tensors`` in place of its own. Without any, a direct call is faster."""
    return functional_call(module, tensors, (maps,)) if tensors else module(maps)  # type: ignore[no-any-return]


def _rows(module: nn.Module, filters: torch.Tensor, channels: int) -> dict[str, torch.Tensor]:
    """Name -> rows of ``filters`` of every per-channel tensor of ``module``."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {
        name: tensor[filters.to(tensor.device)]
        for name, tensor in named
        if tensor.ndim > 0 and tensor.shape[0] == channels
    }


def _group_inputs(conv: _ConvNd, filters: torch.Tensor) -> tuple[torch.Tensor | None, int]:
    """Input channels that K filters of a grouped convolution read, (K * channels per group,); number of groups."""
    if conv.groups == 1:
        return None, 1
    per_group_in, per_group_out = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    first = filters // per_group_out * per_group_in
    inputs = first[:, None] + torch.arange(per_group_in, device=filters.device)  # (K, in channels per group)
    return inputs.flatten(), len(filters)
