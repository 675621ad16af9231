"""Contact sheets: the tiles of one layer in one image.

As in the notebook, the background is black, the margin is 5 px by default, and in a fixed 8 x 8 grid filter i + 8j is
in row i, column j. Dead filters have a red frame and rescued ones an amber frame. Frames are drawn in the margin, so
that no pixel of a tile changes. A failed tile is a dark field with a red cross.
"""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from workers.contract.job import Grid

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEAD_RGB = (214, 40, 40)
RESCUED_RGB = (230, 160, 30)
FAILED_RGB = (40, 16, 16)

_FRAMES = {"dead": DEAD_RGB, "failed": DEAD_RGB, "rescued": RESCUED_RGB}

_FRAME_PX = 2


def shape(grid: Grid, count: int) -> tuple[int, int]:
    """(rows, columns) of a sheet of ``count`` tiles: the grid's, or the most nearly square that holds them."""
    if grid.rows is not None and grid.columns is not None:
        return grid.rows, grid.columns
    columns = math.ceil(math.sqrt(count))
    return math.ceil(count / columns), columns


def place(grid: Grid, count: int, position: int) -> tuple[int, int]:
    """(row, column) of tile ``position``: column by column in a fixed grid, as in the notebook, else row by row."""
    rows, columns = shape(grid, count)
    if grid.rows is not None:
        return position % rows, position // rows
    return position // columns, position % columns


def sheet(
    tiles: "Sequence[tuple[NDArray[np.uint8] | None, str]]", grid: Grid, size_px: tuple[int, int]
) -> "NDArray[np.uint8]":
    """The contact sheet, (height, width, 3) uint8 RGB.

    ``tiles`` are (pixels, status) in the filters' order: pixels (height, width, 3) uint8 RGB, or None if the tile
    failed. ``size_px`` is (height, width) of a tile.
    """
    rows, columns = shape(grid, len(tiles))
    height, width = size_px
    step_y, step_x = height + grid.margin_px, width + grid.margin_px
    image = np.zeros((rows * step_y - grid.margin_px, columns * step_x - grid.margin_px, 3), np.uint8)
    corners = []
    for position, (pixels, _) in enumerate(tiles):
        row, column = place(grid, len(tiles), position)
        top, left = row * step_y, column * step_x
        corners.append((top, left))
        image[top : top + height, left : left + width] = FAILED_RGB if pixels is None else pixels
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    for (top, left), (pixels, status) in zip(corners, tiles, strict=True):
        if status in _FRAMES:
            _frame(draw, picture.size, left, top, size_px, grid.margin_px, _FRAMES[status])
        if pixels is None:
            low, high = top + _FRAME_PX, top + height - 1 - _FRAME_PX  # Pillow draws wide lines beyond their ends
            near, far = left + _FRAME_PX, left + width - 1 - _FRAME_PX
            draw.line((near, low, far, high), DEAD_RGB, _FRAME_PX)
            draw.line((near, high, far, low), DEAD_RGB, _FRAME_PX)
    return np.asarray(picture)


def encode_sheet(image: "NDArray[np.uint8]") -> bytes:
    """The sheet, (height, width, 3) uint8 RGB, as PNG."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG", compress_level=6)
    return out.getvalue()


def _frame(
    draw: ImageDraw.ImageDraw,
    sheet_px: tuple[int, int],
    left: int,
    top: int,
    size_px: tuple[int, int],
    margin_px: int,
    colour: tuple[int, int, int],
) -> None:
    """Draw a frame in the margin around a tile; on the tile's edge if the margin is too narrow or ends there."""
    reach = _FRAME_PX if margin_px >= 2 * _FRAME_PX else 0
    right, bottom = left + size_px[1] - 1 + reach, top + size_px[0] - 1 + reach
    box = (max(0, left - reach), max(0, top - reach), min(sheet_px[0] - 1, right), min(sheet_px[1] - 1, bottom))
    draw.rectangle(box, outline=colour, width=_FRAME_PX)
