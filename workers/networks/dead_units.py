"""The units of a layer that no picture can excite because of the layer's own weights."""

import torch
from torch import fx, nn

from workers.networks import tracing

#: Gains and variances of batch-norms below this count as zero. In trained networks they are exactly 0 or far larger.
_ZERO = 1e-6


def is_known(model: nn.Module, node: fx.Node) -> bool:
    """True if the node calls a convolution or linear layer, whose weights tell which units are dead."""
    return tracing.is_module(model, node, (nn.Conv2d, nn.Linear))


def inert(model: nn.Module, node: fx.Node, tap: str) -> torch.Tensor:
    """(C,) bool on the host: the units of a convolution or linear layer that have one value for all pictures.

    Their own weights are zero, or a batch-norm up to ``tap`` has zero gain or zero variance for them. ``node`` calls
    the layer.
    """
    weight: torch.Tensor = model.get_submodule(str(node.target)).weight  # type: ignore[assignment]  # a layer's
    found = (weight == 0).flatten(1).all(dim=1)
    statistics = tracing.norm_statistics(model, tracing.tapped(model, node, tap))
    if statistics is not None and len(statistics[0]) == len(found):
        gain, variance = statistics
        found = found | (gain.abs() < _ZERO) | (variance < _ZERO)
    return _on_host(found)


def _on_host(mask: torch.Tensor) -> torch.Tensor:
    return mask.cpu()
