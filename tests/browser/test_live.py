"""A page that is open while its job runs, straight from a bucket of a strict S3 server that anyone may read."""

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.view import Visit
from tests.e2e.fleet import fleet, wait_for
from tests.e2e.whole import has_ended

_JOB = ("squeezenet1_1", "--weights", "none", "--layers", "features.0,features.3.squeeze", "--filters", "0-15")
_FAST = ("--size", "32", "--steps", "4", "--method", "notebook")


@pytest.mark.usefixtures("browser")
def test_an_open_page_fills_while_the_job_runs_and_says_when_it_has_ended(visit: Visit, tmp_path: Path) -> None:
    with fleet(tmp_path, "public") as farm:
        # Given a job without a worker, and its page
        farm.start("collector")
        job = farm.submit(*_JOB, *_FAST)["job"]
        key = f"of/filters/{job}/index.html"
        wait_for("the page", lambda: farm.s3.list_objects_v2(Bucket="pictures", Prefix=key).get("KeyCount"), 60)
        page = visit(f"{farm.endpoint}/pictures/{key}")
        expect(page.get_by_text("0 of 32").first).to_be_visible()
        page.evaluate("() => { window.sameDocument = true; }")

        # When a worker renders it slowly
        farm.start_slow_worker(batch_s=1.0)

        # Then the page shows some tiles, then all, without being loaded again
        expect(page.get_by_text("32 of 32").first).to_be_visible(timeout=120_000)
        wait_for("the job to end", lambda: has_ended(farm, job), 60)
        expect(page.get_by_text("finished").first).to_be_visible(timeout=30_000)
        assert page.evaluate("() => window.sameDocument")
