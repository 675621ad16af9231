"""The first view of a job, the network as its layers, and the page of a bucket's jobs."""

from collections import Counter

import pytest
from playwright.sync_api import expect

from tests.browser import view
from tests.browser.conftest import Site
from tests.browser.rendered import ALIAS, HARMFUL, LAYERS, Rendered
from tests.browser.view import Visit


def test_a_network_is_shown_as_its_layers_in_order(visit: Visit, jobs: Rendered, site: Site) -> None:
    # When the page of a job is opened
    page = visit(site.url(jobs.notebook))
    view.wait_until_drawn(page)
    # Then its layers are there in the network's order
    expect(view.rows(page).get_by_role("heading")).to_have_text(list(LAYERS))
    for layer, row in zip(LAYERS, view.rows(page).all(), strict=True):
        # And each has a strip of eight tiles
        strip = row.locator("img")
        view.check_loaded(strip)
        assert strip.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [8 * 64, 64]
        # And the number of its units, and of those that are not live
        counts = Counter(record["status"] for record in jobs.records(jobs.notebook, layer))
        expect(row).to_contain_text(f"{counts.total()} units")
        for status in ("rescued", "dead", "failed"):
            if counts[status]:
                expect(row).to_contain_text(f"{counts[status]} {status}")
            else:
                expect(row).not_to_contain_text(status)
    # And the network, its weights and the recipe in words stand above
    expect(view.heading(page)).to_have_text("squeezenet1_1")
    expect(page.locator("main")).to_contain_text(f"{HARMFUL}.pth")
    expect(page.locator("main")).to_contain_text("notebook")
    expect(page.locator("main")).to_contain_text("1 failed")


def test_a_layer_is_opened_from_the_network_and_left_again(visit: Visit, jobs: Rendered, site: Site) -> None:
    # Given the network
    page = visit(site.url(jobs.notebook))
    # When a layer is selected
    page.get_by_role("link", name=LAYERS[1], exact=True).click()
    # Then it opens
    expect(view.heading(page)).to_have_text(LAYERS[1])
    # And the way back leads to the network, with the layer in focus
    page.get_by_role("navigation", name="Path").get_by_role("link", name=jobs.notebook).click()
    expect(page.get_by_role("link", name=LAYERS[1], exact=True)).to_be_focused()


def test_a_layers_alias_is_shown(visit: Visit, jobs: Rendered, files: Site) -> None:
    page = visit(files.url(jobs.aliased))
    expect(view.rows(page)).to_contain_text([ALIAS])


def test_the_page_of_a_bucket_lists_its_jobs_and_leads_to_each(visit: Visit, jobs: Rendered, site: Site) -> None:
    # When the page of the bucket is opened
    page = visit(f"{site.root}index.html")
    # Then each job is there, with a strip, its state and its recipe in words
    names = sorted([jobs.notebook, jobs.fourier, jobs.aliased])
    expect(view.rows(page).get_by_role("heading")).to_have_text(names)
    view.check_loaded(view.rows(page).locator("img"))
    expect(view.rows(page).filter(has_text=jobs.aliased)).to_contain_text("4 tiles in 1 layer")
    # And its link opens it
    page.get_by_role("link", name=jobs.aliased).click()
    expect(view.heading(page)).to_have_text("vgg11")
    # And the job's page leads back, and to the others
    expect(page.get_by_role("link", name=jobs.fourier)).to_be_visible()
    page.get_by_role("link", name="All jobs", exact=True).click()
    expect(page).to_have_url(f"{site.root}index.html")


@pytest.mark.parametrize("second", ["fourier", "aliased"])
def test_two_jobs_are_chosen_for_comparison(visit: Visit, jobs: Rendered, files: Site, second: str) -> None:
    # Given the page of the bucket
    page = visit(f"{files.root}index.html")
    # When two jobs are chosen
    for job in (jobs.notebook, getattr(jobs, second)):
        page.get_by_role("checkbox", name=f"Compare {job}").check()
    if second == "fourier":
        # Then a link leads to their first common layer
        page.get_by_role("link", name="Compare", exact=True).click()
        expect(
            page.get_by_role("list", name="Compared jobs, from left to right").get_by_role("listitem")
        ).to_have_count(2)
    else:
        # Or, where they are of different networks, to that which has the same name
        expect(page.get_by_role("link", name="Compare", exact=True)).to_be_visible()
