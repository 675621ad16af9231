"""Gradient ascent on pictures, batched, every picture on its own.

Pictures of a batch share the network and nothing else: losses are summed and never averaged, and each gradient is
normalised over its own (C, H, W). A tile from a batch of 16 is the tile rendered alone, up to float noise. (Only the
pictures of one tile, where it has several, are kept unlike each other.)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from workers.networks.gradient_override import GradientOverride
from workers.rendering.objectives import Objective
from workers.rendering.parametrization import Parametrization
from workers.rendering.transforms import Transforms

#: pictures (B, C, H, W) in 0..255 -> (B,) what counts against each
Penalty = Callable[[torch.Tensor], torch.Tensor]

#: Called after each step with its number, from 1, and a function that gives the pictures as they are then.
Album = Callable[[int, Callable[[], torch.Tensor]], None]

#: Keeps the gradient from being divided by nothing: the notebook's, and Keras's, which its script of 2019 takes.
NOTEBOOK_EPSILON, OCTAVE_EPSILON = 1e-5, 1e-7

#: Adam's decay rates, for the gradient and for its square. The usual 0.9 and 0.999 remember much that is long past in
#: an ascent of 64 steps, each with another view.
_BETAS = 0.5, 0.95

#: The share of the steps, the last ones, in which a picture climbs its map and nothing else, and slower with each step
#: down to so much of the rate: a step of full length leaves it beside the top, which others' tiles may then beat it to.
#: Every other one of these steps sees the tile as it will be saved: it may be better from there than it is from each of
#: its views, but with nothing else to see it would be worse from them.
_LAST, _SLOWEST = 0.25, 0.1

#: How much a new start counts its map's standard deviation at first, in units of the map.
_CONTRAST = 3.0

#: How wide a soft activation function's bend is, in units of the standard deviation of what it is applied to.
_SOFTNESS = 2.0

#: How much being like the others of its tile counts against a picture, in units of its own activation.
_UNLIKE = 2.0


@dataclass(frozen=True, kw_only=True)
class Climbed:
    """What an ascent ends with; every tensor is on the device of the pictures."""

    #: (B, C, H, W) float32 in 0..255, give or take what the notebook's method does with them
    pictures: torch.Tensor
    #: (B,) mean of each picture's own map, on the start image and on the final one
    start_activation: torch.Tensor
    activation: torch.Tensor
    #: (B,) bool: the map was zero everywhere on the start image
    asleep: torch.Tensor
    #: (B,) bool: it took a gradient through sleeping channels to move it
    leaked: torch.Tensor
    #: (B,) bool: the gradient was not zero in at least one step
    moved: torch.Tensor
    #: (B,) bool: most of what the final map is made from is one value: what the filter sees does not change any more
    stuck: torch.Tensor


def notebook_ascent(
    watch: "Watch", start: torch.Tensor, *, steps: int, step_size: float, epsilon: float = NOTEBOOK_EPSILON,
    album: Album | None = None,
) -> torch.Tensor:  # fmt: skip
    """Climb from ``start``, (B, C, H, W) float32 in 0..255; returns the pictures at the end.

    Source: F. Chollet, "Deep Learning with Python", notebook 5.4, ``generate_pattern``:
    ``grads /= (K.sqrt(K.mean(K.square(grads))) + 1e-5)``, then ``input_img_data += grads_value * step``.
    """
    pictures = start.clone(memory_format=torch.preserve_format)
    for step in range(1, steps + 1):
        variable = pictures.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(watch.loss(variable).sum(), variable)
        watch.note(gradient)
        # The notebook's would drown the small gradients that wake a filter.
        floor = torch.where(watch.redirected, 1e-20, epsilon)[:, None, None, None]
        pictures.addcdiv_(gradient, rms(gradient) + floor, value=step_size)
        if album is not None:
            album(step, pictures.detach)
    return pictures


def rms(gradient: torch.Tensor) -> torch.Tensor:
    """(B, 1, 1, 1) root of the mean square of each picture's gradient, (B, C, H, W): in one pass over it."""
    length: torch.Tensor = torch.linalg.vector_norm(gradient, dim=(1, 2, 3), keepdim=True)
    return length / math.sqrt(gradient[0].numel())


