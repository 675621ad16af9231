"""The object store: whole objects in, whole objects out, on anything that speaks S3.

Only what every S3 server does alike is used: plain PUT, GET, HEAD and list, path-style addresses for custom
endpoints, no conditional writes, no user metadata, no checksums that older servers reject.
"""

import functools
import random
import threading
import time
from collections.abc import Callable, Iterator
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

#: Who reads many objects reads that many at a time: each GET is mostly waiting.
READERS = 8

#: S3 error code or HTTP status -> what it means here. 404 on an object is not an error but an absence.
_DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AllAccessDisabled", "401", "403"}
_ABSENT = {"NoSuchKey", "404", "NotFound"}

#: First and longest pause between retries; jitter spreads a fleet's retries over the whole pause.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0

#: Up to this length a body is sent with its headers. A server that refuses a longer one may hang up in its middle, and
#: then nobody hears why.
_SMALL_BYTES = 1 << 18


class _Absent(PermanentError):
    """Raised when there is no such object; public methods turn it into None or False."""


class Store:
    """The job bucket below its prefix. Thread-safe; make one per process.

    Every method raises StorageUnreachable once ``retry_s`` seconds of retries are over (or ``stop`` is set),
    StorageDenied and NoBucket at once.
    """

    def __init__(self, settings: Settings, *, retry_s: float, stop: threading.Event | None = None) -> None:
        self._bucket = settings.bucket
        self._prefix = settings.prefix
        self._endpoint = settings.endpoint_url or "AWS S3"
        self._retry_s = retry_s
        self._stop = stop or threading.Event()
        # A session of its own: boto3's default one remembers the first credentials it saw.
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
                # An office's proxy knows nothing of servers on this machine.
                proxies={} if _is_local(settings.endpoint_url) else None,
                connect_timeout=5,
                # Whoever is not patient does not wait for one answer for much longer than for all retries.
                read_timeout=min(20.0, max(5.0, retry_s)),
                max_pool_connections=64,
                # Retries are ours: botocore gives up within seconds, and its quota is shared by all threads.
                retries={"total_max_attempts": 1},
                # Its own costs a tenth of a call, because it is put together anew for each.
                user_agent="filterfarm",
            ),
        )
        self._client.meta.events.register_last("before-call.s3", _ask_no_leave)

    def put(self, key: str, body: bytes, content_type: str) -> None:
        """Store ``body`` whole under ``key``; the same call again changes nothing."""
        self._retrying(
            lambda: self._client.put_object(
                Bucket=self._bucket, Key=self._prefix + key, Body=body, ContentType=content_type
            )
        )

    def get(self, key: str, *, max_bytes: int = 1 << 32) -> bytes | None:
        """The object's bytes, or None where there is none. One longer than ``max_bytes`` comes cut to that."""

        def read() -> bytes:
            answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)
            body = answer["Body"]
            return body.read() if answer["ContentLength"] <= max_bytes else body.read(max_bytes)

        try:
            return self._retrying(read)
        except _Absent:
            return None

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        try:
            self._retrying(lambda: self._client.head_object(Bucket=self._bucket, Key=self._prefix + key))
        except _Absent:
            return False
        return True

    def delete(self, key: str) -> None:
        """Remove the object, if it is there."""
        self._retrying(lambda: self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key))

    def list(self, prefix: str) -> Iterator[str]:
        """Keys that begin with ``prefix``, in the server's order."""
        for page in self._pages(prefix, delimiter=""):
            yield from (entry["Key"][len(self._prefix) :] for entry in page.get("Contents", []))

    def folders(self) -> Iterator[str]:
        """First segments of all keys that have more than one: the ids of all jobs, and whatever else lies there."""
        for page in self._pages("", delimiter="/"):
            for entry in page.get("CommonPrefixes", []):
                yield entry["Prefix"][len(self._prefix) :].rstrip("/")

    def check(self) -> None:
        """Raise unless the bucket is there and lets itself be listed."""
        self._retrying(lambda: self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1))

    def make_bucket(self) -> None:
        """Create the bucket; harmless where it exists."""

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
        """``call()``, again and again while the store is out of reach; _Absent where it asks for a missing object."""
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
        """The one table from what boto3 raises to what it means."""
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


def _ask_no_leave(params: dict[str, Any], **_: object) -> None:
    """Send what is small at once: botocore waits for the server's leave first, which is a round trip."""
    headers = params["headers"]
    if "Expect" in headers and (determine_content_length(params["body"]) or 0) <= _SMALL_BYTES:
        del headers["Expect"]


def _is_local(url: str) -> bool:
    return urlsplit(url).hostname in {"127.0.0.1", "localhost", "::1"}


def _code(error: BaseException | None) -> str:
    """S3's error code, or the HTTP status where the server sent none; "" for errors that are not S3's."""
    if not isinstance(error, ClientError):
        return ""
    return str(error.response.get("Error", {}).get("Code", ""))
