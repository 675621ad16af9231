"""The command line option of a field of the recipe."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Option:
    """The command line option of a field of the recipe, which has its type, range and default."""

    #: group in ``--help``
    panel: Literal["Model and layers", "Objective", "Method", "Picture"]
    help: str
    #: name on the command line; empty: ``--`` and the field's name, with dashes
    flag: str = ""
    #: name of the value in help, if it is text or a file from which the planner makes the field's value
    metavar: str = ""
    #: values to choose from, if they are not those of the field
    choices: tuple[str, ...] = ()
    #: default in help, if the field's is None or computed
    default: str = ""

    @property
    def key(self) -> str:
        """Name as a Python identifier: ``--step-size`` is step_size."""
        return self.flag.removeprefix("--").replace("-", "_")
