"""Metrics of tiles: the numbers behind ``filterfarm quality``. No I/O.

The maps are those of the whole layer, not of the sliced one used for rendering, so that the measurement does not share
code with what it measures.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import fx, nn

from workers.contract.recipe import Recipe
from workers.networks import devices, tracing
from workers.networks.layouts import as_maps, layout_of
from workers.networks.subgraphs import subgraph
from workers.networks.tensor_extractor import extractor_of, maximised
from workers.rendering import images

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Cycles per pixel beyond which power counts as high frequency: half of what a picture can hold (0.5). Of white noise
#: 80 % lies beyond it (1 - pi / 16), of a photograph, whose power falls with the square of the frequency, a fifth or
#: less (D. J. Field, "Relations between the statistics of natural images and the response properties of cortical
#: cells", 1987).
HIGH_FREQUENCY = 0.25

#: Activations that differ by less than this share are the same to a picture of eight bits.
TIE = 1e-3


class LayerProbe:
    """The responses of one layer of a frozen network to pictures. Raises UnknownLayer where there is no such layer."""

    def __init__(
        self, model: nn.Module, graph: fx.Graph, layer: str, recipe: Recipe, device: torch.device, *, batch: int = 16
    ) -> None:
        size_px = recipe.height_px, recipe.width_px
        if layer in tracing.convolutions(model, graph):
            upto, layout = tracing.tapped(model, tracing.find(model, graph, layer), recipe.tap)[-1], None
        else:
            upto = maximised(model, graph, layer, recipe.tap)
            layout = layout_of(model, graph, upto, size_px)
        self._maps, self._layout = subgraph(model, graph, upto=upto), layout
        self._recipe, self._device, self._batch = recipe, device, batch
        #: (C,) bool: no picture can excite the filter; see Extractor.inert
        self.inert: NDArray[np.bool_] = extractor_of(model, graph, layer, recipe.tap, size_px).inert.numpy()

    @torch.no_grad()
    def responses(self, pictures: "NDArray[np.uint8]") -> "NDArray[np.float32]":
        """Mean of each filter's map on each picture: (T, C) for pictures (T, H, W, 3) uint8 RGB."""
        parts = []
        for part in np.array_split(pictures, range(self._batch, len(pictures), self._batch)):
            batch = torch.from_numpy(part.astype(np.float32)).to(self._device).permute(0, 3, 1, 2)
            with devices.exact():
                maps = self._maps(images.to_network(batch, self._recipe.preprocess, self._recipe.channels))
            if self._layout is not None:
                maps = as_maps(maps, self._layout.axis, self._layout.grid_px)
            parts.append(maps.float().mean(dim=(2, 3)).cpu().numpy())
        return np.concatenate(parts)


def identified(own: "NDArray[np.floating]") -> "NDArray[np.bool_]":
    """Which tiles excite their own filter as no other tile does: (T,) bool.

    ``own`` is (T, T): row t holds the responses of all tiles' filters to tile t, in the tiles' order. Within TIE of
    the best counts, because two pictures can both saturate all units. A tile with the same responses as another does
    not count, nor does one that excites its filter as little as the weakest tile.
    """
    mine, best = np.diagonal(own), _best_other(own)
    _, place, count = np.unique(own, axis=0, return_inverse=True, return_counts=True)
    alone = count[place.reshape(-1)] == 1
    result: NDArray[np.bool_] = (mine >= best - TIE * np.abs(best)) & (mine > own.min(axis=0)) & alone
    return result


def selectivity(own: "NDArray[np.floating]") -> "NDArray[np.float64]":
    """Each tile's own activation over that of the best other tile on the same filter: (T,), 0 or more.

    Infinite where nothing but its own tile excites the filter, 0 where its own does not.
    """
    mine, best = np.diagonal(own).astype(np.float64), _best_other(own).astype(np.float64)
    ratio = np.divide(mine, best, out=np.full(len(own), np.inf), where=best > 0)
    return np.where(mine > 0, ratio, 0.0)


def high_frequency(pictures: "NDArray[np.uint8]") -> "NDArray[np.float64]":
    """Share of each picture's power beyond HIGH_FREQUENCY, in 0..1: (T,) for pictures (T, H, W, 3) uint8.

    Power is the squared magnitude of the discrete Fourier transform, summed over the colours, of each colour less its
    mean and under a Hann window, which keeps the jump from edge to edge out of it (F. J. Harris, "On the use of windows
    for harmonic analysis with the discrete Fourier transform", 1978). A picture of one colour has none: 0.
    """
    height, width = pictures.shape[1:3]
    centred = pictures - pictures.mean(axis=(1, 2), keepdims=True)
    window = np.outer(_hann(height), _hann(width))[:, :, None]
    power = (np.abs(np.fft.fft2(centred * window, axes=(1, 2))) ** 2).sum(axis=3)  # (T, H, W)
    beyond = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)) > HIGH_FREQUENCY
    total = power.sum(axis=(1, 2))
    result: NDArray[np.float64] = np.divide(
        power[:, beyond].sum(axis=1), total, out=np.zeros(len(pictures)), where=total > 0
    )
    return result


def similarity(ours: "NDArray[np.float32]", theirs: "NDArray[np.float32]") -> "NDArray[np.float64]":
    """Cosines of the responses (T, C) of one set of pictures with those of another, (T, T), in -1..1.

    Each channel is first centred on its mean over both sets and divided by its standard deviation there: the
    response common to all tiles carries no information, and no channel of large values should dominate. 0 is the
    average of two tiles of the layer, and 1 is the same response.
    """
    both = np.concatenate([ours, theirs]).astype(np.float64)
    spread = both.std(axis=0)
    centred = np.divide(both - both.mean(axis=0), spread, out=np.zeros_like(both), where=spread > 0)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = np.divide(centred, length, out=np.zeros_like(centred), where=length > 0)
    result: NDArray[np.float64] = unit[: len(ours)] @ unit[len(ours) :].T
    return result


def ranks(logits: "NDArray[np.floating]", classes: "NDArray[np.integer]") -> "NDArray[np.int64]":
    """How many other classes have at least the logit of the picture's own: (T,) for logits (T, C) and classes (T,).

    0 is a picture that the network puts into its class.
    """
    own = logits[np.arange(len(logits)), classes][:, None]
    result: NDArray[np.int64] = logits.shape[1] - 1 - (logits < own).sum(axis=1)
    return result


def _best_other(own: "NDArray[np.floating]") -> "NDArray[np.floating]":
    """(T,) the highest response of each tile's filter to any other tile; -inf where there is no other."""
    others = own.copy()
    np.fill_diagonal(others, -np.inf)
    best: NDArray[np.floating] = others.max(axis=0)
    return best


def _hann(length: int) -> "NDArray[np.float64]":
    """The periodic Hann window."""
    return np.hanning(length + 1)[:-1]