def canvas_ascent(
    watch: "Watch",
    canvas: Parametrization,
    views: Transforms,
    *,
    steps: int,
    learning_rate: float,
    album: Album | None = None,
) -> torch.Tensor:
    """Climb over the canvas's coefficients, with Adam, each step from another view; returns the tiles at the end.

    Of the last steps every other one, the very last among them, is of the tile itself.

    Source: Lucid's ``render_vis`` (C. Olah, A. Mordvintsev, L. Schubert, "Feature Visualization", Distill 2017).
    """
    # Adam keeps its moments per coefficient, so pictures of a batch do not meet in it.
    optimiser = torch.optim.Adam([canvas.coefficients], lr=learning_rate, betas=_BETAS)
    for step in range(1, steps + 1):
        left = 1.0 - (step - 1) / steps
        optimiser.param_groups[0]["lr"] = learning_rate * min(1.0, max(_SLOWEST, left / _LAST))
        early = math.sqrt(max(0.0, (left - _LAST) / (1.0 - _LAST)))
        straight = left <= _LAST and (steps - step) % 2 == 0
        seen = canvas.tiles() if straight else views.of(canvas.whole(), step - 1)
        loss = watch.loss(seen, early=early)
        (gradient,) = torch.autograd.grad(loss.sum(), canvas.coefficients)
        watch.note(gradient)
        canvas.coefficients.grad = -gradient
        optimiser.step()
        if album is not None:
            with torch.no_grad():
                album(step, canvas.tiles)
    with torch.no_grad():
        return canvas.tiles()


