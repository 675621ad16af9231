"""The job options of the command line, before validation."""

import difflib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from workers.contract import recipe
from workers.contract.errors import BadOption

#: Names of the options that set fields of the recipe, such as ``step_size`` and ``size``.
RECIPE_OPTIONS = frozenset(option.key for option in recipe.options().values())


@dataclass(frozen=True, kw_only=True)
class Options:
    """The job options of the command line, not validated."""

    model: str
    weights: str | None = None
    layers: str = "all"
    filters: str = "all"
    classes: Path | None = None
    preset: str | None = None
    grid: str = "auto"
    #: pixels
    margin: int = 5
    labels: bool = False
    #: option of the recipe -> value, if given: precision="fp32", size="96x160", tv=0.1
    recipe: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def make(cls, **values: Any) -> "Options":
        """Make Options from keyword arguments, as the command line passes them. None: the option was not given.

        Raises BadOption, with the most similar names, for an option that does not exist.
        """
        given = {name: value for name, value in values.items() if value is not None}
        own = {entry.name for entry in fields(cls)} - {"recipe"}
        for name in sorted(given.keys() - own - RECIPE_OPTIONS):
            near = difflib.get_close_matches(name, sorted(own | RECIPE_OPTIONS), n=3)
            hint = f"nearest: {', '.join(near)} " if near else ""
            raise BadOption(f"no option {name[:40]!r}; {hint}('filterfarm run --help' lists all)")
        return cls(
            **{name: value for name, value in given.items() if name in own},
            recipe={name: value for name, value in given.items() if name in RECIPE_OPTIONS},
        )
