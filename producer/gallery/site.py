"""The static files of the gallery: the page of a job, the page of all jobs, and their style sheet and scripts.

They are the same for every job but for the title and the job's id. The data is loaded by the scripts.
"""

import functools
import hashlib
import html
import re
from importlib import resources

from producer.gallery.documents import generator

#: Templates, which are no assets.
_JOB_TEMPLATE, _JOBS_TEMPLATE = "index.html", "jobs.html"

#: How a page of ours, written by any version, can be told from another.
_MARK = re.compile(rb'<meta name="generator" content="filterfarm')


@functools.cache
def assets() -> dict[str, bytes]:
    """File name -> content, of everything that the pages load from ``assets/``."""
    return {name: data for name, data in _files().items() if not name.endswith(".html")}


@functools.cache
def digest() -> str:
    """12 hex digits that change with any asset, so that a browser's cache has none of an earlier version."""
    found = hashlib.sha256()
    for name, data in assets().items():
        found.update(f"{name} {len(data)}\n".encode() + data)
    return found.hexdigest()[:12]


def job_page(job_id: str) -> bytes:
    """``index.html`` of a job."""
    return _page(_JOB_TEMPLATE, job_id)


def jobs_page() -> bytes:
    """``index.html`` at the root of the bucket."""
    return _page(_JOBS_TEMPLATE, "")


def is_ours(page: bytes) -> bool:
    """True if some version of filterfarm wrote the page."""
    return _MARK.search(page[:4096]) is not None


def _page(template: str, job_id: str) -> bytes:
    values = {
        "title": job_id or "filterfarm jobs",
        "job": job_id,
        "version": digest(),
        "generator": generator(),
    }
    text = _files()[template].decode()
    return re.sub(r"\{\{(\w+)\}\}", lambda match: html.escape(values[match[1]], quote=True), text).encode()


@functools.cache
def _files() -> dict[str, bytes]:
    folder = resources.files("producer.gallery") / "assets"
    found = {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.is_file()}
    return {name: found[name] for name in sorted(found) if not name.startswith(".")}
