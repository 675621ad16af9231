"""Translates what boto3 raises about the object store into this project's errors."""

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
)

from workers.clients.s3_client import CREDENTIAL_ERRORS, environment_error
from workers.contract.errors import FilterfarmError, NoBucket, PermanentError, StorageDenied, StorageUnreachable

#: S3 error codes and HTTP statuses that deny access, and those of an absent object, which is not an error.
_DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AllAccessDisabled", "401", "403"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"}
_ABSENT = {"NoSuchKey", "404", "NotFound"}


class Absent(PermanentError):
    """There is no such object. Store's public methods return None or False, or raise NoBucket instead."""


def translate(
    cause: ClientError | BotoCoreError, *, may_be_absent: bool, endpoint: str, bucket: str, variable: str
) -> FilterfarmError:
    """The error that describes what boto3 raised.

    ``endpoint`` is the server in words, ``variable`` the setting with its address. A missing object is Absent if
    ``may_be_absent``, else NoBucket: then the address leads into a bucket.
    """
    code = error_code(cause)
    if isinstance(cause, ClientError) and code in _DENIED:
        return StorageDenied(
            f"{endpoint} refuses {cause.operation_name} in bucket {bucket!r} ({code}); "
            "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they permit"
        )
    if code in _EXPIRED:
        return StorageDenied(f"{endpoint} refuses the session token ({code}); renew AWS_SESSION_TOKEN")
    if code == "RequestTimeTooSkewed":
        return StorageDenied(f"{endpoint} refuses this machine's clock ({code}); set it by NTP")
    if isinstance(cause, CREDENTIAL_ERRORS):
        return environment_error(cause)
    if code in _ABSENT and may_be_absent:
        return Absent(f"no such object in bucket {bucket!r}")
    if code in _ABSENT:
        return NoBucket(
            f"{endpoint} leads to no bucket {bucket!r} ({code}); "
            f"if {variable} contains the bucket's name or another path, leave it out"
        )
    if code == "NoSuchBucket":
        return NoBucket(f"no bucket {bucket!r} at {endpoint}; create it or correct FILTERFARM_BUCKET")
    if isinstance(cause, (EndpointConnectionError, ConnectTimeoutError, HTTPClientError)):
        return StorageUnreachable(
            f"no answer from the object store at {endpoint} ({type(cause).__name__}); "
            f"check {variable} and that the server runs"
        )
    return StorageUnreachable(f"the object store at {endpoint} fails: {code or type(cause).__name__}")


def error_code(error: BaseException | None) -> str:
    """S3's error code, or the HTTP status if the server sent none; "" for errors of other kinds."""
    if not isinstance(error, ClientError):
        return ""
    return str(error.response.get("Error", {}).get("Code", ""))
