"""Contact sheets: the place of each tile, the marks of dead and failed ones, and labels."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from producer.collector.contact_sheet import CELL_GREY, MARK_GREY, MAX_SIDE_PX, bands, fit, layout, sheet
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


@pytest.mark.parametrize("size", [7, 8, 16, 64, 150])
@pytest.mark.parametrize("status", ["dead", "failed"])
def test_a_cell_without_a_picture_is_dark_with_a_quiet_mark(size: int, status: str) -> None:
    # Given a tile, of a dead filter as it is stored or none because it failed
    entries: Entries = [(tile(0, size) if status == "dead" else None, status)]
    # When it is on a sheet
    cell = sheet(entries, Grid(), (size, size))
    # Then the cell is grey and dark, with a mark that is lighter than the cell and darker than a picture
    assert (cell == cell[..., :1]).all()
    assert cell.min() == CELL_GREY
    assert 2 * CELL_GREY < cell.max() <= MARK_GREY < 96
    # And the mark has a small part of a larger tile
    marked = (cell[..., 0] > CELL_GREY).nonzero()
    assert np.ptp(marked[0]) + 1 <= max(9, size // 7)


@pytest.mark.parametrize("size", [7, 8, 15, 16, 64, 150])
def test_a_dead_cell_has_a_ring_and_a_failed_one_a_cross(size: int) -> None:
    # Given the cells of both
    dead, failed = (sheet([(None, status)], Grid(), (size, size))[..., 0] for status in ("dead", "failed"))
    middle = slice((size - 1) // 2, size // 2 + 1)
    # Then the ring is empty in the middle and the cross is not
    assert dead[middle, middle].max() == CELL_GREY
    assert failed[middle, middle].min() > 2 * CELL_GREY
    # And above the middle it is the other way round
    assert dead[:, middle].max() > 2 * CELL_GREY
    above = failed[: (size - 1) // 2 - 1, middle]
    assert above.max() == CELL_GREY


@pytest.mark.parametrize("number", range(9))
@pytest.mark.parametrize("margin", [0, 1, 5])
@pytest.mark.parametrize("labels", [False, True])
def test_a_dark_cell_changes_nothing_around_it(number: int, margin: int, labels: bool) -> None:
    # Given nine tiles, and the same of which one is dead
    size, names, grid = 32, [str(place) for place in range(9)], Grid(margin_px=margin, labels=labels)
    entries = tiles(9, size)
    all_live = sheet(entries, grid, (size, size), names)
    entries[number] = (entries[number][0], "dead")
    # When they are put on a sheet
    whole = sheet(entries, grid, (size, size), names)
    # Then it differs in that cell alone
    rows, columns = (all_live != whole).any(axis=-1).nonzero()
    row, column = divmod(number, 3)
    top, left = row * ((all_live.shape[0] + margin) // 3), column * (size + margin)
    assert (top <= rows).all()
    assert (rows < top + size).all()
    assert (left <= columns).all()
    assert (columns < left + size).all()


@pytest.mark.parametrize("status", ["live", "rescued"])
def test_a_tile_with_a_picture_is_on_the_sheet_as_it_is(status: str) -> None:
    # Given nine tiles, of which the middle one is live or rescued
    entries = tiles(9, 16)
    entries[4] = (entries[4][0], status)
    # When they are put on a sheet, then it has no mark
    assert np.array_equal(sheet(entries, Grid(), (16, 16)), sheet(tiles(9, 16), Grid(), (16, 16)))


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


@pytest.mark.parametrize(("rows", "columns"), [(None, None), (2, 3), (3, 2), (4, 2)])
@pytest.mark.parametrize("margin", [0, 5])
def test_labels_are_in_a_strip_below_each_row_of_tiles(rows: int | None, columns: int | None, margin: int) -> None:
    # Given five tiles with labels, of which one has no text
    entries, names = tiles(5, 40), ["8", "11", "", "300", "47"]
    grid = Grid(rows=rows, columns=columns, margin_px=margin)
    labelled = grid.model_copy(update={"labels": True})
    plan = layout(labelled, 5, (40, 40), names)
    # When they are put on a sheet with labels
    whole = sheet(entries, labelled, (40, 40), names)
    # Then it is as large as the layout says, and higher than without by one strip per row
    assert whole.shape == (*plan.size_px, 3)
    plain = sheet(entries, grid, (40, 40), names)
    assert whole.shape[0] == plain.shape[0] + plan.rows * plan.strip_px
    # And every tile is unchanged, with digits of 8 px or more below it if it has a label, and nothing where none is
    pitch = 40 + plan.strip_px + margin
    for row in range(plan.rows):
        for column, place in enumerate(plan.row(row)):
            top, left = row * pitch, column * (40 + margin)
            cell, strip = whole[top : top + 40, left : left + 40], whole[top + 40 : top + pitch, left : left + 40]
            lines, across = strip.max(axis=-1).nonzero()
            if place is None or not names[place]:
                assert not strip.any()
            else:
                assert np.ptp(lines) + 1 >= 8
                assert lines.min() > 0
                assert lines.max() < plan.strip_px - 1
                assert abs(across.min() - (39 - across.max())) <= 2
            assert not cell.any() if place is None else np.array_equal(cell, pixels_of(entries, place))


def test_without_labels_the_sheet_is_the_same_whatever_the_numbers_are() -> None:
    # Given
    names = [str(number) for number in range(9)]
    # When / Then
    assert np.array_equal(sheet(tiles(9, 40), Grid(), (40, 40), names), sheet(tiles(9, 40), Grid(), (40, 40)))


def test_a_label_is_larger_below_a_larger_tile_and_no_wider_than_it() -> None:
    # Given names of classes
    names = ["tiger shark, Galeocerdo"] * 4
    # When they are below tiles of several sizes
    sizes = [layout(Grid(labels=True), 4, (size, size), names).font_px for size in (150, 200, 300, 1000)]
    # Then they are as large as fits
    assert sizes == sorted(sizes)
    assert 12 <= sizes[0] < sizes[-1] == 28
    whole = sheet(tiles(4, 150), Grid(labels=True, margin_px=20), (150, 150), names)
    assert not whole[:, 150:170].any()


@pytest.mark.parametrize(
    ("grid", "count", "tile_px", "names"),
    [
        (Grid(labels=True), 4, (12, 12), ["1000"] * 4),
        (Grid(labels=True, rows=1, columns=2048), 2048, (64, 64), ["2000"] * 2048),
        (Grid(labels=True, rows=2048, columns=1), 2048, (64, 64), ["2"] * 2048),
        (Grid(labels=True, rows=500, columns=1), 500, (64, 64), ["2"] * 500),
    ],
)
def test_labels_that_do_not_fit_are_left_out_and_the_png_says_so(
    grid: Grid, count: int, tile_px: tuple[int, int], names: list[str]
) -> None:
    # Given tiles too narrow for their labels, or so many rows that the strips would take the tiles' height
    # When
    plan = layout(grid, count, tile_px, names)
    plain = layout(grid.model_copy(update={"labels": False}), count, tile_px, names)
    # Then the sheet is that without labels
    assert plan.size_px == plain.size_px
    assert plan.strip_px == 0
    # And says that they are missing
    assert plan.text["Description"].endswith("Labels left out: the tiles are too small for them")
    assert "Labels" not in plain.text.get("Description", "")


def test_a_large_sheet_has_smaller_tiles_with_labels_below_them() -> None:
    # Given
    names = [str(number) for number in range(2048)]
    # When
    plan = layout(Grid(labels=True), 2048, (1024, 1024), names)
    # Then labels are part of the height that is limited
    assert plan.labels
    assert 0.9 * MAX_SIDE_PX < plan.size_px[0] <= MAX_SIDE_PX
    assert plan.text["Description"].startswith("Tiles of 1024x1024 px, scaled down to ")


def test_a_sheet_with_labels_is_made_row_by_row() -> None:
    # Given rows that are made when they are asked for
    names = [str(number) for number in range(12)]
    plan, made = layout(Grid(labels=True), 12, (40, 40), names), []

    def rows() -> Iterator[list[tuple[Pixels | None, str] | None]]:
        for number in range(plan.rows):
            made.append(number)
            yield [None if place is None else (tile(place, 40), "live") for place in plan.row(number)]

    # When the first band is taken
    parts = bands(plan, rows())
    first = next(parts)
    # Then no other row was made, and all bands together are the sheet
    assert made == [0]
    assert np.array_equal(np.concatenate([first, *parts]), sheet(tiles(12, 40), Grid(labels=True), (40, 40), names))
