"""The recipes that tests render with: small pictures, few steps, and fp32 on every machine."""

from typing import Any

from workers.contract.recipe import Preprocess, Recipe

#: The network is fed pixels as they are, in 0..255.
RAW = Preprocess(name="raw")

#: The network is fed pixels in -1..1. Written out, because the registry that has it imports torch.
HALVES = Preprocess(name="model", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def recipe_of(method: str = "notebook", *, size_px: int = 20, **changes: Any) -> Recipe:
    """A short recipe of square pictures; ``changes`` are fields of the recipe and replace the defaults here."""
    fields = {
        "preprocess": HALVES,
        "height_px": size_px,
        "width_px": size_px,
        "steps": 6,
        "step_size": 1.0 if method == "notebook" else 0.025,
        "precision": "fp32",
        "seed": 3,
    }
    return Recipe.model_validate({"method": method, **fields, **changes})
