"""Gradient ascent on pictures, batched, every picture on its own.

Pictures of a batch share the network and nothing else: losses are summed and never averaged, and each gradient is
normalised over its own (C, H, W). A tile from a batch of 16 is the tile rendered alone, up to float noise.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

#: pictures (B, 3, H, W) in 0..255 -> the maps (B, H', W') of each picture's own filter
Objective = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Climbed:
    """What an ascent ends with; every tensor is on the device of the pictures."""

    #: (B, 3, H, W) float32 in the pictures' units
    pictures: torch.Tensor
    #: (B,) mean of each picture's own map, before the first step and after the last
    start_activation: torch.Tensor
    activation: torch.Tensor
    #: (B,) bool: the gradient was not zero in at least one step
    moved: torch.Tensor


def notebook_ascent(maps: Objective, start: torch.Tensor, *, steps: int, step_size: float) -> Climbed:
    """Climb the mean of each picture's map from ``start``, (B, 3, H, W) float32 in 0..255.

    Source: F. Chollet, "Deep Learning with Python", notebook 5.4, ``generate_pattern``:
    ``grads /= (K.sqrt(K.mean(K.square(grads))) + 1e-5)``, then ``input_img_data += grads_value * step``.
    """
    pictures = start.clone(memory_format=torch.preserve_format)
    moved = torch.zeros(len(pictures), dtype=torch.bool, device=pictures.device)
    start_activation: torch.Tensor | None = None
    for _ in range(steps):
        activation, gradient = _gradient(maps, pictures)
        start_activation = activation if start_activation is None else start_activation
        rms = gradient.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        moved |= rms.flatten() > 0
        pictures += gradient / (rms + 1e-5) * step_size
    with torch.no_grad():
        activation = _mean(maps(pictures))
    if start_activation is None:
        start_activation = activation
    return Climbed(pictures=pictures, start_activation=start_activation, activation=activation, moved=moved)


def _gradient(maps: Objective, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B,) activations, and their gradient with respect to the pictures, (B, 3, H, W)."""
    pictures = pictures.detach().requires_grad_(True)
    activation = _mean(maps(pictures))
    (gradient,) = torch.autograd.grad(activation.sum(), pictures)
    return activation.detach(), gradient


def _mean(maps: torch.Tensor) -> torch.Tensor:
    """(B, H', W') -> (B,)"""
    return maps.mean(dim=(1, 2))
