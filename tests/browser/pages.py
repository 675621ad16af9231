"""Pages in a real browser, which fail their test if anything goes wrong in them that a person does not see."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Response, ViewportSize

#: An event that violates the page's policy becomes a line of the console.
_REPORT = """
addEventListener("securitypolicyviolation", event =>
  console.error("policy violated: " + event.violatedDirective + " " + event.blockedURI));
"""

#: What a phone shows, in CSS pixels.
PHONE: ViewportSize = {"width": 360, "height": 740}
DESK: ViewportSize = {"width": 1280, "height": 900}


#: The browser's own request, which no page makes.
_FAVICON = r"/favicon\.ico$"

#: OpenSeadragon's warning of a tile that arrives after its zoom was closed.
_LATE_TILE = "Ignoring tile %s loaded before reset"


@dataclass
class Problems:
    """What went wrong in a page: errors of console and scripts, and requests without a good answer."""

    #: patterns of URLs without an answer that the test expects
    expected: tuple[str, ...]
    found: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        """Collect the problems of ``page`` from now on."""
        page.add_init_script(_REPORT)
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.found.append(f"script: {error}"))
        page.on("requestfailed", self._failed)
        page.on("response", self._answered)

    def _console(self, message: ConsoleMessage) -> None:
        place = message.location.get("url", "")
        if message.text.startswith(_LATE_TILE):
            return
        if message.type in {"error", "warning"} and not (self._is_expected(place) and "load resource" in message.text):
            self.found.append(f"console: {message.text} ({place})")

    def _failed(self, request: Request) -> None:
        # A request that the page itself ended, such as a picture of a view that was left, is no failure.
        if request.failure != "net::ERR_ABORTED" and not self._is_expected(request.url):
            self.found.append(f"request: {request.failure} {request.url}")

    def _answered(self, response: Response) -> None:
        if response.status >= 400 and not self._is_expected(response.url):
            self.found.append(f"status {response.status}: {response.url}")

    def _is_expected(self, url: str) -> bool:
        return any(re.search(pattern, url) for pattern in (*self.expected, _FAVICON))


@contextmanager
def watched_page(
    browser: Browser, *, expected: tuple[str, ...] = (), requests: list[str] | None = None, **options: Any
) -> Iterator[Page]:
    """A new page of a new profile; AssertionError at the end if it had a problem.

    ``expected``: patterns of URLs that need not exist. ``requests``: is filled with the URLs that the page asks for.
    ``options`` are those of ``Browser.new_context``, such as ``color_scheme``.
    """
    context = browser.new_context(**{"viewport": DESK, **options})
    context.set_default_timeout(20_000)
    problems = Problems(expected)
    page = context.new_page()
    problems.watch(page)
    if requests is not None:
        page.on("request", lambda request: requests.append(request.url))
    try:
        yield page
    finally:
        context.close()
    assert not problems.found, "\n".join(problems.found)


def check_accessible(page: Page) -> None:
    """AssertionError with what axe finds wrong in the page as it is now, its contrasts included."""
    # Preloading fetches style sheets, which fails for files.
    found = Axe().run(page, options={"preload": False}).response["violations"]
    lines = [
        f"{violation['id']}: {violation['help']}: {node['target']} {node['html'][:200]} {node['failureSummary'][:300]}"
        for violation in found
        for node in violation["nodes"][:3]
    ]
    assert not lines, "\n".join(lines)


def check_fits(page: Page) -> None:
    """AssertionError if the page can be scrolled sideways."""
    wide = page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"the page is {wide} px wider than its window"
