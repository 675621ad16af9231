"""Makes the S3 client, from the settings and from what boto3 reads itself: AWS variables and files."""

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import (
    CredentialRetrievalError,
    InvalidRegionError,
    InvalidRetryModeError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)
from botocore.utils import determine_content_length

from workers.contract.errors import BadSettings, FilterfarmError, StorageDenied, one_line
from workers.contract.settings import Settings

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

#: A body of at most this length is sent without asking the server first. A server that refuses a longer one may close
#: the connection in the middle of it, and the client then cannot read the reason.
_SMALL_BYTES = 1 << 18

#: boto3's errors about credentials, as opposed to the server's.
CREDENTIAL_ERRORS = (
    NoCredentialsError,
    PartialCredentialsError,
    CredentialRetrievalError,
    SSOError,
    TokenRetrievalError,
)

#: Connections that a client keeps. More requests at a time would each open one of their own.
CONNECTIONS = 32

#: boto3's error while a client is made -> the variable that is usually wrong.
_WRONG_VARIABLES: dict[type[Exception], str] = {
    ProfileNotFound: "AWS_PROFILE",
    InvalidRegionError: "AWS_DEFAULT_REGION",
    InvalidRetryModeError: "AWS_RETRY_MODE",
}


def make_client(settings: Settings, *, read_timeout_s: float) -> "S3Client":
    """The S3 client. Raises what boto3 does about the environment and the files that it reads."""
    # A new session: boto3's default one keeps the first credentials that it read.
    session = boto3.session.Session()
    client: S3Client = session.client(
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
            read_timeout=read_timeout_s,
            max_pool_connections=CONNECTIONS,
            # Store retries: botocore stops within seconds, and its quota is shared by all threads.
            retries={"total_max_attempts": 1},
            # Building botocore's own for each call takes a tenth of the call's time.
            user_agent="filterfarm",
        ),
    )
    client.meta.events.register_last("before-call.s3", _send_small_at_once)
    return client


def environment_error(cause: Exception) -> FilterfarmError:
    """The error that describes what boto3 does not take from the AWS variables, or the files that they name."""
    if isinstance(cause, NoCredentialsError):
        return StorageDenied("no credentials of the object store; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if isinstance(cause, PartialCredentialsError):
        return StorageDenied(f"{one_line(cause)}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY both")
    if isinstance(cause, CREDENTIAL_ERRORS):
        return StorageDenied(f"boto3 gets no credentials ({one_line(cause)}); check AWS_PROFILE and its login")
    variable = _WRONG_VARIABLES.get(type(cause), "the AWS_ variables and the files that they name")
    return BadSettings(f"boto3 cannot use the AWS settings ({one_line(cause)}); correct {variable}")


def _send_small_at_once(params: dict[str, Any], **_: object) -> None:
    """Remove ``Expect: 100-continue`` from requests with a small body, because it costs a round trip."""
    headers = params["headers"]
    if "Expect" in headers and (determine_content_length(params["body"]) or 0) <= _SMALL_BYTES:
        del headers["Expect"]


def _is_local(url: str) -> bool:
    return urlsplit(url).hostname in {"127.0.0.1", "localhost", "::1"}
