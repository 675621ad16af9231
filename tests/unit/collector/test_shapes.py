"""Tiles that are not square: in PNG files, and on sheets."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from producer.collector.contact_sheet import CELL_GREY, sheet
from tests.jobs import sample_job, sample_tile
from workers.contract.errors import CorruptTile
from workers.contract.job import Grid
from workers.contract.tile_png import decode_tile, encode_frames, max_bytes

Pixels = NDArray[np.uint8]

#: Height and width.
SIZES = [(8, 20), (20, 8), (13, 10)]


def noise(number: int, size_px: tuple[int, int]) -> Pixels:
    return np.random.default_rng(number).integers(1, 200, (*size_px, 3), np.uint8)


@pytest.mark.parametrize("size_px", SIZES)
@pytest.mark.parametrize(("rows", "columns"), [(3, 2), (None, None)])
def test_every_tile_is_in_its_own_place(size_px: tuple[int, int], rows: int | None, columns: int | None) -> None:
    # Given
    (height, width), margin, count = size_px, 5, 5
    tiles = [noise(number, size_px) for number in range(count)]
    # When
    whole = sheet([(tile, "live") for tile in tiles], Grid(rows=rows, columns=columns, margin_px=margin), size_px)
    # Then a fixed grid is filled down its columns, and an open one, of 2 x 3, along its rows
    down, right = (3, 2) if rows else (2, 3)
    wanted = np.zeros((down * height + (down - 1) * margin, right * width + (right - 1) * margin, 3), np.uint8)
    for number, tile in enumerate(tiles):
        row, column = (number % 3, number // 3) if rows else (number // 3, number % 3)
        top, left = row * (height + margin), column * (width + margin)
        wanted[top : top + height, left : left + width] = tile
    assert np.array_equal(whole, wanted)


@pytest.mark.parametrize("size_px", SIZES)
@pytest.mark.parametrize("status", ["dead", "failed"])
def test_a_mark_is_in_the_middle_of_its_own_cell(size_px: tuple[int, int], status: str) -> None:
    # Given nine tiles, of which the middle one is dead or failed
    (height, width), margin = size_px, 6
    tiles = [noise(number, size_px) for number in range(9)]
    entries: list[tuple[Pixels | None, str]] = [(tile, "live") for tile in tiles]
    entries[4] = (None if status == "failed" else tiles[4], status)
    # When
    whole = sheet(entries, Grid(rows=3, columns=3, margin_px=margin), size_px)
    # Then its cell has a small mark as far from the left as from the right, and from above as from below
    top, left = height + margin, width + margin
    cell = whole[top : top + height, left : left + width, 0]
    assert np.array_equal(cell, cell[::-1])
    assert np.array_equal(cell, cell[:, ::-1])
    assert (cell[0] == CELL_GREY).all() or (cell[:, 0] == CELL_GREY).all()
    assert cell.max() > 2 * CELL_GREY
    # And nothing beside it has changed
    whole[top : top + height, left : left + width] = tiles[4]
    assert np.array_equal(
        whole, sheet([(tile, "live") for tile in tiles], Grid(rows=3, columns=3, margin_px=margin), size_px)
    )


@pytest.mark.parametrize("size_px", SIZES)
def test_a_stored_tile_is_decoded_in_its_own_shape_and_refused_in_others(size_px: tuple[int, int]) -> None:
    # Given
    job = sample_job(height_px=size_px[0], width_px=size_px[1])
    data = sample_tile(job, "features.0", 3)
    # When
    pixels, record = decode_tile(data, job.recipe.tile_px)
    # Then
    assert pixels.shape == (*size_px, 3)
    assert (pixels == (4, 0, 200)).all()
    assert record.filter == 3
    with pytest.raises(CorruptTile, match=f"a tile is {size_px[0]}x{size_px[1]} px RGB, not {size_px[1]}x{size_px[0]}"):
        decode_tile(data, size_px[::-1])


def test_the_largest_accepted_png_depends_on_the_number_of_pixels() -> None:
    # Given / When / Then
    assert max_bytes((10, 30)) == max_bytes((30, 10)) == max_bytes((1, 300))
    assert max_bytes((1000, 3000)) >= 1000 * 3000 * 3
    assert max_bytes((1000, 3000)) < 2 * 1000 * 3000 * 3


@pytest.mark.parametrize("size_px", SIZES)
def test_an_animation_has_every_frame_in_its_shape_and_shows_the_last_longer(size_px: tuple[int, int]) -> None:
    # Given frames of one colour each
    colours = [(20, 60, 200), (200, 60, 20), (60, 200, 60)]
    frames = [np.full((*size_px, 3), colour, np.uint8) for colour in colours]
    # When
    film = Image.open(io.BytesIO(encode_frames(frames)), formats=["WEBP"])
    # Then
    assert film.size == size_px[::-1]
    assert getattr(film, "n_frames") == 3  # noqa: B009
    pauses_ms = []
    for number, colour in enumerate(colours):
        film.seek(number)
        film.load()
        pauses_ms.append(film.info["duration"])
        assert np.abs(np.asarray(film.convert("RGB")).astype(int) - colour).max() <= 12
    assert pauses_ms == [100, 100, 1500]
