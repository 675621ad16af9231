"""The view of a layer: all of its units at once."""

from collections import Counter

import pytest
from playwright.sync_api import expect

from tests.browser import view
from tests.browser.colours import ALIKE, difference, on_screen
from tests.browser.conftest import Site
from tests.browser.rendered import DEAD, FAILED, FILTERS, SHOWN, Rendered
from tests.browser.view import Visit


def test_all_units_of_a_layer_are_shown_from_one_picture(visit: Visit, jobs: Rendered, site: Site) -> None:
    # When the page of a layer is opened
    requests: list[str] = []
    page = visit(site.url(jobs.notebook, f"#/{SHOWN}"), requests=requests)
    # Then it shows each of its units, and says which of them are not live
    assert view.shown(page) == list(range(FILTERS))
    for record in jobs.records(jobs.notebook):
        expect(view.cell(page, record["filter"])).to_have_accessible_name(view.name_of(record))
    # And each cell has the colours of its tile
    for unit in (0, 10, FILTERS - 1):
        picture = view.cell(page, unit).locator(".pic")
        assert difference(on_screen(picture), jobs.tile(jobs.notebook, SHOWN, unit)) < ALIKE, unit
    # And its pictures are one file, and no tile is loaded
    assert len([url for url in requests if f"/atlas/{SHOWN}.webp" in url]) == 1
    assert not [url for url in requests if "/tiles/" in url]


def test_units_are_sorted_by_what_their_records_say(visit: Visit, jobs: Rendered, files: Site) -> None:
    page = visit(files.url(jobs.notebook, f"#/{SHOWN}"))
    by_activation = jobs.sorted(jobs.notebook, lambda record: record["activation"])
    by_gain = jobs.sorted(jobs.notebook, lambda record: record["activation"] - record["start_activation"])
    for order, expected in (("activation", by_activation), ("gain", by_gain), ("index", None)):
        # When another order is chosen
        view.sort(page, order)
        # Then the units have it, and those without a picture come last
        assert view.shown(page) == ([*expected, FAILED] if expected else list(range(FILTERS)))


def test_units_are_sorted_by_similarity_to_the_chosen_one(visit: Visit, jobs: Rendered, files: Site) -> None:
    # Given a layer in which a unit was chosen
    page = visit(files.url(jobs.notebook, f"#/{SHOWN}"))
    view.cell(page, 12).focus()
    # When its units are sorted by similarity
    view.sort(page, "similar")
    # Then they are those of the descriptors' cosine, from the unit itself on
    similarity = jobs.similarity(jobs.notebook, 12)
    found = view.shown(page)
    assert found[0] == 12
    assert found[-1] == FAILED
    values = [similarity[unit] for unit in found[:-1]]
    assert values == pytest.approx(sorted(values, reverse=True), abs=1e-6)
    # And the link has it
    assert "by=similar:12" in page.url
    # And another number sorts by similarity to that unit
    page.get_by_label("Sort by similarity to unit").fill("20")
    page.keyboard.press("Enter")
    expect(view.cells(page).first).to_have_attribute("data-unit", "20")


def test_units_are_filtered_by_status(visit: Visit, jobs: Rendered, files: Site) -> None:
    page = visit(files.url(jobs.notebook, f"#/{SHOWN}"))
    records = jobs.records(jobs.notebook)
    # Given the number of units of each status
    group = page.get_by_role("group", name="Show units by status")
    for status, count in Counter(record["status"] for record in records).items():
        expect(group.locator("label", has_text=status)).to_contain_text(str(count))
    for statuses in (["rescued"], ["dead", "failed"], ["live"], []):
        # When some are chosen
        view.show_only(page, *statuses)
        # Then their units alone are shown
        assert view.shown(page) == [record["filter"] for record in records if record["status"] in statuses]
    expect(page.get_by_text("No unit has the chosen status")).to_be_visible()


def test_a_unit_is_found_by_its_number(visit: Visit, jobs: Rendered, files: Site) -> None:
    page = visit(files.url(jobs.notebook, f"#/{SHOWN}"))
    find = page.get_by_label("Find unit")
    # When a number that the layer lacks is asked for
    find.fill("123")
    find.press("Enter")
    # Then the page says so
    expect(page.get_by_text(f"No unit 123 in {SHOWN}.").first).to_be_visible()
    # And when it is that of a unit, it opens
    find.fill("23")
    find.press("Enter")
    expect(view.heading(page)).to_have_text(f"{SHOWN} / 23")


def test_dead_and_failed_units_are_marked(visit: Visit, jobs: Rendered, files: Site) -> None:
    # When the page of a layer is opened
    page = visit(files.url(jobs.notebook, f"#/{SHOWN}"))
    # Then a failed unit has a dark cell with a mark, and a dead one is dark
    view.wait_until_drawn(page)
    for unit in (DEAD, FAILED):
        seen = on_screen(view.cell(page, unit).locator(".pic"))
        assert seen.mean() < 100
        assert seen.std() > 1


def test_large_cells_show_the_tiles_themselves(visit: Visit, jobs: Rendered, files: Site) -> None:
    # Given a layer
    requests: list[str] = []
    page = visit(files.url(jobs.notebook, f"#/{SHOWN}"), requests=requests)
    # When large cells are chosen
    page.get_by_label("Size").select_option("large")
    # Then a tile in sight is loaded
    view.check_loaded(view.cell(page, 0).locator("img"))
    assert [url for url in requests if url.endswith(f"/tiles/{SHOWN}/0.png")]
