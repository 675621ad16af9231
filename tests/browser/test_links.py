"""Links: they lead to a view, with all that was chosen in it, and go on working."""

import pytest
from playwright.sync_api import expect

from tests.browser import view
from tests.browser.conftest import Site
from tests.browser.rendered import ALIAS, ALIASED, RESCUED, SHOWN, Rendered
from tests.browser.view import Visit


def test_a_link_with_a_layers_alias_opens_the_layer_and_its_units(visit: Visit, jobs: Rendered, site: Site) -> None:
    page = visit(site.url(jobs.aliased, f"#/{ALIAS}"))
    expect(view.heading(page)).to_contain_text(ALIASED)
    expect(view.cells(page)).to_have_count(4)
    page.goto(site.url(jobs.aliased, f"#/{ALIAS}/2"))
    expect(view.tile(page)).to_have_attribute("src", f"tiles/{ALIASED}/2.png")


@pytest.mark.parametrize("old", [f"#{SHOWN}/{RESCUED}", f"#{SHOWN}"])
def test_a_link_of_the_first_version_is_redirected(visit: Visit, jobs: Rendered, files: Site, old: str) -> None:
    # Given a link as filterfarm 0.1.0 made them
    # When it is opened
    page = visit(files.url(jobs.notebook, old))
    # Then it is replaced by today's link to the same place
    expect(view.heading(page)).to_be_visible()
    assert page.evaluate("() => location.hash") == old.replace("#", "#/")
    assert page.evaluate("() => history.length") == 2  # the empty page before it


def test_what_is_chosen_is_in_the_link(visit: Visit, jobs: Rendered, files: Site) -> None:
    # Given a layer that was sorted and filtered
    page = visit(files.url(jobs.notebook, f"#/{SHOWN}"))
    view.sort(page, "activation")
    view.show_only(page, "rescued")
    chosen = view.shown(page)
    # When its address is opened in another window
    other = visit(page.url)
    # Then it shows the same
    expect(view.cells(other)).to_have_count(len(chosen))
    assert view.shown(other) == chosen
    assert "by=activation" in page.url
    assert "show=rescued" in page.url


def test_an_embedded_view_has_no_frame(visit: Visit, jobs: Rendered, files: Site) -> None:
    page = visit(files.url(jobs.notebook, f"#/{SHOWN}/{RESCUED}?embed"))
    expect(view.tile(page)).to_be_visible()
    expect(page.get_by_role("banner")).to_be_hidden()
    expect(page.get_by_role("contentinfo")).to_be_hidden()


def test_each_view_has_a_title(visit: Visit, jobs: Rendered, files: Site) -> None:
    page = visit(files.url(jobs.notebook))
    titles = []
    for rest in ("", f"#/{SHOWN}", f"#/{SHOWN}/{RESCUED}", f"#/{SHOWN}/{RESCUED + 1}"):
        page.goto(files.url(jobs.notebook, rest))
        view.wait_until_drawn(page)
        titles.append(page.title())
    assert len(set(titles)) == 4
    assert all("squeezenet1_1" in title for title in titles)
    assert SHOWN in titles[1]
    assert f"{RESCUED} " in f"{titles[2]} "


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("#/no.such.layer", 'no layer "no.such.layer"'),
        (f"#/{SHOWN}/999", "Unit 999 of features.0 is not part of this job"),
        (f"#/{SHOWN}/x", "Unit x of features.0 is not part of this job"),
        ("#/%3Cimg%20src=x%20onerror=alert(1)%3E", 'no layer "<img src=x onerror=alert(1)>"'),
    ],
)
def test_a_link_to_nothing_says_so_and_leads_back(
    visit: Visit, jobs: Rendered, files: Site, rest: str, said: str
) -> None:
    # When a link to what the job does not have is opened
    page = visit(files.url(jobs.notebook, rest))
    # Then the page says so
    expect(page.locator("main .notice")).to_contain_text(said)
    # And leads back
    page.get_by_role("link", name="All layers").click()
    expect(view.rows(page)).to_have_count(2)
