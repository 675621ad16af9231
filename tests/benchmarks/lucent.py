"""Lucent (github.com/greentfrapp/lucent) with its own defaults, for comparison. It is not a dependency of filterfarm.

``make bench-quality`` installs it into the separate folder ``build/lucent``, without its declared requirements: its
latest release, of 2021, requires a kornia of 2020 and test tools, among others.
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
from workers.networks import tracing
from workers.networks.subgraphs import subgraph
from workers.networks.tensor_extractor import maximised

if TYPE_CHECKING:
    from numpy.typing import NDArray

FOLDER = Path(__file__).parents[2] / "build" / "lucent"


class _Cut(nn.Module):
    """The network up to one layer's tap, so that Lucent does not run the rest; the module ``maps`` returns its maps."""

    def __init__(self, model: nn.Module, graph: fx.Graph, layer: str, tap: str) -> None:
        super().__init__()
        convolution = layer in tracing.convolutions(model, graph)
        upto = tracing.tapped(model, tracing.find(model, graph, layer), tap)[-1] if convolution else None
        self.maps = subgraph(model, graph, upto=upto or maximised(model, graph, layer, tap))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Network input (B, 3, H, W) to maps (B, C, H', W'), or units (B, C)."""
        # A copy, because Lucent keeps the outputs of modules.
        return self.maps(pictures).clone()  # type: ignore[no-any-return]


class Lucent:
    """One layer as Lucent renders it: 128 px, Fourier coefficients, decorrelated colour, Adam 0.05, its transforms.

    Only preprocessing is replaced: Lucent's is that of torchvision's networks, which does not suit this one. Pictures
    of a batch share the random draws of the transforms and nothing else, as with Lucent's own ``batch=``.
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
        """Number of forward passes -> pictures (B, 128, 128, 3) uint8 of ``filters`` after that number.

        ``view_px`` is the size at which they are shown to the network; None is Lucent's own 224.
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
        # The conversion to pixels of Lucent's export().
        return {count: (stage * 255).astype(np.uint8) for count, stage in zip(sorted(set(passes)), stages, strict=True)}
