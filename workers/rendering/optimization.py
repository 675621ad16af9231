"""Gradient ascent on batches of pictures; each picture is optimised independently.

Losses are summed over the batch, never averaged, and each gradient is normalised over its own (C, H, W). A tile from a
batch of 16 therefore equals the tile rendered alone, up to float rounding. Only the pictures of one tile interact,
through the diversity term.
"""

import math
from collections.abc import Callable

import torch

from workers.rendering.parametrization import Parametrization
from workers.rendering.rescue import AscentLoss
from workers.rendering.transforms import Transforms

#: Called after each step with the step number, from 1, and a function that returns the current pictures.
StepCallback = Callable[[int, Callable[[], torch.Tensor]], None]

#: Added to the gradient's RMS to avoid division by zero: the notebook's, and that of Keras's script of 2019.
NOTEBOOK_EPSILON, OCTAVE_EPSILON = 1e-5, 1e-7

#: Adam's decay rates for the gradient and its square. The usual 0.9 and 0.999 average over too many past steps for an
#: ascent of 64 steps with a different transform in each.
_BETAS = 0.5, 0.95

#: In the last quarter of the steps the objective is the activation map alone, and the learning rate falls linearly to
#: a tenth: full-length steps overshoot the maximum, and another filter's tile may then excite the filter more.
#: Every other one of these steps optimises the tile as it will be saved. That raises the saved tile's activation
#: beyond that of its transforms; without transforms in between, their activation would fall.
_FINAL_SHARE, _LOWEST_FACTOR = 0.25, 0.1


def notebook_ascent(
    ascent_loss: AscentLoss, start: torch.Tensor, *, steps: int, step_size: float, epsilon: float = NOTEBOOK_EPSILON,
    on_step: StepCallback | None = None,
) -> torch.Tensor:  # fmt: skip
    """Optimise pixels by their normalised gradient.

    ``start`` is (B, C, H, W) float32 in 0..255; returns the final pictures in the same shape, not clipped.

    Source: F. Chollet, "Deep Learning with Python", notebook 5.4, ``generate_pattern``:
    ``grads /= (K.sqrt(K.mean(K.square(grads))) + 1e-5)``, then ``input_img_data += grads_value * step``.
    """
    pictures = start.clone(memory_format=torch.preserve_format)
    for step in range(1, steps + 1):
        variable = pictures.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(ascent_loss.loss(variable).sum(), variable)
        ascent_loss.record_gradient(gradient)
        # The notebook's epsilon is larger than the small gradients of a dead filter's pre-activation.
        floor = torch.where(ascent_loss.redirected, 1e-20, epsilon)[:, None, None, None]
        pictures.addcdiv_(gradient, rms(gradient) + floor, value=step_size)
        if on_step is not None:
            on_step(step, pictures.detach)
    return pictures


def rms(gradient: torch.Tensor) -> torch.Tensor:
    """Root mean square of each picture's gradient (B, C, H, W), as (B, 1, 1, 1); reads the gradient once."""
    length: torch.Tensor = torch.linalg.vector_norm(gradient, dim=(1, 2, 3), keepdim=True)
    return length / math.sqrt(gradient[0].numel())


def parametrized_ascent(
    ascent_loss: AscentLoss,
    parametrization: Parametrization,
    transforms: Transforms,
    *,
    steps: int,
    learning_rate: float,
    on_step: StepCallback | None = None,
) -> torch.Tensor:
    """Optimise the parametrization's coefficients with Adam, with a new random transform in each step.

    Every other one of the last quarter of the steps, the very last included, optimises the tile without a transform.
    Returns the tiles, (B, C, H, W) float32 in 0..255.

    Source: Lucid's ``render_vis`` (C. Olah, A. Mordvintsev, L. Schubert, "Feature Visualization", Distill 2017).
    """
    # Adam's moments are per coefficient, so the pictures of a batch remain independent.
    optimiser = torch.optim.Adam([parametrization.coefficients], lr=learning_rate, betas=_BETAS)
    for step in range(1, steps + 1):
        left = 1.0 - (step - 1) / steps
        optimiser.param_groups[0]["lr"] = learning_rate * min(1.0, max(_LOWEST_FACTOR, left / _FINAL_SHARE))
        early = math.sqrt(max(0.0, (left - _FINAL_SHARE) / (1.0 - _FINAL_SHARE)))
        untransformed = left <= _FINAL_SHARE and (steps - step) % 2 == 0
        inputs = parametrization.tiles() if untransformed else transforms.apply(parametrization.whole(), step - 1)
        loss = ascent_loss.loss(inputs, early=early)
        (gradient,) = torch.autograd.grad(loss.sum(), parametrization.coefficients)
        ascent_loss.record_gradient(gradient)
        parametrization.coefficients.grad = -gradient
        optimiser.step()
        if on_step is not None:
            with torch.no_grad():
                on_step(step, parametrization.tiles)
    with torch.no_grad():
        return parametrization.tiles()
