"""A network cut at one layer: everything before it, and only the requested filters of the layer itself.

A batch of 16 tiles computes 16 of a layer's 512 filters: rows of its weights are selected, and of every per-channel
parameter of the batch-norm and activation function that follow it.
"""

import contextlib
import copy

import torch
from torch import fx, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd

from workers.contract.records import Kernels, Precision
from workers.networks import devices, tracing
from workers.networks.fusion import FusedConvolutions
from workers.networks.gradient_override import GradientOverride, set_gradient_override, with_gradient_override
from workers.networks.subgraphs import part, subgraph


class LayerExtractor(nn.Module):
    """A frozen network up to one layer.

    ``graph`` is the model's trace, ``layer`` a dotted module name, ``tap`` "conv" or "activation". The model's
    parameters are shared and unchanged. With ``precision`` "bf16", convolutions use a bfloat16 copy of them while
    autograd is on; under ``torch.no_grad``, when activations are recorded, everything is float32 without TF32.
    Extractors of one network may share their ``fused`` convolutions. Raises UnknownLayer.
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
        conv = tracing.find(model, graph, layer)
        chain = tracing.tapped(model, conv, tap)
        before = chain[:-1] if tracing.is_activation(model, chain[-1]) else chain
        upstream = subgraph(model, graph, upto=conv.all_input_nodes[0])
        #: True if no convolution precedes the layer
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
        #: True if each filter reads only one group of the input channels
        self.grouped = self._conv.groups > 1
        #: the batch-norm, or an identity
        self._norm = part(model, before)
        #: the activation function, or an identity
        self._activation = part(model, chain[len(before) - 1 :])
        self.channels = self._conv.out_channels
        #: (height, width) of a picture -> of the layer's map
        self._map_px: dict[tuple[int, int], tuple[int, int]] = {}
        #: sizes of pictures, (height, width), that the network does not accept
        self._refused: set[tuple[int, int]] = set()
        #: (C,) bool: no picture can excite the filter, because its batch-norm has zero variance or zero gain
        self.inert = _inert(tracing.norm_statistics(model, before), self.channels)

    def features(self, pictures: torch.Tensor, override: GradientOverride | None) -> torch.Tensor:
        """The layer's input, (B, C, H, W), for network input (B, 3, H, W); in bfloat16 if that is its precision.

        If all channels that a filter reads are inactive (a depthwise filter reads only one), the picture has a gradient
        only with an ``override``. An override does not change values.
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
        """True if the network accepts pictures of that size up to the layer; window attention restricts sizes."""
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
        """The convolutions that render tiles: "winograd" if at least one before the layer is compiled, else "torch"."""
        upstream = self._upstream_bf16 or self._upstream
        compiled = any(getattr(module, "kernels", "") == "winograd" for module in upstream.modules())
        return "winograd" if compiled else "torch"

    def slice(self, filters: torch.Tensor) -> "FilterExtractor":
        """The extractor of ``filters``, (B,) int64: one for each picture of the batch."""
        return FilterExtractor(self, filters)


#: Gains and variances below this count as zero. In trained networks they are exactly 0 or far larger.
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
        #: shares the network's parameters; each call substitutes the selected rows
        self._conv = copy.copy(extractor._conv)
        self._conv.groups = groups

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        """Maps (B, H', W') for network input (B, 3, H, W), in its dtype; map b is filter b's of picture b."""
        return self.both(pictures)[0]

    def both(
        self, pictures: torch.Tensor, override: GradientOverride | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The maps and their pre-activations, (B, H', W') each."""
        with self._exactly():
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
    """The module's output for maps, with ``tensors`` in place of its own. Without any, a direct call is faster."""
    return functional_call(module, tensors, (maps,)) if tensors else module(maps)  # type: ignore[no-any-return]


def _inert(statistics: tuple[torch.Tensor, torch.Tensor] | None, channels: int) -> torch.Tensor:
    if statistics is None:
        return torch.zeros(channels, dtype=torch.bool)
    gain, variance = statistics
    return ((gain.abs() < _INERT) | (variance < _INERT)).cpu()


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
