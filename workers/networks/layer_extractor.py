"""A network cut at one layer: everything before it, and of the layer itself only the requested filters.

Of a last layer of 512 filters a batch of 16 tiles computes 16: the layer's weight rows are sliced, and with them every
per-channel parameter of the batch-norm and activation that follow it.
"""

import contextlib
import copy

import torch
from torch import fx, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd

from workers.contract.records import Kernels, Precision
from workers.networks import devices
from workers.networks import tracing as graphs
from workers.networks.fusion import FusedConvolutions
from workers.networks.gradient_override import GradientOverride, set_gradient_override, with_gradient_override
from workers.networks.subgraphs import part, subgraph


class LayerExtractor(nn.Module):
    """A frozen network up to one layer.

    ``LayerExtractor(model, graph, layer, tap)`` keeps references to the model's parameters and changes nothing
    in it. With ``precision`` bf16 it computes its convolutions in bfloat16 while autograd is on, from a copy of the
    parameters; under ``torch.no_grad``, where activations are evaluated, always in float32 (and not in TF32).
    Extractors of one network may share their ``fused`` convolutions.
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
        super().__init__()
        conv = graphs.find(model, graph, layer)
        chain = graphs.tapped(model, conv, tap)
        before = chain[:-1] if graphs.is_activation(model, chain[-1]) else chain
        upstream = subgraph(model, graph, upto=conv.all_input_nodes[0])
        #: whether no other convolution lies before the layer
        self.stem = not any(
            isinstance(upstream.get_submodule(node.target), _ConvNd)
            for node in upstream.graph.nodes
            if node.op == "call_module"
        )
        self._fused = fused or FusedConvolutions()
        self._unfused = upstream
        self._upstream = self._fused.optimize(upstream, "fp32")
        self.precision = precision
        self._upstream_bf16 = self._fused.optimize(upstream, "bf16") if precision == "bf16" else None
        self._overridden: fx.GraphModule | None = None
        self._conv: _ConvNd = model.get_submodule(layer)  # type: ignore[assignment]  # find() checked it
        #: whether each filter reads a single group of the channels before it
        self.grouped = self._conv.groups > 1
        #: the batch-norm, or nothing
        self._norm = part(model, before)
        #: the activation function, or nothing
        self._activation = part(model, chain[len(before) - 1 :])
        self.channels = self._conv.out_channels
        #: size of a picture -> of the layer's map
        self._map_px: dict[tuple[int, int], tuple[int, int]] = {}
        #: sizes of pictures that the network does not accept
        self._refused: set[tuple[int, int]] = set()
        #: (C,) bool: nothing can excite the filter, because its batch-norm never saw it vary or multiplies it away
        self.inert = _inert(graphs.norm_statistics(model, before), self.channels)

    def features(self, pictures: torch.Tensor, override: GradientOverride | None) -> torch.Tensor:
        """The layer's input, (B, C, H, W), for network input (B, 3, H, W); in bfloat16 if that is its precision.

        All channels that a filter reads may be inactive; a depthwise filter reads a single one. The picture then has a
        gradient only with an ``override``. The values are the same with and without.
        """
        if not torch.is_grad_enabled():
            return self._upstream(pictures)  # type: ignore[no-any-return]  # a GraphModule's output
        if self.precision == "bf16":
            pictures = pictures.to(torch.bfloat16)
        if override is None:
            return (self._upstream_bf16 or self._upstream)(pictures)  # type: ignore[no-any-return]
        if self._overridden is None:
            self._overridden = with_gradient_override(self._fused.optimize(self._unfused, self.precision, relus=False))
        set_gradient_override(self._overridden, override)
        return self._overridden(pictures)  # type: ignore[no-any-return]

    def map_px(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the layer's map for a picture of that size; computed once per size."""
        if (height, width) not in self._map_px:
            device = self._conv.weight.device
            first = torch.zeros(1, dtype=torch.int64, device=device)
            with torch.no_grad():
                maps = self.slice(first)(torch.zeros((1, 3, height, width), device=device))
            self._map_px[height, width] = int(maps.shape[1]), int(maps.shape[2])
        return self._map_px[height, width]

    def takes(self, height: int, width: int) -> bool:
        """Whether the network accepts pictures of that size up to the layer; window attention does not accept all."""
        if (height, width) not in self._refused:
            try:
                self.map_px(height, width)
            except (RuntimeError, AssertionError, ValueError) as error:
                if devices.is_full(error) or devices.has_failed(error):
                    raise
                self._refused.add((height, width))
        return (height, width) not in self._refused

    @property
    def kernels(self) -> Kernels:
        """The convolutions that tiles are rendered with: ``winograd`` if any before the layer is compiled."""
        upstream = self._upstream_bf16 or self._upstream
        compiled = any(getattr(module, "kernels", "") == "winograd" for module in upstream.modules())
        return "winograd" if compiled else "torch"

    def slice(self, filters: torch.Tensor) -> "FilterExtractor":
        """The network up to the maps of ``filters``: (B,) int64, one for each picture of the batch."""
        return FilterExtractor(self, filters)


