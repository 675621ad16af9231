"""Injects faults into real processes without hooks in the code, by a ``sitecustomize`` module on their PYTHONPATH."""

import textwrap
from pathlib import Path

#: Runs first in every Python process that inherits the path. Only a spawned render process is changed.
_RENDERER = """\
import sys

if "--multiprocessing-fork" in sys.orig_argv:
    import ctypes, os, resource, signal, time

    import torch
    import workers.rendering.render

    original = workers.rendering.render.render_layer

    def render_layer(tap, layer, filters, recipe, device, *rest, **named):
{body}
        return original(tap, layer, filters, recipe, device, *rest, **named)

    workers.rendering.render.render_layer = render_layer
"""


def into_renderer(folder: Path, body: str, *, everywhere: str = "") -> dict[str, str]:
    """Environment in which each render process runs ``body`` before each batch, with ``render_layer``'s arguments.

    ``everywhere``: source that each Python process runs first.
    """
    return into_python(folder, everywhere + _RENDERER.format(body=textwrap.indent(textwrap.dedent(body), " " * 8)))


def into_python(folder: Path, source: str) -> dict[str, str]:
    """Environment in which each Python process runs ``source`` first."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(source)
    return {"PYTHONPATH": str(folder)}
