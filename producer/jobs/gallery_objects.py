"""The objects of a gallery: which keys there are, and their content types. The server and ``fetch`` go by it.

``weights/``, ``farm.json`` and what other programs keep in the bucket are no part of a gallery.
"""

import re

from workers.contract import keys
from workers.contract.job import Job

#: Extension -> content type.
CONTENT_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "css": "text/css; charset=utf-8",
    "txt": "text/plain; charset=utf-8",
    "svg": "image/svg+xml",
    "png": "image/png",
    "webp": "image/webp",
}

#: The page that lists all jobs, and its data. Its ``assets/`` are beside it.
_OF_BUCKET = {"index.html", "index.js", "index.json"}

#: In the folder of a job, which has ``assets/`` as well.
_OF_JOB = {"index.html", "gallery.js", "gallery.json", "job.json", "status.json"}

#: Folder of a job -> extensions of its files, of which each layer has one.
_OF_LAYER = {"layers": ("js", "json"), "atlas": ("webp",), "strips": ("webp",), "grids": ("png",)}

#: Folder of a job -> extension of its files, which are in a folder per layer and named by the filter.
_OF_TILE = {"tiles": "png", "frames": "webp", "failed": "json"}


def content_type(key: str) -> str | None:
    """The content type of an object of a gallery; None for all other keys.

    A key that has one consists of names (``keys.NAME_PATTERN``) and single slashes: it leads out of no folder.
    """
    first, *rest = key.split("/", 1)
    if not (
        key in _OF_BUCKET
        or (first == "assets" and _is_asset(key))
        or (rest and keys.is_name(first) and _place(rest[0]) is not None)
    ):
        return None
    return CONTENT_TYPES.get(key.rpartition(".")[2])


def belongs(key: str, job: Job) -> bool:
    """True if ``key`` is an object of the job's gallery, and its layer and filter, if it has any, are the job's."""
    first, *rest = key.split("/", 1)
    place = _place(rest[0]) if first == job.id and rest and content_type(key) else None
    if place is None:
        return False
    layer, filter_ = place
    if filter_ is not None:
        return (layer, filter_) in job.tiles
    return layer is None or any(layer == entry.name for entry in job.layers)


def _place(path: str) -> tuple[str | None, int | None] | None:
    """(layer, filter) of a path in a job's folder, where it has them; None if it is no object of a gallery."""
    match path.split("/"):
        case [file] if file in _OF_JOB:
            return None, None
        case ["assets", _] if _is_asset(path):
            return None, None
        case [folder, file] if folder in _OF_LAYER:
            layer, _, extension = file.rpartition(".")
            if extension in _OF_LAYER[folder] and keys.is_name(layer):
                return layer, None
        case [folder, layer, file] if folder in _OF_TILE and keys.is_name(layer):
            number, _, extension = file.rpartition(".")
            if extension == _OF_TILE[folder] and re.fullmatch("0|[1-9][0-9]{0,8}", number):
                return layer, int(number)
    return None


def _is_asset(path: str) -> bool:
    """True for a file of the page itself. Versions differ in which they have."""
    return keys.is_name(path.removeprefix("assets/"))
