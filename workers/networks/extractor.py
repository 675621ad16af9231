"""The part of a frozen network before a layer, in the precision and with the gradients that rendering asks for."""

import contextlib
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import fx, nn

from workers.contract.records import Kernels, Precision
from workers.networks import devices, tracing
from workers.networks.fusion import FusedConvolutions
from workers.networks.gradient_override import GradientOverride, set_gradient_override, with_gradient_override


class Slice(ABC):
    """The maps of chosen units of a layer."""

    @abstractmethod
    def both(
        self, pictures: torch.Tensor, override: GradientOverride | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The maps and their pre-activations, (B, H', W') each; map b is that of unit b for picture b."""

    @abstractmethod
    def whole(
        self, pictures: torch.Tensor, override: GradientOverride | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The maps of all units for each picture, and their pre-activations.

        (B, K, H', W') each; the K units are in ascending order and without repeats.
        """

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        """Maps (B, H', W') for network input (B, 3, H, W), in its dtype; map b is that of unit b for picture b."""
        return self.both(pictures)[0]


class Extractor(nn.Module, ABC):
    """A frozen network up to one layer.

    The model's parameters are shared and unchanged. With ``precision`` "bf16", convolutions use a bfloat16 copy of them
    while autograd is on; under ``torch.no_grad``, when activations are recorded, everything is float32 without TF32.
    Extractors of one network may share their ``fused`` convolutions.
    """

    #: number of units
    channels: int
    #: True if the field of view is that of one convolution at most
    stem: bool
    #: True if each unit reads only one group of the input channels
    grouped: bool = False
    #: (C,) bool: no picture can excite the unit
    inert: torch.Tensor

    def __init__(
        self,
        upstream: fx.GraphModule,
        device: torch.device,
        precision: Precision = "fp32",
        fused: FusedConvolutions | None = None,
    ) -> None:
        super().__init__()
        self._fused = fused or FusedConvolutions()
        self._unfused = upstream
        self._input_channels = tracing.input_channels(upstream.graph)
        self._upstream = self._fused.optimize(upstream, "fp32")
        self.precision = precision
        self._upstream_bf16 = self._fused.optimize(upstream, "bf16") if precision == "bf16" else None
        self._overridden: fx.GraphModule | None = None
        self.device = device
        #: (height, width) of a picture -> of the layer's map
        self._map_px: dict[tuple[int, int], tuple[int, int]] = {}
        #: sizes of pictures, (height, width), that the network does not accept
        self._refused: set[tuple[int, int]] = set()

    @abstractmethod
    def slice(self, filters: torch.Tensor) -> Slice:
        """The extractor of ``filters``, (B,) int64: one for each picture of the batch."""

    def features(self, pictures: torch.Tensor, override: GradientOverride | None) -> Any:
        """The output of the part, for network input (B, 3, H, W); in bfloat16 if that is its precision.

        If all channels that a filter reads are inactive (a depthwise filter reads only one), the picture has a gradient
        only with an ``override``. An override does not change values.
        """
        # Not called as modules: those print a traceback for a size that the network does not accept.
        if not torch.is_grad_enabled():
            return self._upstream.forward(pictures)
        if self.precision == "bf16":
            pictures = pictures.to(torch.bfloat16)
        if override is None:
            return (self._upstream_bf16 or self._upstream).forward(pictures)
        if self._overridden is None:
            self._overridden = with_gradient_override(self._fused.optimize(self._unfused, self.precision, relus=False))
        set_gradient_override(self._overridden, override)
        return self._overridden.forward(pictures)

    def map_px(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the layer's map for a picture of that size; computed once per size."""
        if (height, width) not in self._map_px:
            first = torch.zeros(1, dtype=torch.int64)
            with torch.no_grad():
                maps = self.slice(first)(torch.zeros((1, self._input_channels, height, width), device=self.device))
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


def exactly() -> contextlib.AbstractContextManager[None]:
    """Context of one evaluation: without TF32 unless it is for a gradient."""
    return contextlib.nullcontext() if torch.is_grad_enabled() else devices.exact()
