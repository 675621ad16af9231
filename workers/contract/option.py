"""How the command line sets one field of the recipe."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Option:
    """How the command line sets a field of the recipe. Type, range and default are those of the field."""

    #: the group of ``--help`` that shows it
    panel: Literal["Model and layers", "Objective", "Method", "Picture"]
    help: str
    #: name on the command line; empty: ``--`` and the field's name, with dashes
    flag: str = ""
    #: what a person writes where that is not the field's value: text, or a file, which the planner reads
    metavar: str = ""
    #: the values that a person chooses from where they are not those of the field
    choices: tuple[str, ...] = ()
    #: what help calls the default where the field has none or None
    default: str = ""

    @property
    def key(self) -> str:
        """The option's name among the options: ``--step-size`` is step_size."""
        return self.flag.removeprefix("--").replace("-", "_")
