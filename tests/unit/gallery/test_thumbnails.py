"""Thumbnails, atlases and strips: sizes, places and limits."""

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from producer.gallery.thumbnails import (
    MAX_ATLAS_PIXELS,
    MAX_SIDE_PX,
    Cells,
    atlas,
    cell_px,
    cells,
    strip,
    strip_filters,
    thumbnail,
)
from tests.jobs import sample_job
from workers.contract.recipe import Recipe


def recipe(**values: Any) -> Recipe:
    return sample_job(**values).recipe


def decoded(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data), formats=["WEBP"]) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"size_px": 112}, (64, 64)),
        ({"size_px": 8}, (8, 8)),
        ({"height_px": 128, "width_px": 64}, (64, 32)),
        ({"height_px": 100, "width_px": 300}, (21, 64)),
        ({"size_px": 128, "diversity": 4}, (64, 259)),
    ],
)
def test_a_cell_is_64_px_a_picture_and_keeps_the_tiles_aspect(
    values: dict[str, Any], expected: tuple[int, int]
) -> None:
    # Given / When / Then
    assert cell_px(recipe(**values)) == expected


@pytest.mark.parametrize("count", [1, 31, 33, 2048, 8160, 8161, 65_025, 1_000_000])
@pytest.mark.parametrize("values", [{"size_px": 112}, {"size_px": 256, "diversity": 16}, {"size_px": 8}])
def test_every_atlas_has_room_for_all_tiles_and_fits_into_a_webp(values: dict[str, Any], count: int) -> None:
    # Given / When
    plan = cells(recipe(**values), count)
    # Then
    assert plan.rows * plan.columns >= count
    assert max(plan.rows * plan.cell_px[0], plan.columns * plan.cell_px[1]) <= MAX_SIDE_PX
    assert plan.rows * plan.columns * plan.cell_px[0] * plan.cell_px[1] <= MAX_ATLAS_PIXELS


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (32, 6, 6), (512, 23, 23)])
def test_an_atlas_of_few_tiles_is_nearly_square(count: int, columns: int, rows: int) -> None:
    assert cells(recipe(size_px=112), count) == Cells(columns=columns, rows=rows, cell_px=(64, 64))


def test_an_atlas_of_2048_tiles_has_32_columns() -> None:
    # Given / When / Then
    assert cells(recipe(size_px=112), 2048) == Cells(columns=32, rows=64, cell_px=(64, 64))


def test_every_thumbnail_is_in_its_cell_and_other_cells_are_black() -> None:
    # Given four of six cells
    plan = Cells(columns=3, rows=2, cell_px=(16, 32))
    colours = {0: (200, 30, 30), 2: (30, 200, 30), 3: (30, 30, 200), 5: (200, 200, 30)}
    # When
    pixels = decoded(atlas(plan, {cell: np.full((16, 32, 3), colour, np.uint8) for cell, colour in colours.items()}))
    # Then
    assert pixels.shape == (32, 96, 3)
    for cell in range(6):
        middle = pixels[cell // 3 * 16 + 8, cell % 3 * 32 + 16].astype(int)
        assert np.abs(middle - colours.get(cell, (0, 0, 0))).max() <= 24


def test_a_thumbnail_is_the_tile_scaled_down() -> None:
    # Given a tile whose left half is red
    pixels = np.zeros((112, 112, 3), np.uint8)
    pixels[:, :56, 0] = 255
    # When
    small = thumbnail(pixels, (64, 64))
    # Then
    assert small.shape == (64, 64, 3)
    assert small[:, :28, 0].min() > 230
    assert small[:, 36:].max() < 25


def test_a_strip_is_one_row() -> None:
    # Given / When / Then
    assert decoded(strip([np.full((16, 32, 3), 9, np.uint8)] * 3)).shape == (16, 96, 3)


def test_a_strip_shows_at_most_eight_tiles_evenly_spread_over_those_that_are_not_dead() -> None:
    # Given
    statuses = {number: "dead" if number < 10 else "live" for number in range(100)} | {20: "failed"}
    # When
    shown = strip_filters(statuses)
    # Then
    assert len(shown) == 8
    assert (shown[0], shown[-1]) == (10, 99)
    assert set(np.diff(shown)) <= {12, 13, 14}
    # And dead ones are shown where there is nothing else, failed ones never
    assert strip_filters({3: "dead", 5: "failed"}) == [3]
    assert strip_filters({1: "dead", 2: "live", 4: "rescued"}) == [2, 4]
    assert strip_filters({5: "failed"}) == []
    assert strip_filters({}) == []
