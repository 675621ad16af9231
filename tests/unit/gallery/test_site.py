"""The gallery's pages: policy, escaping, and assets that are there."""

import re
from html.parser import HTMLParser

import pytest

from producer.gallery import site
from producer.jobs.gallery_objects import CONTENT_TYPES, content_type

HOSTILE = "<img src=x onerror=alert(1)>\"'&"


def references(page: bytes) -> list[str]:
    """What the page loads."""
    return re.findall(r'(?:src|href)="([^"]*)"', page.decode())


def tags(page: bytes) -> list[tuple[str, list[str]]]:
    """Each element and the names of its attributes."""
    found: list[tuple[str, list[str]]] = []

    class Parsed(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append((tag, [name for name, _ in attrs]))

    Parsed().feed(page.decode())
    return found


@pytest.mark.parametrize("page", [site.job_page("vgg16-fourier-0"), site.jobs_page()], ids=["job", "jobs"])
def test_a_page_loads_its_own_assets_and_nothing_else(page: bytes) -> None:
    # Given / When
    found = references(page)
    # Then each is an asset of this version
    assert found
    for reference in found:
        name, _, version = reference.removeprefix("assets/").partition("?v=")
        assert name in site.assets()
        assert version == site.digest()
    # And the policy permits no other server and no inline script
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page.decode())
    assert policy
    assert policy[1].startswith("default-src 'none'; img-src 'self'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy[1]
    assert not [name for _, names in tags(page) for name in names if name.startswith("on") or name == "style"]
    # And no placeholder is left
    assert b"{{" not in page


def test_a_page_of_ours_is_known_as_such() -> None:
    # Given / When / Then
    assert site.is_ours(site.job_page("vgg16-fourier-0"))
    assert site.is_ours(site.jobs_page())
    assert not site.is_ours(b"<!doctype html><title>My site about filterfarm</title>")


def test_markup_in_a_name_is_escaped() -> None:
    # Given an id that is markup, which no valid job has
    page = site.job_page(HOSTILE)
    # When / Then the page has the elements of any other
    assert tags(page) == tags(site.job_page("vgg16-fourier-0"))
    assert HOSTILE.encode() not in page


def test_every_asset_is_an_object_of_a_gallery() -> None:
    # Given / When / Then
    assert {"app.css", "app.js"} <= set(site.assets())
    for name in site.assets():
        assert content_type(f"assets/{name}") == CONTENT_TYPES[name.rpartition(".")[2]]
        assert content_type(f"vgg16-fourier-0/assets/{name}") is not None
    assert re.fullmatch("[0-9a-f]{12}", site.digest())
