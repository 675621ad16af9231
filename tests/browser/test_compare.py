"""Several jobs side by side, unit by unit."""

from playwright.sync_api import expect

from tests.browser import view
from tests.browser.colours import ALIKE, difference, on_screen
from tests.browser.conftest import Site
from tests.browser.rendered import ALIASED, FAILED, FILTERS, SHOWN, Rendered
from tests.browser.view import Visit


def test_two_jobs_are_compared_unit_by_unit(visit: Visit, jobs: Rendered, site: Site) -> None:
    # Given a layer of one job
    page = visit(site.url(jobs.notebook, f"#/{SHOWN}"))
    # When another job is chosen beside it
    page.get_by_text("Compare", exact=True).click()
    page.get_by_role("checkbox", name=jobs.fourier).check()
    # Then each unit shows the pictures of both, in the order that the page names
    legend = page.get_by_role("list", name="Compared jobs, from left to right").get_by_role("listitem")
    expect(legend).to_have_count(2)
    expect(legend.nth(0)).to_contain_text(jobs.notebook)
    expect(legend.nth(1)).to_contain_text(jobs.fourier)
    page.keyboard.press("Escape")
    expect(view.cells(page)).to_have_count(FILTERS)
    for unit in (0, 20):
        pictures = view.cell(page, unit).locator(".pic")
        expect(pictures).to_have_count(2)
        for place, job in enumerate((jobs.notebook, jobs.fourier)):
            assert difference(on_screen(pictures.nth(place)), jobs.tile(job, SHOWN, unit)) < ALIKE
    # And the choice is in the link, and goes with it to a unit
    assert f"with={jobs.fourier}" in page.url
    view.cell(page, 20).click()
    expect(view.tile(page)).to_have_count(2)
    for place, job in enumerate((jobs.notebook, jobs.fourier)):
        expect(page.get_by_role("heading", level=2, name=job)).to_be_visible()
        view.check_loaded(view.tile(page).nth(place))
        assert difference(on_screen(view.tile(page).nth(place)), jobs.tile(job, SHOWN, 20)) < ALIKE / 4


def test_three_jobs_are_compared(visit: Visit, jobs: Rendered, files: Site) -> None:
    # Given a link that names two others, one of which has fewer units
    page = visit(files.url(jobs.notebook, f"#/{ALIASED}?with={jobs.fourier},{jobs.aliased}"))
    # When it is opened
    view.wait_until_drawn(page)
    # Then each unit has three pictures, of which that job's is empty where it has no unit
    expect(view.cell(page, 0).locator(".pic")).to_have_count(3)
    expect(view.cell(page, 0).locator(".pic.absent")).to_have_count(0)
    expect(view.cell(page, FILTERS - 1).locator(".pic.absent")).to_have_count(1)


def test_units_stay_together_when_sorted(visit: Visit, jobs: Rendered, files: Site) -> None:
    page = visit(files.url(jobs.notebook, f"#/{SHOWN}?with={jobs.fourier}"))
    view.wait_until_drawn(page)
    view.sort(page, "activation")
    expected = jobs.sorted(jobs.notebook, lambda record: record["activation"])
    assert view.shown(page) == [*expected, FAILED]
    second = view.cell(page, expected[0]).locator(".pic").nth(1)
    assert difference(on_screen(second), jobs.tile(jobs.fourier, SHOWN, expected[0])) < ALIKE


def test_a_job_that_is_not_there_is_named(visit: Visit, jobs: Rendered, site: Site) -> None:
    # Given a link that names a job which the bucket does not have
    page = visit(site.url(jobs.notebook, f"#/{SHOWN}?with=no-such-job"), expected=("/no-such-job/",))
    # When it is opened
    # Then the layer is shown, and the page says what is missing
    expect(view.cells(page)).to_have_count(FILTERS)
    expect(page.get_by_text("no-such-job has nothing to show")).to_be_visible()


def test_only_names_of_jobs_are_asked_for(visit: Visit, jobs: Rendered, files: Site) -> None:
    requests: list[str] = []
    page = visit(files.url(jobs.notebook, f"#/{SHOWN}?with=..%2F..%2Fevil"), requests=requests)
    expect(page.get_by_text('"../../evil" is not the id of a job')).to_be_visible()
    assert not [url for url in requests if "evil" in url.partition("#")[0]]
