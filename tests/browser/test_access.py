"""The gallery for everyone: in light and dark, by keyboard, on a phone, without motion, through a screen reader."""

import pytest
from playwright.sync_api import Page, expect

from tests.browser import view
from tests.browser.colours import on_screen
from tests.browser.conftest import Site
from tests.browser.pages import DESK, PHONE, check_accessible, check_fits
from tests.browser.rendered import DEAD, FAILED, LAYERS, RESCUED, SHOWN, Rendered
from tests.browser.view import Visit

#: view -> what follows index.html; OTHER is a second job
VIEWS = {
    "network": "",
    "layer": f"#/{SHOWN}?by=similar:0&show=live,rescued",
    "large cells": f"#/{SHOWN}?size=large",
    "unit": f"#/{SHOWN}/{RESCUED}",
    "dead unit": f"#/{SHOWN}/{DEAD}",
    "failed unit": f"#/{SHOWN}/{FAILED}",
    "comparison": f"#/{SHOWN}?with=OTHER",
    "compared unit": f"#/{SHOWN}/{RESCUED}?with=OTHER",
    "zoom": f"#/{SHOWN}?view=zoom",
    "embedded layer": f"#/{SHOWN}?embed",
    "embedded unit": f"#/{SHOWN}/{RESCUED}?embed",
    "unknown layer": "#/no.such.layer",
}


def check_everywhere(page: Page) -> None:
    """Check a view in light and dark, on a desk and on a phone."""
    view.wait_until_drawn(page)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        check_accessible(page)
    page.set_viewport_size(PHONE)
    check_fits(page)
    check_accessible(page)
    page.set_viewport_size(DESK)


@pytest.mark.parametrize("name", VIEWS)
def test_axe_finds_nothing_in_light_dark_and_on_a_phone_which_no_view_is_wider_than(
    visit: Visit, jobs: Rendered, files: Site, name: str
) -> None:
    page = visit(files.url(jobs.notebook, VIEWS[name].replace("OTHER", jobs.fourier)), reduced_motion="reduce")
    check_everywhere(page)
    if name == "unit":  # and with all that can be unfolded
        page.get_by_text("All values of the recipe").click()
        expect(page.get_by_role("definition").filter(has_text="squeezenet1_1")).to_be_visible()
        expect(page.locator(".record details dd").first).to_be_visible()
        check_everywhere(page)
    if name in {"layer", "unit"}:
        page.get_by_text("Compare", exact=True).click()
        expect(page.get_by_role("checkbox", name=jobs.fourier)).to_be_visible()
        check_everywhere(page)


def test_axe_finds_nothing_in_the_list_of_jobs(visit: Visit, jobs: Rendered, files: Site) -> None:
    page = visit(f"{files.root}index.html", reduced_motion="reduce")
    page.get_by_role("checkbox", name=f"Compare {jobs.notebook}").check()
    page.get_by_role("checkbox", name=f"Compare {jobs.fourier}").check()
    check_everywhere(page)


def test_colours_are_those_that_the_system_prefers(visit: Visit, jobs: Rendered, files: Site) -> None:
    for scheme, is_dark in (("light", False), ("dark", True)):
        page = visit(files.url(jobs.notebook), color_scheme=scheme)
        view.wait_until_drawn(page)
        assert (on_screen(view.heading(page)).mean() < 128) == is_dark


def test_a_unit_is_opened_and_left_with_the_keyboard_alone(visit: Visit, jobs: Rendered, site: Site) -> None:
    # Given the network
    page = visit(site.url(jobs.notebook))
    view.wait_until_drawn(page)
    # When Tab and Enter open a layer
    tab_to(page, LAYERS[0])
    page.keyboard.press("Enter")
    expect(view.heading(page)).to_be_focused()
    # And Tab and the arrow keys lead to a unit
    tab_to(page, "unit 0")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowUp", "End", "Home", "ArrowRight"):
        page.keyboard.press(key)
    expect(view.cell(page, 1)).to_be_focused()
    # And Enter opens it
    page.keyboard.press("Enter")
    expect(view.heading(page)).to_have_text(f"{SHOWN} / 1")
    # And Escape leads back to it, and to its layer
    page.keyboard.press("Escape")
    expect(view.cell(page, 1)).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("link", name=LAYERS[0], exact=True)).to_be_focused()


def tab_to(page: Page, name: str) -> None:
    """Press Tab until the focus is on the link of that name."""
    for _ in range(40):
        page.keyboard.press("Tab")
        focused = "() => document.activeElement.getAttribute('aria-label') || document.activeElement.textContent"
        if page.evaluate(focused) == name:
            return
    raise AssertionError(f"Tab does not lead to {name}")


def test_the_menu_of_jobs_is_closed_by_escape(visit: Visit, jobs: Rendered, files: Site) -> None:
    page = visit(files.url(jobs.notebook, f"#/{SHOWN}"))
    page.get_by_text("Compare", exact=True).click()
    page.get_by_role("checkbox", name=jobs.fourier).focus()
    page.keyboard.press("Escape")
    expect(page.get_by_role("checkbox", name=jobs.fourier)).to_be_hidden()
    expect(page.get_by_text("Compare", exact=True)).to_be_focused()


def test_nothing_moves_where_less_motion_is_wished(visit: Visit, jobs: Rendered, files: Site) -> None:
    # Given a person who wishes less motion
    page = visit(files.url(jobs.notebook, f"#/{SHOWN}"), reduced_motion="reduce")
    # When any view is shown
    for name in ("layer", "unit", "network"):
        page.goto(files.url(jobs.notebook, VIEWS[name]))
        view.wait_until_drawn(page)
        # Then nothing has a transition or an animation, and no film plays by itself
        moving = """() => [...document.querySelectorAll("*")].filter(node => {
            const style = getComputedStyle(node);
            return style.animationName !== "none" || parseFloat(style.transitionDuration) > 0;
        }).length"""
        assert page.evaluate(moving) == 0
        assert page.locator("img[src*='frames/']").count() == 0


def test_names_that_are_html_are_shown_as_text(visit: Visit, jobs: Rendered, site: Site) -> None:
    # Given a checkpoint and a reason of a failure whose text is HTML with a script
    for rest in ("", f"#/{SHOWN}/{FAILED}", f"#/{SHOWN}?with={jobs.fourier}", f"#/{SHOWN}/0?with={jobs.fourier}"):
        # When a page shows them
        page = visit(site.url(jobs.notebook, rest))
        view.wait_until_drawn(page)
        # Then they are text, and nothing ran: that would be an error of the page
        expect(page.get_by_text("<img src=x onerror=alert(1)>").first).to_be_visible()
        assert page.locator("img[src='x']").count() == 0
