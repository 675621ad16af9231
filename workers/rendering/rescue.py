"""The loss of an ascent, with the rescue of dead filters.

A filter whose activation is zero everywhere has a zero gradient as well. Three steps find one: optimise the
pre-activation, let gradients through dead ReLUs (see GradientOverride), restart from another seed (see render).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from workers.networks.gradient_override import GradientOverride
from workers.rendering.lagged_mask import LaggedMask
from workers.rendering.objectives import Objective

#: pictures (B, C, H, W) in 0..255 -> (B,) weighted sum of the regularizers
Penalty = Callable[[torch.Tensor], torch.Tensor]

#: Initial weight of the map's standard deviation in a restart, in units of the map.
_CONTRAST = 3.0

#: Width of the soft activation function's bend, in standard deviations of its input.
_SOFTNESS = 2.0

#: Weight of the similarity to the tile's other pictures, in units of the picture's own activation.
_SIMILARITY_WEIGHT = 2.0


@dataclass(frozen=True, kw_only=True)
class AscentResult:
    """The result of an ascent; every tensor is on the device of the pictures."""

    #: (B, C, H, W) float32 in 0..255; the notebook's method may exceed the range
    pictures: torch.Tensor
    #: (B,) mean of each picture's own map, on the start image and on the final one
    start_activation: torch.Tensor
    activation: torch.Tensor
    #: (B,) bool: the map was zero everywhere on the start image
    dead_at_start: torch.Tensor
    #: (B,) bool: the gradient override was needed
    overridden: torch.Tensor
    #: (B,) bool: the gradient was not zero in at least one step
    moved: torch.Tensor
    #: (B,) bool: most of the final pre-activation map is one value, because the filter's inputs are dead or saturated
    saturated: torch.Tensor


class AscentLoss:
    """The value each picture of a batch maximises, and the state of its rescue.

    With ``rescue``, a picture whose map is zero on the start image maximises its pre-activation until the map is no
    longer zero. The other pictures are not affected. A picture without a gradient in the first step, because its map is
    constant though not zero, maximises the pre-activation in all later steps. A picture without a gradient even then
    gets the gradient override. ``restarted`` adds the centre of the pre-activation map: a single unit may become
    active where the mean activates none. For a depthwise kernel with a negative sum, the mean alone is highest where
    the whole channel is inactive.

    ``map_only``: an active filter maximises its map and nothing else. Otherwise the objective starts as the
    pre-activation and ends as the map: an inactive or saturated unit has no gradient of its own, and a map that is
    active in one corner would never spread. A restart maximises the map's contrast instead of the pre-activation,
    because the first ascent may have ended where no unit has any. A picture whose map becomes zero during the ascent,
    as after a large first step of an optimiser, is rescued too.

    ``depthwise``: for filters that read a single channel. They soon have no gradient where that channel is inactive or
    saturated. The override therefore passes the gradients that increase the objective, with a weight that falls to
    zero, because the tile must excite the unmodified network. Where the kernel's sum is negative, the mean
    pre-activation is highest where the whole channel is inactive. The objective therefore starts as a soft activation
    function, which weighs nearly active positions more.
    """

    def __init__(
        self,
        objective: Objective,
        start: torch.Tensor,
        *,
        rescue: bool,
        restarted: bool,
        map_only: bool = True,
        depthwise: bool = False,
        penalty: Penalty | None = None,
    ) -> None:
        self._objective, self._rescue, self._restarted, self._penalty = objective, rescue, restarted, penalty
        self._map_only, self._depthwise = map_only, depthwise
        with torch.no_grad():
            response = objective(start, None)
        self._start_activation = response.activation.mean(dim=(1, 2))
        self._dead_at_start = _is_zero(response.activation)
        none = torch.zeros_like(self._dead_at_start)
        self._moved, self._flat = none, none
        # With the partial override of depthwise filters, a zero gradient does not show who needs the full one.
        self._overridden = _is_saturated(response.pre_activation) & (depthwise and rescue)
        self._known_overridden, self._known_redirected = LaggedMask(self._overridden), LaggedMask(none)
        #: (B,) bool: maximises its pre-activation in this step
        self.redirected = none
        #: (B,) bool: those of them of which the gradient of the objective is known
        self._judged = none
        self._first_step_done = False
        #: gradient of the objective without penalties, where there are any
        self._objective_gradient: torch.Tensor | None = None

    def loss(self, pictures: torch.Tensor, *, early: float = 0.0) -> torch.Tensor:
        """(B,) the value to maximise, for pictures (B, C, H, W) in 0..255; ``early`` falls from 1 to 0."""
        overridden = self._overridden if self._depthwise else self._known_overridden.read()
        response = self._objective(
            pictures, None if overridden is None else GradientOverride(overridden, helpful=early * self._depthwise)
        )
        activation, pre_activation = response.activation, response.pre_activation
        if self._rescue:
            dead = _is_zero(activation)
            self.redirected = (self._dead_at_start & dead if self._map_only else dead) | self._flat
        self._judged = self.redirected
        rescue_target = pre_activation.mean(dim=(1, 2))
        if self._restarted:
            centre = pre_activation[:, pre_activation.shape[1] // 2, pre_activation.shape[2] // 2]
            rescue_target = rescue_target + centre
        target = torch.where(self.redirected, rescue_target, activation.mean(dim=(1, 2)))
        if not self._map_only:
            if self._restarted:
                # The offset keeps the derivative of the root finite at zero variance.
                aid = _CONTRAST * (pre_activation.var(dim=(1, 2), correction=0) + 1e-12).sqrt()
            elif self._depthwise:
                aid = (_softened(pre_activation) - pre_activation.relu()).mean(dim=(1, 2))
            else:
                aid = (pre_activation - activation).mean(dim=(1, 2))
            # A dead filter gets no aid if rescue is switched off.
            target = target + early * aid * (self._rescue | ~self._dead_at_start) * ~self.redirected
        if self._penalty is None and response.similarity is None:
            return target
        self._objective_gradient = None
        self._known_redirected.push(self.redirected)
        known = self._known_redirected.read()
        if self._first_step_done:
            self._judged = torch.zeros_like(self.redirected) if known is None else self.redirected & known
        if target.requires_grad and (not self._first_step_done or known is not None):
            # A penalty has a gradient everywhere, so only the objective's own shows which pictures need help.
            (self._objective_gradient,) = torch.autograd.grad(target.sum(), pictures, retain_graph=True)
        # Activations differ by orders of magnitude between layers. In units of the activation, a penalty of 1 with a
        # weight of 1 counts as much as the whole activation.
        unit = target.detach().abs()
        if self._penalty is not None:
            target = target - unit * self._penalty(pictures)
        if response.similarity is not None:
            target = target - unit * _SIMILARITY_WEIGHT * response.similarity
        return target

    def record_gradient(self, gradient: torch.Tensor) -> None:
        """Update the rescue state from the gradient of the last loss, (B, ...)."""
        moves = ~_is_zero(gradient if self._objective_gradient is None else self._objective_gradient)
        self._moved = self._moved | moves
        if self._rescue:
            self._overridden = self._overridden | (self._judged & ~moves)
            if not self._depthwise:
                self._known_overridden.push(self._overridden)
            if not self._first_step_done:
                self._flat = ~moves & ~self._dead_at_start
        self._first_step_done = True

    def result(self, pictures: torch.Tensor) -> AscentResult:
        """The result of the ascent for its final pictures, (B, C, H, W) in 0..255."""
        response = self._objective(pictures, None)
        return AscentResult(
            pictures=pictures,
            start_activation=self._start_activation,
            activation=response.activation.mean(dim=(1, 2)),
            dead_at_start=self._dead_at_start,
            overridden=self._overridden,
            moved=self._moved,
            saturated=_is_saturated(response.pre_activation) & (not self._map_only),
        )


def _softened(maps: torch.Tensor) -> torch.Tensor:
    """Softplus of pre-activation maps (B, H, W), each scaled by its own standard deviation."""
    spread = (maps.detach().var(dim=(1, 2), correction=0, keepdim=True) + 1e-12).sqrt()
    return _SOFTNESS * spread * torch.nn.functional.softplus(maps / (_SOFTNESS * spread))


def _is_saturated(maps: torch.Tensor) -> torch.Tensor:
    """(B,) bool: more than half of a map (B, H, W) is one value, as where the filter's inputs are dead or saturated."""
    flat = maps.flatten(1)
    same = flat == flat.median(dim=1, keepdim=True).values
    return (same.float().mean(dim=1) > 0.5) & (flat.shape[1] > 1)


def _is_zero(values: torch.Tensor) -> torch.Tensor:
    """(B,) bool: all values (B, ...) of a picture are 0. Compares the extremes: boolean reductions are far slower."""
    values, dims = values.detach(), tuple(range(1, values.ndim))
    return (values.amax(dims) == 0) & (values.amin(dims) == 0)
