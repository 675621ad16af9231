"""The first view of a job: the network as its layers."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Site
from tests.browser.rendered import LAYERS, Rendered


@pytest.mark.parametrize("method", ["notebook", "fourier", "aliased"])
def test_the_page_of_a_job_opens_from_a_folder_and_from_a_bucket(
    visit: Callable[..., Page], jobs: Rendered, site: Site, method: str
) -> None:
    # Given the page of a finished job
    job = getattr(jobs, method)
    # When it is opened
    page = visit(site.url(job))
    # Then it names its layers, and nothing went wrong in it
    for layer in LAYERS if method != "aliased" else LAYERS[:1]:
        expect(page.get_by_text(layer).first).to_be_visible()
