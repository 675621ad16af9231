"""Networks that have no name of filterfarm's own, and their addresses:
``timm:NAME``, ``factory:MODULE:NAME``, ``pt2:FILE``.

An address is one text. A job stores its two parts, and a name made of it, which its id begins with.
"""

import re
from typing import Annotated, Literal, get_args

from pydantic import Field

from workers.contract.frozen import Frozen

Source = Literal["timm", "factory", "pt2"]

#: Longest name of a network in a job's id, which method and hash follow.
_MOST_LETTERS = 96


class Network(Frozen):
    """Where a network comes from."""

    source: Source
    #: timm: its name there. factory: ``package.module:function``. pt2: name of the file, whose SHA-256 is the weights'
    name: Annotated[str, Field(max_length=300, pattern=r"^[^\x00-\x20\x7f][^\x00-\x1f\x7f]*$")]

    @property
    def address(self) -> str:
        """The text that names it on the command line and in the registry."""
        return f"{self.source}:{self.name}"


def split_address(address: str) -> tuple[str, Network | None]:
    """The name of a network in ids, and where it comes from; None for one of filterfarm's own.

    The name has a hyphen for whatever a name of :mod:`workers.contract.keys` may not have:
    ``timm:hf-hub:a/b`` is ``timm-hf-hub-a-b``. Raises ValueError for an address that no job can store.
    """
    source, colon, name = address.partition(":")
    if not colon or source not in get_args(Source):
        return address, None
    if source == "pt2":
        name = name.rpartition("/")[2]  # the folder is this machine's
    text = address if source == "timm" else name
    network = Network(source=source, name=name)  # type: ignore[arg-type]  # one of Source
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip(".-")[:_MOST_LETTERS] or source, network
