"""Contact sheets: the tiles of one layer in one image, made row by row.

As in the notebook, the background is black, the margin is 5 px by default, and in a fixed 8 x 8 grid filter i + 8j is
in row i, column j. The cell of a dead filter is dark with a ring in its middle, that of a failed tile is dark with a
cross. Labels are in a strip below each row of tiles. A sheet of more than MAX_SIDE_PX has smaller tiles.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from workers.contract.job import Grid

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Grey values of a cell without a picture, of the mark in its middle, and of the labels.
CELL_GREY, MARK_GREY, LABEL_GREY = 14, 84, 128

#: Largest side of a sheet in pixels: viewers and browsers show no larger ones.
MAX_SIDE_PX = 16_000

#: Diameter of a mark as a share of the tile's shorter side, and the smallest one: ring and cross differ from 7 px on.
_MARK_SHARE, _MIN_MARK_PX = 1 / 8, 7

#: Font size of labels as a share of the tile's width, and its limits. Digits of Pillow's font are 0.71 of it high.
_FONT_SHARE, _MIN_FONT_PX, _MAX_FONT_PX = 1 / 11, 12, 28

#: Height of the strip of labels, as a multiple of the font size.
_STRIP = 1.5


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
    #: text below each tile, in the order of the filters; none without labels
    labels: tuple[str, ...] = ()
    #: font size of the labels; 0 without
    font_px: int = 0
    #: the grid asks for labels, and they do not fit
    labels_left_out: bool = False

    @property
    def strip_px(self) -> int:
        """Height of the strip of labels below each row of tiles."""
        return math.ceil(_STRIP * self.font_px)

    @property
    def size_px(self) -> tuple[int, int]:
        """Size of the sheet."""
        height, width = self.tile_px
        return (
            self.rows * (height + self.strip_px + self.margin_px) - self.margin_px,
            self.columns * (width + self.margin_px) - self.margin_px,
        )

    @property
    def text(self) -> dict[str, str]:
        """What the PNG says about itself in its text chunks."""
        said = []
        if self.tile_px != self.stored_px:
            (high, wide), (stored_high, stored_wide) = self.tile_px, self.stored_px
            said.append(f"Tiles of {stored_high}x{stored_wide} px, scaled down to {high}x{wide} px")
        if self.labels_left_out:
            said.append("Labels left out: the tiles are too small for them")
        return {"Description": ". ".join(said)} if said else {}

    def row(self, number: int) -> list[int | None]:
        """Positions of the tiles in one row, from left to right, in the order of the filters; None: no tile."""
        places = (
            number + self.rows * column if self.by_column else number * self.columns + column
            for column in range(self.columns)
        )
        return [place if place < self.count else None for place in places]


def layout(grid: Grid, count: int, tile_px: tuple[int, int], labels: Sequence[str] = ()) -> Layout:
    """The arrangement of ``count`` tiles of (height, width): the grid's, or the most nearly square one.

    ``labels`` are one a tile, and are on the sheet if the grid asks for labels and they fit below the tiles.
    """
    columns = grid.columns or math.ceil(math.sqrt(count))
    plain = Layout(
        rows=grid.rows or math.ceil(count / columns),
        columns=columns,
        count=count,
        by_column=grid.rows is not None,
        margin_px=grid.margin_px,
        stored_px=tile_px,
        tile_px=tile_px,
    )
    plain = _scaled(plain)
    if not (grid.labels and labels):
        return plain
    font_px = min(max(round(_FONT_SHARE * plain.tile_px[1]), _MIN_FONT_PX), _MAX_FONT_PX)
    longest = max(labels, key=_font(font_px).getlength)
    while font_px > _MIN_FONT_PX and _font(font_px).getlength(longest) > plain.tile_px[1]:
        font_px -= 1
    labelled = _scaled(replace(plain, labels=tuple(labels), font_px=font_px))
    # On a sheet with many rows the strips must not take the height of the tiles.
    fits = _font(font_px).getlength(longest) <= labelled.tile_px[1] and 2 * labelled.tile_px[0] > plain.tile_px[0]
    return labelled if fits else replace(plain, labels_left_out=True)


def _scaled(plan: Layout) -> Layout:
    """The layout with tiles as large as MAX_SIDE_PX allows, the stored size at most."""
    height, width = plan.stored_px
    room_y = (MAX_SIDE_PX + plan.margin_px) / plan.rows - plan.margin_px - plan.strip_px
    room_x = (MAX_SIDE_PX + plan.margin_px) / plan.columns - plan.margin_px
    factor = min(1.0, room_y / height, room_x / width)
    return replace(plan, tile_px=(max(1, int(factor * height)), max(1, int(factor * width))))


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
    height, width = plan.tile_px
    for number, tiles in enumerate(rows):
        below = plan.margin_px if number < plan.rows - 1 else 0
        band = np.zeros((height + plan.strip_px + below, plan.size_px[1], 3), np.uint8)
        for column, tile in enumerate(tiles):
            if tile is not None:
                pixels, status = tile
                left = column * (width + plan.margin_px)
                shown = _marked(plan.tile_px, status) if pixels is None or status == "dead" else pixels
                band[:height, left : left + width] = shown
        if plan.labels:
            band[height : height + plan.strip_px] = _label_strip(plan, number)
        yield band


def sheet(
    tiles: "Sequence[tuple[NDArray[np.uint8] | None, str]]",
    grid: Grid,
    tile_px: tuple[int, int],
    labels: Sequence[str] = (),
) -> "NDArray[np.uint8]":
    """The sheet of a few tiles, (height, width, 3) uint8 RGB; ``tiles`` are (pixels, status) as for ``bands``."""
    plan = layout(grid, len(tiles), tile_px, labels)
    rows = ([None if place is None else tiles[place] for place in plan.row(number)] for number in range(plan.rows))
    return np.concatenate(list(bands(plan, rows)))


def _marked(tile_px: tuple[int, int], status: str) -> "NDArray[np.uint8]":
    """The cell of a dead filter, with a ring, or of a failed tile, with a cross: (H, W, 1) uint8."""
    height, width = tile_px
    radius = min(max(_MARK_SHARE * min(tile_px), _MIN_MARK_PX), min(tile_px)) / 2
    line_px = max(1.0, radius / 6)
    y = np.abs(np.arange(height) - (height - 1) / 2)[:, None]
    x = np.abs(np.arange(width) - (width - 1) / 2)[None, :]
    if status == "dead":
        off_line = np.abs(np.hypot(x, y) - (radius - line_px / 2))
    else:
        ends = np.maximum(x, y) - (radius - line_px / 2)
        off_line = np.maximum(np.abs(x - y) / math.sqrt(2), ends)
    covered = np.clip(line_px / 2 + 0.5 - off_line, 0, 1)  # of each pixel
    cell: NDArray[np.uint8] = np.round(CELL_GREY + (MARK_GREY - CELL_GREY) * covered).astype(np.uint8)
    return cell[..., None]


def _label_strip(plan: Layout, number: int) -> "NDArray[np.uint8]":
    """The labels of one row of tiles, each centred below its tile: (strip, width of the sheet, 1) uint8."""
    picture = Image.new("L", (plan.size_px[1], plan.strip_px))
    draw, font = ImageDraw.Draw(picture), _font(plan.font_px)
    for column, place in enumerate(plan.row(number)):
        if place is not None:
            middle = column * (plan.tile_px[1] + plan.margin_px) + plan.tile_px[1] / 2
            draw.text((middle, plan.strip_px / 2), plan.labels[place], LABEL_GREY, font, anchor="mm")
    return np.asarray(picture)[..., None]


def _font(size_px: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's own font; Pillow's wheels contain the FreeType that draws it."""
    return ImageFont.load_default(size_px)
