"""The gallery as the commands give it: ``filterfarm gallery``, and a folder that ``filterfarm fetch`` filled."""

import os
import subprocess
from pathlib import Path

from playwright.sync_api import expect

from tests.browser import view
from tests.browser.rendered import FILTERS, HARMFUL, LAYERS, SHOWN, Rendered
from tests.browser.view import Visit
from tests.e2e.fleet import COMMAND, run


def test_filterfarm_gallery_shows_all_jobs_each_view_and_the_comparison(
    visit: Visit, jobs: Rendered, tmp_path: Path
) -> None:
    # Given the server of a data folder
    command = [COMMAND, "gallery", "--data", str(jobs.data), "--no-browser"]
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            # When the address that it prints is opened
            page = visit(server.stdout.readline().strip())
            # Then the jobs are listed, and a layer, a unit with its film, and the zoom are shown
            page.get_by_role("link", name=jobs.notebook).click()
            page.get_by_role("link", name=LAYERS[0], exact=True).click()
            expect(view.cells(page)).to_have_count(FILTERS)
            view.cell(page, 10).click()
            view.check_loaded(view.tile(page))
            page.get_by_role("button", name="Play film").click()
            view.check_loaded(view.tile(page))
            page.keyboard.press("Escape")
            page.get_by_role("link", name="Zoom").click()
            expect(page.get_by_role("application")).to_be_visible()
            page.keyboard.press("Escape")
            # And another job beside it
            page.get_by_text("Compare", exact=True).click()
            page.get_by_role("checkbox", name=jobs.fourier).check()
            expect(view.cell(page, 0).locator(".pic")).to_have_count(2)
            # And the contact sheet and the records are where the page says
            for name, start in (("Sheet", b"\x89PNG"), ("Records", b"{")):
                address = page.get_by_role("link", name=name, exact=True).evaluate("link => link.href")
                assert page.request.get(address).body().startswith(start)
        finally:
            server.terminate()


def test_a_fetched_folder_opens_as_a_file(visit: Visit, jobs: Rendered, tmp_path: Path) -> None:
    # Given a job that was fetched into a folder of another name, with nothing beside it
    folder = tmp_path / "a folder" / "of #mine"
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = run("fetch", jobs.notebook, str(folder), "--data", str(jobs.data), environ=environ)
    assert done.returncode == 0, done.stderr
    # When its page is opened as a file
    requests: list[str] = []
    page = visit((folder / "index.html").as_uri(), requests=requests)
    # Then it shows the job, and asks for nothing outside the folder
    expect(view.rows(page).get_by_role("heading")).to_have_text(list(LAYERS))
    expect(page.locator("main")).to_contain_text(HARMFUL)
    page.get_by_role("link", name=LAYERS[0], exact=True).click()
    expect(view.cells(page)).to_have_count(FILTERS)
    page.goto((folder / "index.html").as_uri() + f"#/{SHOWN}/10")
    view.check_loaded(view.tile(page))
    assert all(url.startswith(folder.as_uri()) for url in requests)
