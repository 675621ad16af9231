"""A network cut at one layer: everything before it, and of the layer itself only the filters that are asked for.

Of a last layer of 512 filters a batch of 16 tiles computes 16: its weight rows are sliced, and with them every
per-channel parameter of the batch-norm and activation behind it.
"""

import contextlib
import copy
from collections.abc import Callable

import torch
from torch import fx, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd

from workers.contract.records import Precision
from workers.kernels import amx
from workers.networks import devices
from workers.networks import tracing as graphs
from workers.networks.fusion import FusedConvolutions, parted
from workers.networks.gradient_override import GradientOverride, leaking, set_gradient_override
from workers.networks.subgraphs import part, subgraph


class LayerExtractor(nn.Module):
    """A frozen network up to one layer.

    ``LayerExtractor(model, graph, layer, tap)`` keeps references to the model's parameters and changes nothing
    in it. With ``precision`` bf16 it computes its convolutions in bfloat16 wherever autograd is on, from a copy of what
    it needs; under ``torch.no_grad``, where values are only looked at, in float32 as ever (and not in TF32).
    Extractors of one network may share their ``kernels``.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: fx.Graph,
        layer: str,
        tap: str,
        precision: Precision = "fp32",
        kernels: FusedConvolutions | None = None,
    ) -> None:
        super().__init__()
        conv = graphs.find(model, graph, layer)
        chain = graphs.tapped(model, conv, tap)
        before = chain[:-1] if graphs.is_activation(model, chain[-1]) else chain
        trunk = subgraph(model, graph, upto=conv.all_input_nodes[0])
        #: whether no other convolution lies before the layer
        self.stem = not any(
            isinstance(trunk.get_submodule(node.target), _ConvNd)
            for node in trunk.graph.nodes
            if node.op == "call_module"
        )
        self._kernels = kernels or FusedConvolutions()
        self._slow_trunk = trunk
        self._trunk = self._kernels.optimize(trunk, "fp32")
        self.precision = precision
        self._half = self._kernels.optimize(trunk, "bf16") if precision == "bf16" else None
        #: the same in two, where a filter alone may follow its last convolution in one
        self._parted = None if self._half is None else parted(self._half)
        self._leaky: fx.GraphModule | None = None
        self._conv: _ConvNd = model.get_submodule(layer)  # type: ignore[assignment]  # find() checked it
        #: whether each filter sees but one group of the channels before it
        self.grouped = self._conv.groups > 1
        #: the batch-norm, or nothing
        self._norm = part(model, before)
        #: the activation function, or nothing
        self._activation = part(model, chain[len(before) - 1 :])
        self.channels = self._conv.out_channels
        #: size of a picture -> of the layer's map
        self._map_px: dict[tuple[int, int], tuple[int, int]] = {}
        #: sizes of pictures that the network does not take
        self._refused: set[tuple[int, int]] = set()
        #: (C,) bool: nothing can excite the filter, because its batch-norm never saw it vary or multiplies it away
        self.inert = _inert(graphs.norm_statistics(model, before), self.channels)

    def features(self, pictures: torch.Tensor, leak: GradientOverride | None) -> torch.Tensor:
        """What the layer is fed, in bfloat16 where that is what it is computed in.

        A filter may see nothing but channels that sleep, as a depthwise one does, which sees one: then nothing at all
        reaches the picture unless the network leaks. The values are the same either way.
        """
        if not torch.is_grad_enabled():
            return self._trunk(pictures)  # type: ignore[no-any-return]  # a GraphModule's output
        if self.precision == "bf16":
            pictures = pictures.to(torch.bfloat16)
        if leak is None:
            return (self._half or self._trunk)(pictures)  # type: ignore[no-any-return]
        if self._leaky is None:
            self._leaky = leaking(self._kernels.optimize(self._slow_trunk, self.precision, relus=False))
        set_gradient_override(self._leaky, leak)
        return self._leaky(pictures)  # type: ignore[no-any-return]

    def map_px(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the layer's map for a picture of that size; found out once."""
        if (height, width) not in self._map_px:
            device = self._conv.weight.device
            first = torch.zeros(1, dtype=torch.int64, device=device)
            with torch.no_grad():
                maps = self.slice(first)(torch.zeros((1, 3, height, width), device=device))
            self._map_px[height, width] = int(maps.shape[1]), int(maps.shape[2])
        return self._map_px[height, width]

    def takes(self, height: int, width: int) -> bool:
        """Whether the network takes pictures of that size as far as the layer; windows of attention do not take all."""
        if (height, width) not in self._refused:
            try:
                self.map_px(height, width)
            except (RuntimeError, AssertionError, ValueError) as error:
                if devices.is_full(error) or devices.has_failed(error):
                    raise
                self._refused.add((height, width))
        return (height, width) not in self._refused

    def of_each(self, filters: torch.Tensor) -> Callable[[torch.Tensor, GradientOverride | None], torch.Tensor] | None:
        """What makes of pictures (B, 3, H, W) the map of one filter for each, (B, H', W') float32; in bfloat16, where
        compiled code does not compute the others' filters for each picture too.
        """
        conv = self._conv
        if self._half is None or not amx.suits(conv):
            return None
        own = amx.AmxConv(conv).of_each(filters)
        body, last = self._parted or (self._half, nn.Identity())
        fused = own.behind(last) if own.follows(last) else None
        bias = None if conv.bias is None else conv.bias[filters, None, None]

        def maps(pictures: torch.Tensor, leak: GradientOverride | None) -> torch.Tensor:
            if fused is None or leak is not None:
                made = own(self.features(pictures, leak))
            else:
                made = fused(body(pictures.to(torch.bfloat16)))
            alone: torch.Tensor = made.squeeze(1).float()
            return alone if bias is None else alone + bias

        return maps

    def slice(self, filters: torch.Tensor) -> "FilterExtractor":
        """The network up to the maps of ``filters``: (B,) int64, one for each picture of the batch."""
        return FilterExtractor(self, filters)


