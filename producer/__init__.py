"""The control plane: what a person runs. It needs no GPU.

``from producer import Job, run, submit`` is its Python API.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from producer.notebook.commands import run, submit
    from producer.notebook.job import Job

__all__ = ["Job", "run", "submit"]


def __getattr__(name: str) -> Any:
    """Load the API at its first use: the command line imports this package and needs none of it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from producer.notebook import commands, job

    return getattr(job if name == "Job" else commands, name)
