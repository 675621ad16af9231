"""One's own networks, as ``factory:package.module:function``: a callable without arguments that returns a module.

Importing a module runs its code. The command line imports what a person names with ``--network``. Workers and
``filterfarm quality`` import what the setting FILTERFARM_ALLOW_FACTORIES permits, which their callers check.
"""

import difflib
import importlib
import sys
from pathlib import Path

from torch import nn

from workers.contract.errors import BadNetwork, one_line

#: How addresses of factories begin.
PREFIX = "factory:"

#: Name of the parameters with which a factory returns its network.
AS_BUILT = "as built"


def create(address: str) -> nn.Module:
    """The network that the factory returns. Raises BadNetwork if there is no such factory, or it returns no module."""
    text = address.removeprefix(PREFIX)
    module_name, _, function = text.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), function)):
        raise BadNetwork(f"cannot read --network {text[:120]!r}; write package.module:function")
    # The last place that Python looks in, so that no file of the current folder precedes an installed package.
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the module's code raises
        raise BadNetwork(
            f"cannot import {module_name!r} for --network {text} ({_told(error)}); run this in the folder of the "
            "module, or install it"
        ) from error
    factory = getattr(module, function, None)
    if not callable(factory):
        near = difflib.get_close_matches(function, vars(module), n=2)
        hint = f"nearest: {', '.join(near)}" if near else "name a function that takes no arguments"
        raise BadNetwork(f"{module_name!r} has no function {function!r}; {hint}")
    try:
        network = factory()
    except Exception as error:  # whatever the factory raises
        raise BadNetwork(f"--network {text} raised {_told(error)}; it is called without arguments") from error
    if not isinstance(network, nn.Module):
        raise BadNetwork(
            f"--network {text} returned {type(network).__name__}, no torch.nn.Module; return the network itself"
        )
    return network


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error, 160)}"
