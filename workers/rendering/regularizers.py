"""Penalties on pictures: total variation, L2 and blur."""

import torch

from workers.contract.recipe import Recipe


def is_regularised(recipe: Recipe) -> bool:
    """True if the recipe has a penalty with a weight above 0."""
    return recipe.total_variation + recipe.l2 + recipe.blur > 0


def penalty(pictures: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """(B,) penalty of pictures (B, C, H, W) in 0..255, with the recipe's weights.

    All terms are means over a picture scaled to 0..1, so that a weight means the same at every size. Total variation is
    the mean difference of neighbours; L2 is the mean squared distance from grey; blur is the mean square of what a 3 x
    3 blur removes. Source: Lucid's ``regularizers.py`` and ``blur_input_each_step``, which take sums.
    """
    x = pictures / 255.0
    result = x.new_zeros(len(x))
    if recipe.total_variation:
        down, right = (x[:, :, 1:] - x[:, :, :-1]).abs(), (x[..., 1:] - x[..., :-1]).abs()
        result = result + recipe.total_variation * (down.mean(dim=(1, 2, 3)) + right.mean(dim=(1, 2, 3)))
    if recipe.l2:
        result = result + recipe.l2 * (x - 0.5).square().mean(dim=(1, 2, 3))
    if recipe.blur:
        blurred = torch.nn.functional.avg_pool2d(x, 3, stride=1)
        result = result + recipe.blur * (x[:, :, 1:-1, 1:-1] - blurred).square().mean(dim=(1, 2, 3))
    return result
