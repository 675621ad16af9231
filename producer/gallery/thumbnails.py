"""Tiles as thumbnails: one atlas of all tiles of a layer, and a strip of a few of them.

A thumbnail is at most 64 px a picture, so that a layer of 2,048 tiles is one image of some MB. Its cell in the atlas
depends on the layer's planned tiles alone, so that it does not move while the layer fills.
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from workers.contract.recipe import Recipe

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Longer side of one picture of a tile in its thumbnail. A tile of several pictures keeps its aspect.
THUMBNAIL_PX = 64

#: Largest side of a WebP image (https://developers.google.com/speed/webp/faq).
MAX_SIDE_PX = 16_383

#: Largest number of pixels of an atlas, which is held in memory: 8,192 thumbnails of 64 px. Of more tiles, each is
#: smaller.
MAX_ATLAS_PIXELS = 8_192 * THUMBNAIL_PX**2

#: Tiles in one row of an atlas, at most, unless it would be too high.
_COLUMNS = 32

#: Tiles in a strip, at most.
STRIP_TILES = 8

#: Of libwebp, 0 to 100. Noise-like pictures at 90 take 1.6 times as many bytes.
_QUALITY = 80


@dataclass(frozen=True, kw_only=True)
class Cells:
    """The cells of a layer's atlas. Cell k is in column k % columns and row k // columns."""

    columns: int
    rows: int
    #: height and width of a cell
    cell_px: tuple[int, int]


def cell_px(recipe: Recipe) -> tuple[int, int]:
    """Height and width of a thumbnail. Pictures of less than THUMBNAIL_PX are not enlarged."""
    factor = min(1.0, THUMBNAIL_PX / max(recipe.height_px, recipe.width_px))
    return _scaled(recipe.tile_px, factor)


def cells(recipe: Recipe, count: int) -> Cells:
    """The cells of ``count`` tiles: as square as 32 columns permit, of ``cell_px`` if the atlas may be that large.

    A zoom shows the atlas as it is, so that a layer of 32 tiles should not be one row.
    """
    size_px = cell_px(recipe)
    usual = max(1, min(_COLUMNS, math.ceil(math.sqrt(count * size_px[0] / size_px[1]))))
    factor = 1.0
    while True:
        height, width = _scaled(size_px, factor)
        most_columns, most_rows = max(1, MAX_SIDE_PX // width), max(1, MAX_SIDE_PX // height)
        columns = min(most_columns, max(usual, math.ceil(count / most_rows)))
        rows = math.ceil(count / columns)
        if rows <= most_rows and rows * columns * height * width <= max(MAX_ATLAS_PIXELS, columns * height * width):
            return Cells(columns=columns, rows=rows, cell_px=(height, width))
        factor *= 0.9


def thumbnail(pixels: "NDArray[np.uint8]", size_px: tuple[int, int]) -> "NDArray[np.uint8]":
    """A tile, (H, W, 3) uint8 RGB, scaled to the height and width of a cell."""
    if pixels.shape[:2] == size_px:
        return pixels
    # Reduced by a box filter first, down to twice the size, which changes less than the compression does.
    picture = Image.fromarray(pixels).resize(size_px[::-1], Image.Resampling.LANCZOS, reducing_gap=2.0)
    return np.asarray(picture)


def atlas(plan: Cells, thumbnails: "Mapping[int, NDArray[np.uint8]]") -> bytes:
    """WebP of all thumbnails, by cell. A cell without one is black."""
    height, width = plan.cell_px
    canvas = np.zeros((plan.rows * height, plan.columns * width, 3), np.uint8)
    for cell, pixels in thumbnails.items():
        top, left = cell // plan.columns * height, cell % plan.columns * width
        canvas[top : top + height, left : left + width] = pixels
    return _webp(canvas)


def strip(thumbnails: "Sequence[NDArray[np.uint8]]") -> bytes:
    """WebP of at least one thumbnail, side by side."""
    return _webp(np.concatenate(thumbnails, axis=1)[:, :MAX_SIDE_PX])


def strip_filters(statuses: Mapping[int, str]) -> list[int]:
    """The filters of a strip, ascending: at most STRIP_TILES, evenly spread over those that are stored and not dead.

    ``statuses``: filter -> status in its record. Dead ones are shown only if there is nothing else, failed ones never.
    """
    stored = sorted(filter_ for filter_, status in statuses.items() if status != "failed")
    shown = [filter_ for filter_ in stored if statuses[filter_] != "dead"] or stored
    if len(shown) <= STRIP_TILES:
        return shown
    return [shown[place * (len(shown) - 1) // (STRIP_TILES - 1)] for place in range(STRIP_TILES)]


def _scaled(size_px: tuple[int, int], factor: float) -> tuple[int, int]:
    return max(1, round(factor * size_px[0])), max(1, round(factor * size_px[1]))


def _webp(pixels: "NDArray[np.uint8]") -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "WEBP", quality=_QUALITY, method=2)
    return out.getvalue()
