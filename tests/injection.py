"""Faults put into real processes without a hook in the code: a ``sitecustomize`` that those processes find first."""

import textwrap
from pathlib import Path

#: Runs before anything else in every Python process that inherits the path; only a spawned renderer is touched.
_RENDERER = """\
import sys

if "--multiprocessing-fork" in sys.orig_argv:
    import ctypes, os, resource, signal, time

    import torch
    import workers.rendering.render

    whole = workers.rendering.render.render_layer

    def render_layer(tap, layer, filters, recipe, device, *rest, **named):
{body}
        return whole(tap, layer, filters, recipe, device, *rest, **named)

    workers.rendering.render.render_layer = render_layer
"""


def into_renderer(folder: Path, body: str, *, everywhere: str = "") -> dict[str, str]:
    """Variables with which each renderer runs ``body`` before each batch, beside ``render_layer``'s arguments.

    ``everywhere`` is what each Python process runs first, renderer or not.
    """
    return into_python(folder, everywhere + _RENDERER.format(body=textwrap.indent(textwrap.dedent(body), " " * 8)))


def into_python(folder: Path, source: str) -> dict[str, str]:
    """Variables with which each Python process runs ``source`` first."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(source)
    return {"PYTHONPATH": str(folder)}
