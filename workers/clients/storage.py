"""The object store: reads and writes whole objects on any S3-compatible server.

Only operations that all such servers support are used: PUT, GET, HEAD, DELETE and list, with path-style addresses for
custom endpoints. No multipart uploads, conditional writes, user metadata or checksums that older servers reject.
"""

import functools
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.utils import determine_content_length

from workers.contract.errors import FilterfarmError, NoBucket, PermanentError, StorageDenied, StorageUnreachable
from workers.contract.settings import Settings

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client
    from types_boto3_s3.type_defs import ListObjectsV2OutputTypeDef

Result = TypeVar("Result")

#: Number of threads that read many objects: a GET spends most of its time waiting.
READERS = 8

#: S3 error codes and HTTP statuses that deny access, and those of an absent object, which is not an error.
_DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AllAccessDisabled", "401", "403"}
_ABSENT = {"NoSuchKey", "404", "NotFound"}

#: First and longest pause between retries in seconds. Jitter spreads a fleet's retries over the whole pause.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0

#: A body of at most this length is sent without asking the server first. A server that refuses a longer one may close
#: the connection in the middle of it, and the client then cannot read the reason.
_SMALL_BYTES = 1 << 18

#: Part of an object that is in memory while it is written to a file.
_CHUNK_BYTES = 1 << 20


class _Absent(PermanentError):
    """There is no such object. Public methods return None or False instead."""


class Store:
    """The objects of the bucket below its prefix. Thread-safe; one per process suffices.

    Every method raises StorageUnreachable after ``retry_s`` seconds of retries or once ``stop`` is set, and
    StorageDenied and NoBucket at once. Writing an object again and deleting a missing one are harmless.
    """

    def __init__(self, settings: Settings, *, retry_s: float, stop: threading.Event | None = None) -> None:
        self._bucket = settings.bucket
        self._prefix = settings.prefix
        self._endpoint = settings.endpoint_url or "AWS S3"
        self._retry_s = retry_s
        self._stop = stop or threading.Event()
        # A new session: boto3's default one keeps the first credentials that it read.
        session = boto3.session.Session()
        self._client: S3Client = session.client(
            "s3",
            endpoint_url=settings.endpoint_url or None,
            # Servers other than AWS ignore the region, but the signature needs one.
            region_name=None if not settings.endpoint_url else session.region_name or "us-east-1",
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path" if settings.endpoint_url else "auto"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                # A proxy in the environment cannot reach servers on this machine.
                proxies={} if _is_local(settings.endpoint_url) else None,
                connect_timeout=5,
                # Not much longer than all retries together.
                read_timeout=min(20.0, max(5.0, retry_s)),
                max_pool_connections=64,
                # _retrying retries: botocore stops within seconds, and its quota is shared by all threads.
                retries={"total_max_attempts": 1},
                # Building botocore's own for each call takes a tenth of the call's time.
                user_agent="filterfarm",
            ),
        )
        self._client.meta.events.register_last("before-call.s3", _send_small_at_once)

    def put(self, key: str, body: bytes, content_type: str) -> None:
        """Store ``body`` under ``key``."""
        self._retrying(
            lambda: self._client.put_object(
                Bucket=self._bucket, Key=self._prefix + key, Body=body, ContentType=content_type
            )
        )

    def put_file(self, key: str, path: Path) -> None:
        """Store a file of at most 5 GiB under ``key`` without holding it in memory. Raises OSError if unreadable."""

        def send() -> None:
            with path.open("rb") as body:
                self._client.put_object(
                    Bucket=self._bucket, Key=self._prefix + key, Body=body, ContentType="application/octet-stream"
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
            self._retrying(receive)
        except _Absent:
            return False
        return True

    def get(self, key: str, *, max_bytes: int = 1 << 32) -> bytes | None:
        """The first ``max_bytes`` bytes of the object, or None if there is none."""

        def read() -> bytes:
            answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)
            body = answer["Body"]
            return body.read() if answer["ContentLength"] <= max_bytes else body.read(max_bytes)

        try:
            return self._retrying(read)
        except _Absent:
            return None

    def exists(self, key: str) -> bool:
        """True if there is such an object."""
        try:
            self._retrying(lambda: self._client.head_object(Bucket=self._bucket, Key=self._prefix + key))
        except _Absent:
            return False
        return True

    def delete(self, key: str) -> None:
        """Delete the object if it exists."""
        self._retrying(lambda: self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key))

    def list(self, prefix: str) -> Iterator[str]:
        """All keys that begin with ``prefix``, in the server's order."""
        for page in self._pages(prefix, delimiter=""):
            yield from (entry["Key"][len(self._prefix) :] for entry in page.get("Contents", []))

    def folders(self) -> Iterator[str]:
        """Names of the top-level folders: the ids of all jobs, and folders of other programs."""
        for page in self._pages("", delimiter="/"):
            for entry in page.get("CommonPrefixes", []):
                yield entry["Prefix"][len(self._prefix) :].rstrip("/")

    def check(self) -> None:
        """Raise unless the bucket exists and can be listed."""
        self._retrying(lambda: self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1))

    def make_bucket(self) -> None:
        """Create the bucket if it does not exist."""

        def create() -> None:
            try:
                self._client.create_bucket(Bucket=self._bucket)
            except ClientError as error:
                if _code(error) not in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
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

    def _retrying(self, call: Callable[[], Result]) -> Result:
        """Result of ``call``, retried with back-off while the store is unreachable; _Absent for a missing object."""
        deadline = time.monotonic() + self._retry_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return call()
            except (ClientError, BotoCoreError) as cause:
                error = self._translate(cause)
                if not isinstance(error, StorageUnreachable) or time.monotonic() >= deadline:
                    raise error from cause
                if self._stop.wait(min(random.uniform(0, pause_s), max(0.0, deadline - time.monotonic()))):
                    raise error from cause
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _translate(self, cause: ClientError | BotoCoreError) -> FilterfarmError:
        """The error that describes what boto3 raised."""
        code = _code(cause)
        if code in _DENIED or isinstance(cause, (NoCredentialsError, PartialCredentialsError)):
            return StorageDenied(
                f"{self._endpoint} refuses bucket {self._bucket!r} ({code or type(cause).__name__}); "
                "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        if code in _ABSENT:
            return _Absent(f"no such object in bucket {self._bucket!r}")
        if code == "NoSuchBucket":
            return NoBucket(f"no bucket {self._bucket!r} at {self._endpoint}; create it or correct FILTERFARM_BUCKET")
        if isinstance(cause, (EndpointConnectionError, ConnectTimeoutError, HTTPClientError)):
            return StorageUnreachable(
                f"no answer from the object store at {self._endpoint} ({type(cause).__name__}); "
                "check AWS_ENDPOINT_URL_S3 and that the server runs"
            )
        return StorageUnreachable(f"the object store at {self._endpoint} fails: {code or type(cause).__name__}")


def _send_small_at_once(params: dict[str, Any], **_: object) -> None:
    """Remove ``Expect: 100-continue`` from requests with a small body, because it costs a round trip."""
    headers = params["headers"]
    if "Expect" in headers and (determine_content_length(params["body"]) or 0) <= _SMALL_BYTES:
        del headers["Expect"]


def _is_local(url: str) -> bool:
    return urlsplit(url).hostname in {"127.0.0.1", "localhost", "::1"}


def _code(error: BaseException | None) -> str:
    """S3's error code, or the HTTP status if the server sent none; "" for errors of other kinds."""
    if not isinstance(error, ClientError):
        return ""
    return str(error.response.get("Error", {}).get("Code", ""))