#: A gain or variance below this is none: trained networks have them at exactly 0, or far above.
_INERT = 1e-6


class FilterExtractor:
    """The map of one chosen filter for each picture of a batch."""

    def __init__(self, extractor: LayerExtractor, filters: torch.Tensor) -> None:
        distinct, place = torch.unique(filters, return_inverse=True)
        self._extractor = extractor
        self._place = place
        self._weights = _rows(extractor._conv, distinct, extractor.channels)
        self._all, self._own = (
            (_rows(extractor._norm, which, extractor.channels), _rows(extractor._activation, which, extractor.channels))
            for which in (distinct, filters)
        )
        self._inputs, groups = _group_inputs(extractor._conv, distinct)
        #: has the network's parameters, which each call replaces by those above
        self._conv = copy.copy(extractor._conv)
        self._conv.groups = groups

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        """Maps (B, H', W') for network input (B, 3, H, W), both in the network's dtype; picture b sees filter b."""
        return self.both(pictures)[0]

    def both(
        self, pictures: torch.Tensor, override: GradientOverride | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same maps, and their pre-activations: (B, H', W') each."""
        with self._exactly():
            # The norm and activation see pictures as channels: each with its own filter's parameters.
            maps = self._convolved(pictures, override)
            maps = maps[torch.arange(len(maps), device=maps.device), self._place][None]
            after, before = self._followed(maps.to(pictures.dtype), *self._own)
        return after.squeeze(0), before.squeeze(0)

    def whole(
        self, pictures: torch.Tensor, override: GradientOverride | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The maps of all of the filters for each picture, after and before the activation function.

        (B, K, H', W') each, with the filters in ascending order and without repeats.
        """
        with self._exactly():
            return self._followed(self._convolved(pictures, override).to(pictures.dtype), *self._all)

    def _exactly(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if torch.is_grad_enabled() else devices.exact()

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
    """The module applied to maps, with ``tensors`` in place of its own; without any it is called directly: faster."""
    return functional_call(module, tensors, (maps,)) if tensors else module(maps)  # type: ignore[no-any-return]


def _inert(statistics: tuple[torch.Tensor, torch.Tensor] | None, channels: int) -> torch.Tensor:
    if statistics is None:
        return torch.zeros(channels, dtype=torch.bool)
    gain, variance = statistics
    return ((gain.abs() < _INERT) | (variance < _INERT)).cpu()


def _rows(module: nn.Module, filters: torch.Tensor, channels: int) -> dict[str, torch.Tensor]:
    """Every per-channel tensor of ``module``, cut down to the rows of ``filters``."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {
        name: tensor[filters.to(tensor.device)]
        for name, tensor in named
        if tensor.ndim > 0 and tensor.shape[0] == channels
    }


def _group_inputs(conv: _ConvNd, filters: torch.Tensor) -> tuple[torch.Tensor | None, int]:
    """The input channels that filters of a grouped convolution read, filter by filter, and the number of groups."""
    if conv.groups == 1:
        return None, 1
    per_group_in, per_group_out = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    first = filters // per_group_out * per_group_in
    inputs = first[:, None] + torch.arange(per_group_in, device=filters.device)  # (K, in channels per group)
    return inputs.flatten(), len(filters)