class Watch:
    """What each picture of a batch climbs, and which need help to climb at all.

    With rescue, a picture whose map is zero on the start image climbs what its filter is before the activation
    function, until the map is zero no more; the others are untouched by that. One that has no gradient in the first
    step (its map is the same everywhere, though not zero) does so from then on. One that has none even then sees its
    network leak: see GradientOverride. ``anew`` adds the map's middle to what is climbed, which wakes one unit
    where the mean wakes none: a depthwise kernel of a negative sum would have all of its channel asleep, but for that.

    ``strict``: what lives climbs its map and nothing else. Otherwise it climbs what its filter is before the activation
    function at first, and its map in the end: a unit that is asleep or saturated has no gradient of its own, and a map
    that is awake in one corner would never spread. A new start (``anew``) climbs the map's contrast instead, because
    the first one may have come to rest where nothing has any. And a picture that falls asleep on its way, as the first
    large step of an optimiser may send it, is woken as well.

    ``leaky``: for filters that see one channel alone. They are soon left with nothing where that is put to sleep or
    driven to its ceiling, so the network lets through what helps, see GradientOverride, and ever less of it,
    because the picture is for the network as it is. And where the kernel's sum is negative, the mean before
    the activation function is highest
    where all of the channel sleeps. So they climb a soft activation function at first, which counts places that are
    nearly awake more.
    """

    def __init__(
        self,
        objective: Objective,
        start: torch.Tensor,
        *,
        rescue: bool,
        anew: bool,
        strict: bool = True,
        leaky: bool = False,
        penalty: Penalty | None = None,
    ) -> None:
        self._objective, self._rescue, self._anew, self._penalty = objective, rescue, anew, penalty
        self._strict, self._leaky = strict, leaky
        with torch.no_grad():
            seen = objective(start, None)
        self._start_activation, self._asleep = seen.after.mean(dim=(1, 2)), _is_zero(seen.after)
        nobody = torch.zeros_like(self._asleep)
        self._moved, self._flat = nobody, nobody
        # Where what helps leaks anyway, a gradient of nothing does not tell who needs all of it.
        self._leaking = _is_stuck(seen.before) & (leaky and rescue)
        #: (B,) bool: climbs what it is before the activation function, in this step
        self.redirected = nobody
        self._begun = False
        #: the gradient of what is climbed where something counts against it as well
        self._pull: torch.Tensor | None = None

    def loss(self, pictures: torch.Tensor, *, early: float = 0.0) -> torch.Tensor:
        """(B,) what is climbed, for the pictures as they are seen in this step; ``early`` falls from 1 to 0."""
        leaks = self._leaky or bool(self._leaking.any())
        seen = self._objective(
            pictures, GradientOverride(self._leaking, helpful=early * self._leaky) if leaks else None
        )
        if self._rescue:
            sleeping = _is_zero(seen.after)
            self.redirected = (self._asleep & sleeping if self._strict else sleeping) | self._flat
        waking = seen.before.mean(dim=(1, 2))
        if self._anew:
            waking = waking + seen.before[:, seen.before.shape[1] // 2, seen.before.shape[2] // 2]
        climbed = torch.where(self.redirected, waking, seen.after.mean(dim=(1, 2)))
        if not self._strict:
            if self._anew:
                # A little more than the variance, because the root of 0 has no slope.
                aid = _CONTRAST * (seen.before.var(dim=(1, 2), correction=0) + 1e-12).sqrt()
            elif self._leaky:
                aid = (_softened(seen.before) - seen.before.relu()).mean(dim=(1, 2))
            else:
                aid = (seen.before - seen.after).mean(dim=(1, 2))
            # Not for what is left asleep because nobody asked for its rescue.
            climbed = climbed + early * aid * (self._rescue | ~self._asleep) * ~self.redirected
        if self._penalty is None and seen.likeness is None:
            return climbed
        self._pull = None
        if climbed.requires_grad and (not self._begun or bool(self.redirected.any())):
            # Who is in need of help is asked of what is climbed alone: a penalty has a gradient everywhere.
            (self._pull,) = torch.autograd.grad(climbed.sum(), pictures, retain_graph=True)
        # In units of the activation, which differ by orders of magnitude from layer to layer: a weight of 1 makes a
        # penalty of 1 count as much as all of the activation.
        against = climbed.detach().abs()
        if self._penalty is not None:
            climbed = climbed - against * self._penalty(pictures)
        if seen.likeness is not None:
            climbed = climbed - against * _UNLIKE * seen.likeness
        return climbed

    def note(self, gradient: torch.Tensor) -> None:
        """Look at the gradient of that loss, (B, ...)."""
        moves = ~_is_zero(gradient if self._pull is None else self._pull)
        self._moved = self._moved | moves
        if self._rescue:
            self._leaking = self._leaking | (self.redirected & ~moves)
            if not self._begun:
                self._flat = ~moves & ~self._asleep
        self._begun = True

    def climbed(self, pictures: torch.Tensor) -> Climbed:
        """The end of the ascent."""
        maps = self._objective(pictures, None)
        return Climbed(
            pictures=pictures,
            start_activation=self._start_activation,
            activation=maps.after.mean(dim=(1, 2)),
            asleep=self._asleep,
            leaked=self._leaking,
            moved=self._moved,
            stuck=_is_stuck(maps.before) & (not self._strict),
        )


def _softened(before: torch.Tensor) -> torch.Tensor:
    """Softplus of maps (B, H, W), as soft as each one's spread is wide."""
    spread = (before.detach().var(dim=(1, 2), correction=0, keepdim=True) + 1e-12).sqrt()
    return _SOFTNESS * spread * torch.nn.functional.softplus(before / (_SOFTNESS * spread))


def _is_stuck(before: torch.Tensor) -> torch.Tensor:
    """Whether most of a map is one and the same value, as where all that a filter sees is asleep or saturated."""
    flat = before.flatten(1)
    same = flat == flat.median(dim=1, keepdim=True).values
    return (same.float().mean(dim=1) > 0.5) & (flat.shape[1] > 1)


def _is_zero(values: torch.Tensor) -> torch.Tensor:
    """(B,) bool: whether all values of a picture, (B, ...), are 0; by their extremes, as booleans take far longer."""
    values, dims = values.detach(), tuple(range(1, values.ndim))
    return (values.amax(dims) == 0) & (values.amin(dims) == 0)
