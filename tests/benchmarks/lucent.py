"""Lucent (github.com/greentfrapp/lucent) with its own defaults, to be compared with. It is no dependency of ours.

``make bench-quality`` installs it into ``build/lucent``, a folder of its own and without what it asks for: its newest
release, of 2021, wants a kornia of 2020 and test tools among much else.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx, nn
from torchvision.transforms import Normalize

from workers.contract.recipe import Preprocess
from workers.networks import tracing as graphs
from workers.networks.subgraphs import subgraph

if TYPE_CHECKING:
    from numpy.typing import NDArray

FOLDER = Path(__file__).parents[2] / "build" / "lucent"


class _Cut(nn.Module):
    """The network up to one layer's tap, so that Lucent need not run the rest; its maps are the module ``maps``."""

    def __init__(self, model: nn.Module, graph: fx.Graph, layer: str, tap: str) -> None:
        super().__init__()
        self.maps = subgraph(model, graph, upto=graphs.tapped(model, graphs.find(model, graph, layer), tap)[-1])

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Network input (B, 3, H, W) to maps (B, C, H', W')."""
        # A copy, because Lucent keeps what a module has returned.
        return self.maps(pictures).clone()  # type: ignore[no-any-return]


class Lucent:
    """One layer as Lucent renders it: 128 px, Fourier coefficients, decorrelated colour, Adam 0.05, its transforms.

    What it is not left to do is the preprocessing, which it would do as torchvision's networks want it, and not as
    this one does. Pictures of a batch share nothing but the transforms' draws, as with Lucent's own ``batch=``.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph, layer: str, tap: str, preprocess: Preprocess) -> None:
        if not FOLDER.is_dir():
            sys.exit("Lucent is not installed; run this as: make bench-quality")
        if str(FOLDER) not in sys.path:
            sys.path.append(str(FOLDER))  # last, so that nothing of ours is replaced
        self._cut = _Cut(model, graph, layer, tap).eval()
        self._preprocess = preprocess

    def render(
        self, filters: Sequence[int], *, passes: Sequence[int], seed: int, view_px: int | None = None
    ) -> "dict[int, NDArray[np.uint8]]":
        """Number of forward passes -> pictures (B, 128, 128, 3) uint8 of ``filters`` after so many.

        ``view_px`` is the size the network is shown them in; None is Lucent's own 224.
        """
        from lucent.optvis import objectives, param, render, transform  # type: ignore[import-not-found]

        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002  # Lucent draws from it
        objective = objectives.Objective.sum(
            [objectives.channel("maps", filter_, batch=place) for place, filter_ in enumerate(filters)]
        )
        feed: Any = lambda pictures: pictures * 255.0  # noqa: E731
        if self._preprocess.name != "raw":
            feed = Normalize(self._preprocess.mean, self._preprocess.std)
        stages = render.render_vis(
            self._cut,
            objective,
            param_f=lambda: param.image(128, batch=len(filters)),
            transforms=[*transform.standard_transforms, feed],
            thresholds=tuple(sorted(set(passes))),
            preprocess=False,
            progress=False,
            show_image=False,
            fixed_image_size=view_px,
        )
        # As Lucent's export() makes pixels.
        return {count: (stage * 255).astype(np.uint8) for count, stage in zip(sorted(set(passes)), stages, strict=True)}