#: A gain or variance below this is none: trained networks have them at exactly 0, or far above.
_INERT = 1e-6


class FilterExtractor:
    """The map of one chosen filter for each picture of a batch."""

    def __init__(self, tap: LayerExtractor, filters: torch.Tensor) -> None:
        distinct, place = torch.unique(filters, return_inverse=True)
        self._tap = tap
        self._place = place
        self._weights = _rows(tap._conv, distinct, tap.channels)
        self._all, self._own = (
            (_rows(tap._norm, which, tap.channels), _rows(tap._activation, which, tap.channels))
            for which in (distinct, filters)
        )
        self._inputs, groups = _group_inputs(tap._conv, distinct)
        #: with the network's parameters in it, in whose place come those above
        self._conv = copy.copy(tap._conv)
        self._conv.groups = groups
        self._alone = tap.of_each(filters)

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        """Maps (B, H', W') for network input (B, 3, H, W), both in the network's dtype; picture b sees filter b."""
        return self.both(pictures)[0]

    def both(self, pictures: torch.Tensor, leak: GradientOverride | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The same maps, and what they were before the activation function: (B, H', W') each."""
        with self._exactly():
            # To what follows, pictures are channels: each with its own filter's parameters.
            if self._alone is not None and torch.is_grad_enabled():
                maps = self._alone(pictures, leak)[None]
            else:
                maps = self._convolved(pictures, leak)
                maps = maps[torch.arange(len(maps), device=maps.device), self._place][None]
            after, before = self._followed(maps.to(pictures.dtype), *self._own)
        return after.squeeze(0), before.squeeze(0)

    def whole(self, pictures: torch.Tensor, leak: GradientOverride | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The maps of all of the filters for each picture, after and before the activation function.

        (B, K, H', W') each, with the filters in ascending order and without repeats.
        """
        with self._exactly():
            return self._followed(self._convolved(pictures, leak).to(pictures.dtype), *self._all)

    def _exactly(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if torch.is_grad_enabled() else devices.exact()

    def _convolved(self, pictures: torch.Tensor, leak: GradientOverride | None) -> torch.Tensor:
        features = self._tap.features(pictures, leak)
        if self._inputs is not None:
            features = features[:, self._inputs]
        weights = {name: tensor.to(features.dtype) for name, tensor in self._weights.items()}
        return functional_call(self._conv, weights, (features,))  # type: ignore[no-any-return]

    def _followed(
        self, maps: torch.Tensor, norm: dict[str, torch.Tensor], activation: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer's maps after and before its activation function."""
        before = _called(self._tap._norm, norm, maps)
        # A copy, because an activation may work in place.
        return _called(self._tap._activation, activation, before.clone()), before


def _called(module: nn.Module, tensors: dict[str, torch.Tensor], maps: torch.Tensor) -> torch.Tensor:
    """What a module makes of maps with these in place of its own tensors, or, which is faster, as it is."""
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
    """Of a grouped convolution, the input channels that the filters read, filter by filter, and the group count."""
    if conv.groups == 1:
        return None, 1
    per_group_in, per_group_out = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    first = filters // per_group_out * per_group_in
    inputs = first[:, None] + torch.arange(per_group_in, device=filters.device)  # (K, in channels per group)
    return inputs.flatten(), len(filters)
