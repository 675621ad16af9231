"""The parts of the gallery's pages as a person finds them: by their role, their label or their unit's number."""

from collections.abc import Callable
from typing import Any

from playwright.sync_api import Locator, Page, expect

#: Order of the units -> its name in the page.
ORDERS = {
    "index": "index",
    "activation": "activation",
    "gain": "gain in activation",
    "similar": "similarity to unit",
}


def wait_until_drawn(page: Page) -> None:
    """Return once the view that the link leads to is there."""
    expect(page.locator("main[data-ready]")).to_be_visible()


def heading(page: Page) -> Locator:
    """The view's heading."""
    return page.get_by_role("heading", level=1)


def rows(page: Page) -> Locator:
    """The layers of the network, or the jobs of the bucket."""
    return page.locator("ol.layers > li")


def cells(page: Page) -> Locator:
    """The units that a layer's view shows, in its order."""
    return page.get_by_role("list", name="Units").get_by_role("link")


def cell(page: Page, unit: int) -> Locator:
    """One of them."""
    return page.locator(f".layer .cells a[data-unit='{unit}']")


def shown(page: Page) -> list[int]:
    """The numbers of the units that a layer's view shows, in its order."""
    wait_until_drawn(page)
    found: list[int] = cells(page).evaluate_all("cells => cells.map(cell => Number(cell.dataset.unit))")
    return found


def alike(page: Page) -> list[int]:
    """The units that a unit's view lists as most alike."""
    found: list[int] = page.locator(".alike a").evaluate_all("cells => cells.map(cell => Number(cell.dataset.unit))")
    return found


def name_of(record: dict[str, Any]) -> str:
    """What a screen reader says of a unit."""
    status = record["status"]
    return f"unit {record['filter']}" + ("" if status == "live" else f", {status}")


def sort(page: Page, order: str) -> None:
    """Choose an order of a layer's units."""
    page.get_by_label("Sort by", exact=True).select_option(ORDERS[order])


def show_only(page: Page, *statuses: str) -> None:
    """Show the units of these statuses alone."""
    for box in page.get_by_role("group", name="Show units by status").get_by_role("checkbox").all():
        if box.is_visible():
            box.set_checked(box.get_attribute("value") in statuses)


def tile(page: Page) -> Locator:
    """The large picture of a unit, or those of compared jobs."""
    return page.locator("img.tile")


def check_loaded(pictures: Locator) -> None:
    """AssertionError if one of these pictures does not load."""
    for picture in pictures.all():
        picture.scroll_into_view_if_needed()
        loaded = "image => image.decode().then(() => image.naturalWidth)"
        assert picture.evaluate(loaded) > 0, picture.get_attribute("src")


#: Opens a URL in a new page.
Visit = Callable[..., Page]
