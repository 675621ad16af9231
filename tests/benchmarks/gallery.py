"""How fast the gallery of a large job opens, and what it takes: ``make bench-gallery``.

The objects are written by the project's own code for pictures of a stub renderer. Each request is answered after
``LATENCY_S``, as over a network. The browser is Debian's chromium. Prints a table; asserts nothing.
"""

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from tests.benchmarks.large_jobs import LAYER, inception, one_layer, write
from tests.browser.conftest import CHROMIUM
from tests.browser.pages import DESK

#: Seconds before each answer.
LATENCY_S = 0.04

#: Loads of each page, each in a new profile. The median is printed.
_LOADS = 5

#: Resolves with the milliseconds since the navigation at which ``count`` elements existed and the next frame was drawn.
_PAINTED = """([selector, count]) => new Promise(resolve => {
  const check = () => document.querySelectorAll(selector).length >= count
    ? requestAnimationFrame(() => setTimeout(() => resolve(performance.now())))
    : setTimeout(check, 5);
  check();
})"""

#: Resolves with the milliseconds since the navigation at which the next key was handled and its frame drawn.
_HANDLED = """() => new Promise(resolve => addEventListener("keydown",
  () => requestAnimationFrame(() => setTimeout(() => resolve(performance.now()))), {once: true}))"""


@dataclass(kw_only=True)
class Load:
    """One load of a page. Times are since the start of the navigation."""

    #: the elements exist and are drawn
    painted_ms: float
    #: a key pressed after that is handled and drawn
    interactive_ms: float
    requests: int
    transferred_kb: float
    heap_mb: float
    #: resident memory of the page's process, most of which is the browser itself
    process_mb: float


class _Slow(SimpleHTTPRequestHandler):
    """Answers after ``LATENCY_S``, over connections that are kept."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        time.sleep(LATENCY_S)
        super().do_GET()

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@contextmanager
def slow_server(folder: Path) -> Iterator[str]:
    """Serve a folder on 127.0.0.1; gives its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Slow, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def measure(browser: Browser, url: str, selector: str, count: int) -> Load:
    """Load ``url`` with an empty cache until ``count`` elements of ``selector`` are drawn and a key is handled."""
    context = browser.new_context(viewport=DESK)
    page = context.new_page()
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(url, wait_until="commit")
    painted = page.evaluate(_PAINTED, [selector, count])
    waiting = page.evaluate_handle(f"() => {{ window.handled = ({_HANDLED})(); }}")
    page.keyboard.press("Shift")
    interactive = page.evaluate("() => window.handled")
    waiting.dispose()
    page.wait_for_load_state("networkidle")
    sizes = page.evaluate("() => performance.getEntriesByType('resource').map(entry => entry.transferSize)")
    load = Load(
        painted_ms=painted,
        interactive_ms=interactive,
        requests=len(requests),
        transferred_kb=sum(sizes) / 1e3,
        heap_mb=_heap_mb(page),
        process_mb=_process_mb(browser),
    )
    context.close()
    return load


def _heap_mb(page: Page) -> float:
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    session.send("Performance.enable")
    metrics = {entry["name"]: entry["value"] for entry in session.send("Performance.getMetrics")["metrics"]}
    return float(metrics["JSHeapUsedSize"]) / 1e6


def _process_mb(browser: Browser) -> float:
    """Resident memory of the largest of the browser's page processes."""
    processes = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    found = 0.0
    for process in processes:
        status = Path(f"/proc/{process['id']}/status")
        if process["type"] == "renderer" and status.exists():
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
            found = max(found, int(lines["VmRSS"].split()[0]) / 1e3)
    return found


def main() -> None:
    """Write both jobs, load their pages, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="write the jobs into this folder, or use those that are there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        jobs = [one_layer(), inception()]
        for job in jobs:
            if not (folder / job.id).exists():
                write(folder, job)
        with slow_server(folder) as root, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM)
            _print(folder, root, browser, *(job.id for job in jobs))
            browser.close()


def _print(folder: Path, root: str, browser: Browser, layer: str, network: str) -> None:
    pages = [
        ("layer of 2,048 tiles", f"{root}/{layer}/index.html#/{LAYER}", ".cells > li", 2048),
        ("network of 94 layers, 17,216 tiles", f"{root}/{network}/index.html", ".layers > li", 94),
        ("its last layer, of 192 tiles", f"{root}/{network}/index.html#/Mixed_7c.branch_pool.conv", ".cells > li", 192),
    ]
    print(f"{'':36}" + "".join(f"{name:>16}" for name in Load.__annotations__))
    for what, url, selector, count in pages:
        loads = [measure(browser, url, selector, count) for _ in range(_LOADS)]
        row = [statistics.median(getattr(load, name) for load in loads) for name in Load.__annotations__]
        print(f"{what:36}" + "".join(f"{value:16.1f}" for value in row))
    for job in (layer, network):
        sizes = {path.name: path.stat().st_size / 1e3 for path in sorted((folder / job).glob("*.*"))}
        print(f"{job}: " + ", ".join(f"{name} {size:.1f} kB" for name, size in sizes.items()))


if __name__ == "__main__":
    main()
