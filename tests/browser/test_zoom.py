"""A whole layer as one picture, down to the full tiles."""

import io
import itertools

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from tests.browser import view
from tests.browser.colours import ALIKE, difference
from tests.browser.conftest import Site
from tests.browser.rendered import SHOWN, Rendered
from tests.browser.view import Visit
from tests.e2e.fleet import wait_for

#: The unit that is looked at.
UNIT = 24

#: Largest ratio of a pixel of the screen to one of the atlas.
MOST = 16

#: Pixels of a tile around its middle, up and down and left and right, that are compared.
HALF = 8


def stage(page: Page) -> Locator:
    """The picture."""
    return page.get_by_role("application", name=f"All units of {SHOWN} as one picture")


def place_of_unit(page: Page, jobs: Rendered) -> tuple[float, float]:
    """Where the middle of ``UNIT`` is on the screen, while the whole layer is seen."""
    columns, rows = jobs.atlas(jobs.notebook)
    box = stage(page).bounding_box()
    assert box is not None
    side = min(box["width"] / columns, box["height"] / rows)
    row, column = divmod(UNIT, columns)  # it is the UNIT-th of the layer
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    return middle[0] + (column + 0.5 - columns / 2) * side, middle[1] + (row + 0.5 - rows / 2) * side


def open_zoom(visit: Visit, jobs: Rendered, site: Site, requests: list[str]) -> Page:
    """The zoom of the layer, once its atlas is drawn."""
    page = visit(site.url(jobs.notebook, f"#/{SHOWN}"), requests=requests, reduced_motion="reduce")
    page.get_by_role("link", name="Zoom").click()
    expect(stage(page)).to_be_visible()
    wait_for("the atlas", lambda: np.ptp(pixels(page, place_of_unit(page, jobs), 6)) > 0, 10)
    return page


def pixels(page: Page, middle: tuple[float, float], half_px: int) -> "NDArray[np.uint8]":
    """What is on the screen around a place."""
    left, top = middle[0] - half_px, middle[1] - half_px
    picture = page.screenshot(clip={"x": left, "y": top, "width": 2 * half_px, "height": 2 * half_px})
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))


def distance(seen: "NDArray[np.uint8]", tile: "NDArray[np.uint8]") -> float:
    """Mean difference of what is on the screen and the middle of a tile, at the best of some shifts by a pixel or two.

    Scaled as browsers do. The pointer is on whole pixels, of the screen as it was before the zoom.
    """
    shifts = itertools.product(np.arange(-2, 2.5, 0.5), repeat=2)
    boxes = [(32 - HALF + x, 32 - HALF + y, 32 + HALF + x, 32 + HALF + y) for x, y in shifts]
    picture = Image.fromarray(tile)
    scaled = [picture.resize(seen.shape[1::-1], Image.Resampling.BILINEAR, box=box) for box in boxes]
    return min(difference(seen, np.asarray(one)) for one in scaled)


def test_the_zoom_leads_from_the_whole_layer_to_a_full_tile(visit: Visit, jobs: Rendered, site: Site) -> None:
    # Given the whole layer as one picture
    requests: list[str] = []
    page = open_zoom(visit, jobs, site, requests)
    middle = place_of_unit(page, jobs)

    # When the pointer is on a unit
    page.mouse.move(*middle)
    # Then the page names it
    status = next(record["status"] for record in jobs.records(jobs.notebook) if record["filter"] == UNIT)
    expect(page.locator("output")).to_contain_text(f"unit {UNIT}, {status}" if status != "live" else f"unit {UNIT}")

    # And when the wheel is turned there until it goes no further
    tile_url = f"/tiles/{SHOWN}/{UNIT}.png"
    for _ in range(30):
        page.mouse.wheel(0, -200)
        page.wait_for_timeout(20)
    wait_for("the tile", lambda: any(url.endswith(tile_url) for url in requests), 10)

    # Then the screen has the pixels of the tile itself
    tile = jobs.tile(jobs.notebook, SHOWN, UNIT)
    wait_for("its pixels", lambda: distance(pixels(page, middle, HALF * MOST), tile) < ALIKE / 4, 10)

    # And a click opens the unit
    page.mouse.click(*middle)
    expect(view.heading(page)).to_have_text(f"{SHOWN} / {UNIT}")


def test_the_zoom_is_used_with_the_keyboard(visit: Visit, jobs: Rendered, files: Site) -> None:
    # Given the zoom of a layer
    requests: list[str] = []
    page = open_zoom(visit, jobs, files, requests)
    # When keys and buttons zoom in and move
    stage(page).focus()
    before = pixels(page, place_of_unit(page, jobs), 100)
    page.keyboard.press("+")
    page.get_by_role("button", name="Zoom in").press("Enter")
    page.wait_for_timeout(300)
    assert not np.array_equal(before, pixels(page, place_of_unit(page, jobs), 100))
    page.get_by_role("button", name="Whole layer").press("Enter")
    page.wait_for_timeout(300)
    # Then the whole layer is seen again
    assert difference(before, pixels(page, place_of_unit(page, jobs), 100)) < 1
    # And Escape leads back to the layer
    page.keyboard.press("Escape")
    expect(view.cells(page).first).to_be_visible()


def test_enter_opens_the_unit_in_the_middle(visit: Visit, jobs: Rendered, files: Site) -> None:
    page = open_zoom(visit, jobs, files, [])
    stage(page).focus()
    for key in ("+", "+", "+", "ArrowUp", "Enter"):
        page.keyboard.press(key)
        page.wait_for_timeout(100)
    expect(view.heading(page)).to_contain_text(f"{SHOWN} / ")


def test_a_link_opens_the_zoom(visit: Visit, jobs: Rendered, site: Site) -> None:
    page = visit(site.url(jobs.notebook, f"#/{SHOWN}?view=zoom"))
    expect(stage(page)).to_be_visible()
    expect(view.heading(page)).to_have_text(f"{SHOWN}, zoom")
