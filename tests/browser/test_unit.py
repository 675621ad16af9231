"""The view of a unit: its picture, film and record, its neighbours, and the units most alike."""

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.browser import view
from tests.browser.colours import ALIKE, difference, on_screen
from tests.browser.conftest import Site
from tests.browser.rendered import DEAD, FAILED, FILTERS, HARMFUL, RESCUED, SHOWN, Rendered
from tests.browser.view import Visit


def test_a_unit_shows_its_tile_and_its_record(visit: Visit, jobs: Rendered, site: Site) -> None:
    # When a unit is opened
    page = visit(site.url(jobs.fourier, f"#/{SHOWN}/10"))
    # Then its tile is there, larger than it was stored
    tile = view.tile(page)
    view.check_loaded(tile)
    assert tile.evaluate("image => image.naturalWidth") == 64
    box = tile.bounding_box()
    assert box is not None
    assert box["width"] > 128
    assert difference(on_screen(tile), jobs.tile(jobs.fourier, SHOWN, 10)) < ALIKE / 4
    # And its record
    record = jobs.records(jobs.fourier)[10]
    details = page.locator(".record")
    for name in ("activation", "start_activation", "stored_activation"):
        expect(details).to_contain_text(f"{float(f'{record[name]:.4g}'):g} on the")
    for text in (f"{record['steps']} steps", record["device"], "fp32", "fourier", "squeezenet1_1", f"{HARMFUL}.pth"):
        expect(details).to_contain_text(text)
    expect(details.locator("dt", has_text="Seed").locator("+ dd").first).to_have_text(str(record["seed"]))
    # And a job without films offers none
    expect(page.get_by_role("button", name="Play film")).to_have_count(0)


@pytest.mark.parametrize(
    ("unit", "said"), [(RESCUED, "Rescued:"), (DEAD, "Dead:"), (FAILED, "Failed:"), (FAILED, HARMFUL), (10, "Live:")]
)
def test_a_units_status_is_explained(visit: Visit, jobs: Rendered, files: Site, unit: int, said: str) -> None:
    page = visit(files.url(jobs.notebook, f"#/{SHOWN}/{unit}"))
    expect(page.locator(".record")).to_contain_text(said)
    expect(view.tile(page)).to_have_count(0 if unit == FAILED else 1)


def test_a_film_plays_when_asked_for(visit: Visit, jobs: Rendered, site: Site) -> None:
    # Given a unit of a job with films
    requests: list[str] = []
    page = visit(site.url(jobs.notebook, f"#/{SHOWN}/10"), requests=requests)
    view.check_loaded(view.tile(page))
    assert not [url for url in requests if "/frames/" in url]
    # When its film is asked for
    page.get_by_role("button", name="Play film").click()
    # Then it takes the picture's place, until the picture is asked for
    expect(view.tile(page)).to_have_attribute("src", f"frames/{SHOWN}/10.webp")
    view.check_loaded(view.tile(page))
    page.get_by_role("button", name="Show picture").click()
    expect(view.tile(page)).to_have_attribute("src", f"tiles/{SHOWN}/10.png")


def test_arrow_keys_lead_to_the_neighbours_in_the_chosen_order(visit: Visit, jobs: Rendered, files: Site) -> None:
    # Given a unit of a layer that is sorted by activation and shows live units alone
    live = {record["filter"] for record in jobs.records(jobs.notebook) if record["status"] == "live"}
    line = [unit for unit in jobs.sorted(jobs.notebook, lambda record: record["activation"]) if unit in live]
    page = visit(files.url(jobs.notebook, f"#/{SHOWN}/{line[0]}?by=activation&show=live"))
    view.wait_until_drawn(page)
    for key, unit in [("Right", line[1]), ("Right", line[2]), ("Left", line[1]), ("Left", line[0]), ("Left", line[0])]:
        # When an arrow key is pressed
        page.keyboard.press(f"Arrow{key}")
        # Then it leads along that order, and not beyond its end
        expect(view.heading(page)).to_have_text(f"{SHOWN} / {unit}")
    # And Escape leads back to the layer, to the unit that was last seen
    page.keyboard.press("Escape")
    expect(view.cell(page, line[0])).to_be_focused()
    assert view.shown(page) == line


def test_the_units_most_alike_are_those_of_the_highest_cosine(visit: Visit, jobs: Rendered, site: Site) -> None:
    # When a unit is opened
    page = visit(site.url(jobs.notebook, f"#/{SHOWN}/12"))
    view.wait_until_drawn(page)
    # Then eight others are listed by the cosine of their descriptors, and the page says what it means
    similarity = jobs.similarity(jobs.notebook, 12)
    others = sorted((value for unit, value in similarity.items() if unit != 12), reverse=True)
    assert [similarity[unit] for unit in view.alike(page)] == pytest.approx(others[:8], abs=1e-6)
    expect(page.locator(".alike")).to_contain_text("cosine of the pictures' descriptors")
    # And each leads to its unit
    first = view.alike(page)[0]
    page.locator(".alike a").first.click()
    expect(view.heading(page)).to_have_text(f"{SHOWN} / {first}")


def test_a_tile_is_downloaded(visit: Visit, jobs: Rendered, bucket: Site) -> None:
    # Given a unit
    page = visit(bucket.url(jobs.notebook, f"#/{SHOWN}/10"))
    # When its picture is downloaded
    with page.expect_download() as download:
        page.get_by_role("link", name="Download PNG").click()
    # Then it is the tile, under a name that says which
    assert download.value.suggested_filename == f"{SHOWN}-10.png"
    assert np.array_equal(np.asarray(Image.open(download.value.path())), jobs.tile(jobs.notebook, SHOWN, 10))


def test_the_link_to_a_unit_is_copied(visit: Visit, jobs: Rendered, site: Site) -> None:
    # Given a unit, opened in a sorted layer within another page
    where = site.url(jobs.notebook, f"#/{SHOWN}/10?by=gain")
    page = visit(where, permissions=["clipboard-read", "clipboard-write"])
    # When its link is copied
    page.get_by_role("button", name="Copy link").click()
    # Then the clipboard has it, and the page says so
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("() => navigator.clipboard.readText()") == where


def test_without_a_clipboard_the_link_is_shown(visit: Visit, jobs: Rendered, files: Site) -> None:
    page = visit(files.url(jobs.notebook, f"#/{SHOWN}/10"))
    page.evaluate("() => Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.get_by_role("button", name="Copy link").click()
    expect(page.get_by_label("Link to this unit")).to_have_value(files.url(jobs.notebook, f"#/{SHOWN}/10"))


def test_the_last_unit_has_no_next_one(visit: Visit, jobs: Rendered, files: Site) -> None:
    page = visit(files.url(jobs.notebook, f"#/{SHOWN}/{FILTERS - 1}"))
    expect(page.get_by_role("link", name="previous")).to_be_visible()
    expect(page.get_by_role("link", name="next")).to_have_count(0)
