"""Fixtures of the browser's tests: the browser, jobs rendered once, and the places from which pages are opened."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.browser.pages import watched_page
from tests.browser.rendered import Rendered, rendered
from tests.servers import public_folder

#: Debian's browser. Playwright's own would be a download.
CHROMIUM = shutil.which("chromium")

# How long an expectation may take to come true, for two cores that do other things as well.
expect.set_options(timeout=20_000)


def pytest_pycollect_makemodule() -> None:
    """Without a browser, skip the folder as a whole: one line in the summary."""
    if CHROMIUM is None:
        pytest.skip("no test of the gallery in a browser: chromium is not installed (apt-get install chromium)")


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """A headless browser. Pages of different tests share no profile."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM)
        yield started
        started.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a URL in a new page; the arguments are those of ``watched_page``."""
    with ExitStack() as stack:

        def open_page(url: str, **options: Any) -> Page:
            page = stack.enter_context(watched_page(browser, **options))
            page.goto(url)
            return page

        yield open_page


@pytest.fixture(scope="package")
def jobs(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Rendered:
    """The finished jobs, which all processes of a run of the tests share."""
    base = tmp_path_factory.getbasetemp()
    return rendered((base if worker_id == "master" else base.parent) / "rendered")


@dataclass(frozen=True)
class Site:
    """A place from which the jobs' pages are opened."""

    #: URL of the folder that holds the jobs, with a slash at its end
    root: str

    def url(self, job: str, rest: str = "") -> str:
        """URL of the page of a job; ``rest`` is what follows ``index.html``."""
        return f"{self.root}{job}/index.html{rest}"


@pytest.fixture(scope="package")
def files(jobs: Rendered) -> Site:
    """The folder itself."""
    return Site(f"{jobs.bucket.as_uri()}/")


@pytest.fixture(scope="package")
def bucket(jobs: Rendered, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A bucket that serves files to anyone."""
    with public_folder(tmp_path_factory.mktemp("public"), jobs.data) as endpoint:
        yield Site(f"{endpoint}/bucket/")


@pytest.fixture(params=["files", "bucket"])
def site(request: pytest.FixtureRequest) -> Site:
    """Each of the two in turn."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Site)
    return found
