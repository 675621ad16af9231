"""Contact sheets: the tiles of one layer in one image, made row by row.

As in the notebook, the background is black, the margin is 5 px by default, and in a fixed 8 x 8 grid filter i + 8j is
in row i, column j. Dead filters have a red frame and rescued ones an amber frame. Frames are drawn in the margin, so
that no pixel of a tile changes. A failed tile is a dark field with a red cross. A sheet of more than MAX_SIDE_PX has
smaller tiles.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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

#: Largest side of a sheet in pixels: viewers and browsers show no larger ones.
MAX_SIDE_PX = 16_000


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the tiles of one sheet are. All sizes are (height, width) in pixels."""

    rows: int
    columns: int
    #: number of tiles
    count: int
    #: a fixed grid is filled column by column, as in the notebook, others row by row
    by_column: bool
    margin_px: int
    #: size of a stored tile, and of a tile on the sheet
    stored_px: tuple[int, int]
    tile_px: tuple[int, int]

    @property
    def size_px(self) -> tuple[int, int]:
        """Size of the sheet."""
        height, width = self.tile_px
        return (
            self.rows * (height + self.margin_px) - self.margin_px,
            self.columns * (width + self.margin_px) - self.margin_px,
        )

    def row(self, number: int) -> list[int | None]:
        """Positions of the tiles in one row, from left to right, in the order of the filters; None: no tile."""
        places = (
            number + self.rows * column if self.by_column else number * self.columns + column
            for column in range(self.columns)
        )
        return [place if place < self.count else None for place in places]


def layout(grid: Grid, count: int, tile_px: tuple[int, int]) -> Layout:
    """The arrangement of ``count`` tiles of (height, width): the grid's, or the most nearly square one."""
    columns = grid.columns or math.ceil(math.sqrt(count))
    rows = grid.rows or math.ceil(count / columns)
    room = [
        (MAX_SIDE_PX + grid.margin_px) / number - grid.margin_px for number in (rows, columns)
    ]  # per tile, of height and of width
    factor = min(1.0, *(space / side for space, side in zip(room, tile_px, strict=True)))
    return Layout(
        rows=rows,
        columns=columns,
        count=count,
        by_column=grid.rows is not None,
        margin_px=grid.margin_px,
        stored_px=tile_px,
        tile_px=(max(1, int(factor * tile_px[0])), max(1, int(factor * tile_px[1]))),
    )


def fit(pixels: "NDArray[np.uint8]", tile_px: tuple[int, int]) -> "NDArray[np.uint8]":
    """A tile, (H, W, 3) uint8 RGB, at its size on the sheet."""
    if pixels.shape[:2] == tile_px:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(tile_px[::-1], Image.Resampling.LANCZOS, reducing_gap=3.0))


def bands(
    plan: Layout, rows: "Iterator[Sequence[tuple[NDArray[np.uint8] | None, str] | None]]"
) -> "Iterator[NDArray[np.uint8]]":
    """The sheet from top to bottom, as arrays of (some rows, width, 3) uint8 RGB.

    ``rows`` gives (pixels, status) of each tile of a row, from left to right: pixels of ``plan.tile_px``, or None if
    the tile failed; None instead of both where the row has no tile.
    """
    height, margin = plan.tile_px[0], plan.margin_px
    carried = None  # the margin below a row, in which frames of both neighbours are
    for number, tiles in enumerate(rows):
        above, below = (margin if number else 0), (margin if number < plan.rows - 1 else 0)
        band = _band(plan, tiles, above, below)
        if carried is not None:
            yield np.maximum(carried, band[:above])
        carried = band[above + height :].copy()  # not a view, which would keep the whole band
        yield band[above : above + height]


def sheet(
    tiles: "Sequence[tuple[NDArray[np.uint8] | None, str]]", grid: Grid, tile_px: tuple[int, int]
) -> "NDArray[np.uint8]":
    """The sheet of a few tiles, (height, width, 3) uint8 RGB; ``tiles`` are (pixels, status) as for ``bands``."""
    plan = layout(grid, len(tiles), tile_px)
    rows = ([None if place is None else tiles[place] for place in plan.row(number)] for number in range(plan.rows))
    return np.concatenate(list(bands(plan, rows)))


def _band(
    plan: Layout, tiles: "Sequence[tuple[NDArray[np.uint8] | None, str] | None]", above: int, below: int
) -> "NDArray[np.uint8]":
    """One row of tiles with the margins above and below it."""
    height, width = plan.tile_px
    band = np.zeros((above + height + below, plan.size_px[1], 3), np.uint8)
    lefts = [column * (width + plan.margin_px) for column in range(plan.columns)]
    for left, tile in zip(lefts, tiles, strict=True):
        if tile is not None:
            band[above : above + height, left : left + width] = (
                _crossed_out(plan.tile_px) if tile[0] is None else tile[0]
            )
    for left, tile in zip(lefts, tiles, strict=True):
        if tile is not None and tile[1] in _FRAMES:
            _frame(band, left, above, plan, _FRAMES[tile[1]])
    return band


def _crossed_out(tile_px: tuple[int, int]) -> "NDArray[np.uint8]":
    """The place of a failed tile."""
    height, width = tile_px
    picture = Image.new("RGB", (width, height), FAILED_RGB)
    draw = ImageDraw.Draw(picture)
    # Pillow draws wide lines beyond their ends.
    low, high = _FRAME_PX, height - 1 - _FRAME_PX
    near, far = _FRAME_PX, width - 1 - _FRAME_PX
    draw.line((near, low, far, high), DEAD_RGB, _FRAME_PX)
    draw.line((near, high, far, low), DEAD_RGB, _FRAME_PX)
    return np.asarray(picture)


def _frame(band: "NDArray[np.uint8]", left: int, top: int, plan: Layout, colour: tuple[int, int, int]) -> None:
    """Draw a frame in the margin around a tile; on the tile's edge if the margin is too narrow or ends there."""
    reach = _FRAME_PX if plan.margin_px >= 2 * _FRAME_PX else 0
    first_y, first_x = max(0, top - reach), max(0, left - reach)
    end_y = min(band.shape[0], top + plan.tile_px[0] + reach)
    end_x = min(band.shape[1], left + plan.tile_px[1] + reach)
    box = band[first_y:end_y, first_x:end_x]
    for side in (box[:_FRAME_PX], box[-_FRAME_PX:], box[:, :_FRAME_PX], box[:, -_FRAME_PX:]):
        side[:] = colour
