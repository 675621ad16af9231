"""Downloads a checkpoint that ``--weights`` names by its address: ``https://host/x.pth`` or ``s3://bucket/key``.

The copy lies in the cache by its SHA-256 and is used again while the server reports the same version of the file. The
job stores it as it stores a local file. An address in S3 is read with the settings of the farm's object store.
"""

import hashlib
import json
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from producer.jobs.session import read_settings
from workers.clients.storage import MAX_OBJECT_BYTES, Store
from workers.contract.errors import CacheFailed, WeightsMissing, one_line
from workers.contract.settings import Settings

#: Seconds without any data after which a download fails.
_ANSWER_S = 30.0

_CHUNK_BYTES = 1 << 20

#: Seconds of retries of a read from S3.
_RETRY_S = 10.0


@dataclass(frozen=True, kw_only=True)
class _Remote:
    """A file that has been found and not yet read."""

    chunks: Iterator[bytes]
    #: what the server calls this content; empty if it does not say
    version: str


def is_remote(text: str | None) -> bool:
    """True if ``--weights`` is an address."""
    return text is not None and re.match(r"(?i)[a-z][a-z0-9+]*://", text) is not None


def local_weights(text: str | None) -> str | None:
    """``--weights`` with the path of a local copy in place of an address; raises as ``local_copy``, and BadSettings."""
    if text is None or not is_remote(text):
        return text
    # The settings of the farm are needed for an object store only.
    return local_copy(text, read_settings(local=not text.lower().startswith("s3:")))


def local_copy(text: str, settings: Settings) -> str:
    """The path of the local copy of the file at that address, with the address's ``#KEY`` if it has one.

    Raises WeightsMissing if it cannot be downloaded, CacheFailed, and the object store's errors.
    """
    address, hash_, key = text.partition("#")
    scheme = address.partition(":")[0].lower()
    if scheme not in {"https", "s3"}:
        raise WeightsMissing(
            f"cannot download weights from {_shown(address)}: use https:// or s3://bucket/key, or a file"
        )
    folder = settings.cache_dir.expanduser() / "downloads"
    name = re.sub(r"[^A-Za-z0-9._-]", "_", unquote(urlsplit(address).path).rpartition("/")[2])
    if not name.strip("."):
        raise WeightsMissing(f"{_shown(address)} names no file; write the whole address of the checkpoint")
    record = folder / f"{hashlib.sha256(address.encode()).hexdigest()}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _in_s3(address, settings) if scheme == "s3" else _by_https(address) as remote:
            path = _known(record, folder, name, remote.version) or _download(remote, address, folder, name, record)
    except OSError as error:
        raise CacheFailed(
            f"cannot keep downloads in {folder} ({error.strerror or one_line(error)}); set FILTERFARM_CACHE to a "
            "folder that can be written"
        ) from error
    return f"{path}{hash_}{key}"


def _known(record: Path, folder: Path, name: str, version: str) -> Path | None:
    """The copy of an earlier download of that version."""
    try:
        stored = json.loads(record.read_text())
        path = folder / stored["sha256"] / name
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return path if version and stored.get("version") == version and path.is_file() else None


def _download(remote: _Remote, address: str, folder: Path, name: str, record: Path) -> Path:
    partial = folder / f"{uuid.uuid4().hex}.part"
    digest, size = hashlib.sha256(), 0
    try:
        with partial.open("wb") as file:
            for chunk in remote.chunks:
                size += len(chunk)
                if size > MAX_OBJECT_BYTES:
                    raise WeightsMissing(f"{_shown(address)} has more than {MAX_OBJECT_BYTES:,} bytes, the limit")
                digest.update(chunk)
                file.write(chunk)
        path = folder / digest.hexdigest() / name
        path.parent.mkdir(exist_ok=True)
        partial.replace(path)
        record.write_text(
            json.dumps({"address": _shown(address), "version": remote.version, "sha256": digest.hexdigest()})
        )
    finally:
        partial.unlink(missing_ok=True)
    return path


class _HttpsOnly(HTTPRedirectHandler):
    """Follows no redirect to a connection without TLS, or to a local file."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        if urlsplit(newurl).scheme != "https":
            fp.close()
            raise URLError(f"redirected to {newurl[:80]}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextmanager
def _by_https(address: str) -> Iterator[_Remote]:
    """The file at an address, with the proxies and certificates that the environment names."""
    try:
        request = Request(address, headers={"User-Agent": "filterfarm"})  # noqa: S310  # https: the caller checked it
        with build_opener(_HttpsOnly).open(request, timeout=_ANSWER_S) as answer:
            headers: Message = answer.headers
            length = headers.get("Content-Length")
            version = headers.get("ETag") or f"{headers['Last-Modified']} {length}" * bool(headers["Last-Modified"])
            yield _Remote(chunks=_all(answer, length, address), version=version)
    except HTTPError as error:
        error.close()  # it is the answer
        raise WeightsMissing(
            f"cannot download weights from {_shown(address)}: HTTP {error.code} {one_line(error, 80)}; check the "
            "address, or download the file and use its path"
        ) from error
    except (URLError, HTTPException, TimeoutError, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        text = one_line(reason, 120) if isinstance(reason, BaseException) else str(reason)[:120]
        raise WeightsMissing(
            f"cannot download weights from {_shown(address)}: {text}; check the address, or download the file and use "
            "its path"
        ) from error


def _all(answer: Any, length: str | None, address: str) -> Iterator[bytes]:
    size = 0
    try:
        while chunk := answer.read(_CHUNK_BYTES):
            size += len(chunk)
            yield chunk
    except OSError as error:
        raise WeightsMissing(
            f"the download of {_shown(address)} broke off ({one_line(error, 80)}); try again"
        ) from error
    if length is not None and size != int(length):
        raise WeightsMissing(f"the download of {_shown(address)} ended after {size} of {length} bytes; try again")


@contextmanager
def _in_s3(address: str, settings: Settings) -> Iterator[_Remote]:
    parts = urlsplit(address)
    key = address.partition("://")[2].partition("/")[2]
    store = Store(replace(settings, bucket_url=f"s3://{parts.netloc}"), retry_s=_RETRY_S)
    entry = next((entry for entry in store.list_objects(key) if entry.key == key), None)
    found = store.open(key) if entry else None
    if entry is None or found is None:
        raise WeightsMissing(f"no weights at {_shown(address)}; 's3://bucket/key' names an object of that bucket")
    try:
        yield _Remote(chunks=found.chunks, version=f"{entry.size} {entry.modified_ns}" * entry.settled)
    finally:
        found.close()


def _shown(address: str) -> str:
    """An address for people: without the query, which may hold a signature, and without a password."""
    shown = address.partition("?")[0]
    return re.sub(r"//[^/@]*@", "//", shown)[:200]
