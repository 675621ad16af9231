"""Contact sheets: the place of each tile, and the marks of dead, rescued and failed ones."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from producer.collector.contact_sheet import DEAD_RGB, MAX_SIDE_PX, RESCUED_RGB, fit, layout, sheet
from producer.collector.png_writer import PngWriter
from workers.contract.job import Grid

Pixels = NDArray[np.uint8]
Entries = list[tuple[Pixels | None, str]]


def tile(number: int, size_px: int) -> Pixels:
    """A tile of noise, different for each number."""
    return np.random.default_rng(number).integers(1, 255, (size_px, size_px, 3), np.uint8)


def tiles(count: int, size_px: int) -> Entries:
    """``count`` live tiles."""
    return [(tile(number, size_px), "live") for number in range(count)]


def window(whole: Pixels, where: tuple[int, int], size_px: int, margin_px: int) -> Pixels:
    """The pixels of one place (row, column) of the sheet."""
    row, column = where
    pitch = size_px + margin_px
    return whole[row * pitch : row * pitch + size_px, column * pitch : column * pitch + size_px]


def pixels_of(entries: Entries, number: int) -> Pixels:
    """The tile of a filter that has one."""
    pixels = entries[number][0]
    assert pixels is not None
    return pixels


def has_mark(area: Pixels) -> bool:
    """True if any pixel has the colour of frames and crosses."""
    return bool((area == DEAD_RGB).all(axis=-1).any())


def test_the_notebooks_sheet_runs_down_its_columns() -> None:
    # Given 64 tiles of 64 px, as in the notebook
    size, margin, entries = 64, 5, tiles(64, 64)
    # When they are put on its 8 x 8 sheet
    whole = sheet(entries, Grid(rows=8, columns=8, margin_px=margin), (size, size))
    # Then it is as large as the notebook's
    assert whole.shape == (8 * size + 7 * margin, 8 * size + 7 * margin, 3)
    assert whole.dtype == np.uint8
    # And filter i + 8j is where the notebook's formula puts it
    expected = np.zeros_like(whole)
    for i in range(8):
        for j in range(8):
            vertical, horizontal = i * size + i * margin, j * size + j * margin
            expected[vertical : vertical + size, horizontal : horizontal + size] = pixels_of(entries, i + 8 * j)
    assert np.array_equal(whole, expected)


def test_a_fixed_grid_may_have_unused_places() -> None:
    # Given 3 tiles and room for 6
    entries = tiles(3, 8)
    # When they are put on 2 x 3
    whole = sheet(entries, Grid(rows=2, columns=3, margin_px=1), (8, 8))
    # Then the third begins the second column, and the rest is black
    assert np.array_equal(window(whole, (0, 1), 8, 1), pixels_of(entries, 2))
    assert not window(whole, (1, 1), 8, 1).any()
    assert not window(whole, (0, 2), 8, 1).any()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 12, 16, 17, 63, 64, 65, 512, 2048])
def test_an_open_grid_is_as_square_as_it_gets_and_runs_along_its_rows(count: int) -> None:
    # Given some tiles and no fixed grid
    grid = Grid()
    # When rows and columns are chosen
    plan = layout(grid, count, (8, 8))
    rows, columns = plan.rows, plan.columns
    # Then all have room, none of the rows is empty, and it is nearly square
    assert rows * columns >= count > (rows - 1) * columns
    assert 0 <= columns - rows <= 1
    # And the order is by rows
    assert [place for row in range(rows) for place in plan.row(row)][:count] == list(range(count))


@pytest.mark.parametrize("grid", [Grid(), Grid(rows=3, columns=4)])
def test_every_tile_has_a_place_of_its_own_on_the_sheet(grid: Grid) -> None:
    # Given 12 tiles and any grid
    plan = layout(grid, 12, (8, 8))
    # When all are placed
    places = [place for row in range(plan.rows) for place in plan.row(row) if place is not None]
    # Then each has one place
    assert sorted(places) == list(range(12))


@pytest.mark.parametrize("margin", [4, 5, 9])
def test_a_dead_tile_is_framed_in_the_margin_and_no_pixel_of_any_tile_changes(margin: int) -> None:
    # Given nine tiles, of which the one in the middle is dead
    size, entries = 8, tiles(9, 8)
    entries[4] = (entries[4][0], "dead")
    # When they are put on a sheet whose margin has room for a frame
    whole = sheet(entries, Grid(margin_px=margin), (size, size))
    # Then every tile is unchanged
    for number in range(9):
        assert np.array_equal(window(whole, divmod(number, 3), size, margin), pixels_of(entries, number))
    # And the dead one has a frame on all sides
    top = left = size + margin
    ring = whole[top - 1 : top + size + 1, left - 1 : left + size + 1].astype(int)
    for edge in (ring[0], ring[-1], ring[:, 0], ring[:, -1]):
        assert (edge == DEAD_RGB).all()


@pytest.mark.parametrize("margin", [0, 1, 3])
def test_without_room_in_the_margin_the_frame_is_on_the_dead_tile_itself(margin: int) -> None:
    # Given nine tiles, of which the one in the middle is dead
    size, entries = 8, tiles(9, 8)
    entries[4] = (entries[4][0], "dead")
    # When they are put on a sheet without room for a frame
    whole = sheet(entries, Grid(margin_px=margin), (size, size))
    # Then the frame is on the dead tile's edge; its middle and all other tiles are unchanged
    dead = window(whole, (1, 1), size, margin)
    assert has_mark(dead)
    middle = pixels_of(entries, 4)
    assert np.array_equal(dead[2:-2, 2:-2], middle[2:-2, 2:-2])
    for number in {*range(9)} - {4}:
        assert np.array_equal(window(whole, divmod(number, 3), size, margin), pixels_of(entries, number))


@pytest.mark.parametrize("number", range(9))
@pytest.mark.parametrize("margin", [0, 5])
def test_a_frame_on_the_rim_of_the_sheet_touches_no_other_tile(number: int, margin: int) -> None:
    # Given nine tiles, of which one is dead
    size, entries = 8, tiles(9, 8)
    entries[number] = (entries[number][0], "dead")
    # When they are put on a sheet
    whole = sheet(entries, Grid(margin_px=margin), (size, size))
    # Then it is marked, and its middle and all other tiles are unchanged
    pixels = pixels_of(entries, number)
    assert has_mark(whole)
    assert np.array_equal(window(whole, divmod(number, 3), size, margin)[2:-2, 2:-2], pixels[2:-2, 2:-2])
    for other in {*range(9)} - {number}:
        assert np.array_equal(window(whole, divmod(other, 3), size, margin), pixels_of(entries, other))


def test_a_live_tile_has_no_frame() -> None:
    # Given live tiles only
    # When they are put on a sheet
    # Then nothing has the colour of a frame
    assert not has_mark(sheet(tiles(9, 8), Grid(), (8, 8)))


@pytest.mark.parametrize("margin", [0, 5])
def test_a_filter_without_a_tile_is_crossed_out(margin: int) -> None:
    # Given four filters, of which the second has no tile
    size, entries = 16, tiles(4, 16)
    entries[1] = (None, "failed")
    # When they are put on a sheet
    whole = sheet(entries, Grid(margin_px=margin), (size, size))
    # Then both diagonals are drawn, and the other tiles are unchanged
    gap = window(whole, (0, 1), size, margin)
    for step in range(2, size - 2):
        assert has_mark(gap[step : step + 1, step - 1 : step + 2])
        assert has_mark(gap[step : step + 1, size - 2 - step : size + 1 - step])
    for number in (0, 2, 3):
        assert np.array_equal(window(whole, divmod(number, 2), size, margin), pixels_of(entries, number))


def test_a_sheet_without_margin_holds_tiles_and_nothing_else() -> None:
    # Given four tiles
    entries = tiles(4, 8)
    # When they are put on a sheet without margin
    whole = sheet(entries, Grid(margin_px=0), (8, 8))
    # Then it is the tiles side by side
    assert whole.shape == (16, 16, 3)
    pictures = [pixels for pixels, _ in entries if pixels is not None]
    assert np.array_equal(whole, np.vstack([np.hstack(pictures[:2]), np.hstack(pictures[2:])]))


@pytest.mark.parametrize("rows_at_once", [1, 3, 100])
def test_a_png_written_by_rows_is_the_same_when_pillow_decodes_it(rows_at_once: int) -> None:
    # Given a sheet of smooth, of noisy and of black rows
    smooth = np.linspace(0, 255, 30 * 40 * 3).reshape(30, 40, 3).astype(np.uint8)
    whole = np.concatenate([smooth, tile(1, 40), np.zeros((7, 40, 3), np.uint8)])
    out = io.BytesIO()
    # When it is written by rows
    writer = PngWriter(out, 40, len(whole), {"Description": "a sheet"})
    for start in range(0, len(whole), rows_at_once):
        writer.write(whole[start : start + rows_at_once])
    writer.close()
    # Then every pixel is the same
    with Image.open(out) as image:
        assert (image.format, image.mode, image.info["Description"]) == ("PNG", "RGB", "a sheet")
        assert np.array_equal(np.asarray(image), whole)


@pytest.mark.parametrize(
    ("grid", "count", "tile_px"),
    [
        (Grid(), 2048, (1024, 1024)),
        (Grid(), 512, (1024, 4096)),
        (Grid(rows=1, columns=2048), 2048, (64, 64)),
        (Grid(rows=10_000, columns=2, margin_px=0), 20_000, (8, 8)),
    ],
)
def test_a_sheet_of_many_pixels_has_smaller_tiles(grid: Grid, count: int, tile_px: tuple[int, int]) -> None:
    # When
    plan = layout(grid, count, tile_px)
    # Then no side is longer than the limit, and the tiles use what there is
    assert max(plan.size_px) <= MAX_SIDE_PX
    assert max(plan.size_px) > 0.5 * MAX_SIDE_PX
    assert plan.tile_px < tile_px
    assert fit(np.zeros((*tile_px, 3), np.uint8), plan.tile_px).shape == (*plan.tile_px, 3)


def test_a_usual_sheet_has_tiles_of_their_own_size() -> None:
    assert layout(Grid(), 512, (150, 150)).tile_px == (150, 150)


def test_a_rescued_tile_is_framed_in_amber_and_its_pixels_are_unchanged() -> None:
    # Given nine tiles, of which the middle one was rescued
    size, margin, entries = 16, 5, tiles(9, 16)
    entries[4] = (entries[4][0], "rescued")
    # When they are put on a sheet
    whole = sheet(entries, Grid(margin_px=margin), (size, size))
    # Then its margin has the frame's colour, its own pixels are unchanged, and nothing is red
    pitch = size + margin
    assert tuple(whole[pitch - 1, pitch + 3]) == RESCUED_RGB
    assert np.array_equal(window(whole, (1, 1), size, margin), pixels_of(entries, 4))
    assert not has_mark(whole)
