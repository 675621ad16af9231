"""The object store: reads and writes whole objects on any S3-compatible server.

Only operations that all such servers support are used: PUT, GET, HEAD, DELETE and list, with path-style addresses for
custom endpoints. No multipart uploads, conditional writes, user metadata or checksums that older servers reject.
"""

import contextlib
import functools
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from workers.clients.s3_client import environment_error, make_client
from workers.clients.s3_errors import Absent, error_code, translate
from workers.clients.stored_object import SETTLED_NS, OpenObject, StoredObject
from workers.contract.errors import StorageUnreachable
from workers.contract.settings import Settings

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from types_boto3_s3.type_defs import ListObjectsV2OutputTypeDef

Result = TypeVar("Result")

#: Number of threads that read many objects: a GET spends most of its time waiting.
READERS = 8

#: First and longest pause between retries in seconds. Jitter spreads a fleet's retries over the whole pause.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0

#: Largest object of one PUT in S3.
MAX_OBJECT_BYTES = 5 << 30

#: Part of an object that is in memory while it is written to a file.
_CHUNK_BYTES = 1 << 20


class Store:
    """The objects of the bucket below its prefix. Thread-safe; one per process suffices.

    Every method raises StorageUnreachable after ``retry_s`` seconds of retries or once ``stop`` is set, and
    StorageDenied, NoBucket and BadSettings at once; the constructor raises BadSettings and StorageDenied. Writing an
    object again and deleting a missing one are harmless.
    """

    def __init__(self, settings: Settings, *, retry_s: float, stop: threading.Event | None = None) -> None:
        self._bucket = settings.bucket
        self._prefix = settings.prefix
        self._retry_s = retry_s
        self._stop = stop or threading.Event()
        try:
            self._client = make_client(settings, read_timeout_s=min(20.0, max(5.0, retry_s)))
        except (BotoCoreError, ValueError, OSError) as error:
            raise environment_error(error) from error
        address = self._client.meta.endpoint_url
        self._translate = functools.partial(
            translate,
            endpoint="AWS S3" if ".amazonaws.com" in address else address,
            bucket=settings.bucket,
            variable=settings.variable("endpoint_url"),
        )

    def put(self, key: str, body: bytes, content_type: str) -> None:
        """Store ``body`` under ``key``."""
        self._retrying(
            lambda: self._client.put_object(
                Bucket=self._bucket, Key=self._prefix + key, Body=body, ContentType=content_type
            )
        )

    def put_file(self, key: str, path: Path, content_type: str = "application/octet-stream") -> None:
        """Store a file of at most 5 GiB under ``key`` without holding it in memory. Raises OSError if unreadable."""

        def send() -> None:
            with path.open("rb") as body:
                self._client.put_object(
                    Bucket=self._bucket, Key=self._prefix + key, Body=body, ContentType=content_type
                )

        self._retrying(send)

    def get_file(self, key: str, path: Path) -> bool:
        """Write the object into ``path`` without holding it in memory; False if there is none.

        If it raises, which may be an OSError of ``path``, the file is incomplete.
        """

        def receive() -> None:
            body = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)["Body"]
            with path.open("wb") as file:
                for chunk in body.iter_chunks(_CHUNK_BYTES):
                    file.write(chunk)

        try:
            self._retrying(receive, may_be_absent=True)
        except Absent:
            return False
        return True

    def get(self, key: str, *, max_bytes: int = 1 << 32) -> bytes | None:
        """The first ``max_bytes`` bytes of the object, or None if there is none."""

        def read() -> bytes:
            answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)
            body = answer["Body"]
            return body.read() if answer["ContentLength"] <= max_bytes else body.read(max_bytes)

        try:
            return self._retrying(read, may_be_absent=True)
        except Absent:
            return None

    def open(self, key: str) -> OpenObject | None:
        """The object, to be read piece by piece and closed by the caller, or None if there is none.

        While it is read, object store errors are raised at once.
        """
        try:
            answer = self._retrying(
                lambda: self._client.get_object(Bucket=self._bucket, Key=self._prefix + key), may_be_absent=True
            )
        except Absent:
            return None
        body = answer["Body"]
        return OpenObject(answer["ContentLength"], self._chunks(body), body.close)

    def exists(self, key: str) -> bool:
        """True if there is such an object."""

        def head() -> None:
            self._client.head_object(Bucket=self._bucket, Key=self._prefix + key)

        try:
            self._retrying(head, may_be_absent=True)
        except Absent:
            return False
        return True

    def delete(self, key: str) -> None:
        """Delete the object if it exists."""
        with contextlib.suppress(Absent):
            self._retrying(
                lambda: self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key), may_be_absent=True
            )

    def list(self, prefix: str) -> Iterator[str]:
        """All keys that begin with ``prefix``, in the server's order."""
        return (entry.key for entry in self.list_objects(prefix))

    def list_objects(self, prefix: str) -> Iterator[StoredObject]:
        """All objects whose keys begin with ``prefix``, in the server's order."""
        for page in self._pages(prefix, delimiter=""):
            now_ns = _date_ns(page)
            for entry in page.get("Contents", []):
                modified_ns = round(entry["LastModified"].timestamp() * 1e6) * 1000
                key = entry["Key"][len(self._prefix) :]
                yield StoredObject(key, entry["Size"], modified_ns, modified_ns < now_ns - SETTLED_NS)

    def folders(self) -> Iterator[str]:
        """Names of the top-level folders: the ids of all jobs, and folders of other programs."""
        for page in self._pages("", delimiter="/"):
            for entry in page.get("CommonPrefixes", []):
                yield entry["Prefix"][len(self._prefix) :].rstrip("/")

    def check(self) -> None:
        """Raise unless the bucket exists and can be listed."""
        self._retrying(lambda: self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1))

    def check_writable(self) -> None:
        """Raise unless objects can be listed, written and deleted. Leaves nothing behind."""
        self.check()
        key = f"filterfarm-check-{uuid.uuid4().hex}"
        self.put(key, b"This object may be deleted.", "text/plain")
        self.delete(key)

    def make_bucket(self) -> None:
        """Create the bucket if it does not exist."""

        def create() -> None:
            try:
                self._client.create_bucket(Bucket=self._bucket)
            except ClientError as error:
                if error_code(error) not in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
                    raise

        self._retrying(create)

    def _pages(self, prefix: str, delimiter: str) -> Iterator["ListObjectsV2OutputTypeDef"]:
        token = ""
        while True:
            page = self._retrying(functools.partial(self._page, prefix, delimiter, token))
            yield page
            if not page.get("IsTruncated"):
                return
            token = page["NextContinuationToken"]

    def _page(self, prefix: str, delimiter: str, token: str) -> "ListObjectsV2OutputTypeDef":
        where = {"Bucket": self._bucket, "Prefix": self._prefix + prefix, "Delimiter": delimiter}
        return self._client.list_objects_v2(**where, **({"ContinuationToken": token} if token else {}))  # type: ignore[arg-type]  # all str

    def _chunks(self, body: "StreamingBody") -> Iterator[bytes]:
        try:
            yield from body.iter_chunks(_CHUNK_BYTES)
        except BotoCoreError as cause:
            raise self._translate(cause, may_be_absent=False) from cause

    def _retrying(self, call: Callable[[], Result], *, may_be_absent: bool = False) -> Result:
        """Result of ``call``, retried with back-off while the store is unreachable.

        A missing object raises Absent if ``may_be_absent``, else NoBucket: then the address leads into a bucket.
        """
        deadline = time.monotonic() + self._retry_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return call()
            except (ClientError, BotoCoreError) as cause:
                error = self._translate(cause, may_be_absent=may_be_absent)
                if not isinstance(error, StorageUnreachable) or time.monotonic() >= deadline:
                    raise error from cause
                if self._stop.wait(min(random.uniform(0, pause_s), max(0.0, deadline - time.monotonic()))):
                    raise error from cause
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _date_ns(page: "ListObjectsV2OutputTypeDef") -> int:
    """Unix time of an answer in ns, by the server's clock if it says."""
    try:
        date = parsedate_to_datetime(page["ResponseMetadata"]["HTTPHeaders"]["date"])
    except (KeyError, ValueError):
        return time.time_ns()
    return int(date.timestamp()) * 1_000_000_000
