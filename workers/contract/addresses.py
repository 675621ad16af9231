"""Checks of the addresses in the environment: the broker's URL, the bucket's, and the object store's endpoint.

Each error is a BadSettings of one line that names the variable. None shows the broker's URL, which may hold a password.
"""

import re
from urllib.parse import parse_qsl, urlsplit

from workers.contract.errors import BadSettings

#: Query parameters of a rediss:// URL that redis-py and Kombu both take. Of other parameters each takes its own.
_TLS_PARAMETERS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")

_CERTIFICATE_CHOICES = ("required", "optional", "none")

#: S3's rule, and underscores, which Google allows.
_BUCKET_NAME = r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]"

#: An object's key has at most 1024 bytes in S3, and the longest key below the prefix about 500.
_LONGEST_PREFIX_BYTES = 512


def check_broker_url(url: str, variable: str) -> None:
    """Raise BadSettings unless redis-py and Kombu both accept the URL."""
    scheme = url.partition("://")[0]
    if scheme in {"unix", "redis+socket", "socket"}:
        raise BadSettings(
            f"{variable}: Unix sockets are not supported, because a farm has several machines; "
            "let Redis listen on a port too and write redis://host:6379/0"
        )
    if scheme in {"sentinel", "redis+cluster", "rediss+cluster"}:
        raise BadSettings(
            f"{variable}: {scheme}:// is not supported; write the address of one plain Redis, redis://host:6379/0"
        )
    try:
        parts = urlsplit(url)
        valid = parts.scheme in {"redis", "rediss"} and bool(parts.hostname) and parts.port != 0
        valid = valid and re.fullmatch(r"/?[0-9]{0,5}", parts.path) is not None and not parts.fragment
        valid = valid and ";" not in url  # Kombu splits the URL there
    except ValueError:  # of the port
        valid = False
    if not valid:
        hint = "; in a password / # ? % [ ] @ : ; must be percent-encoded, such as # as %23" if "@" in url else ""
        raise BadSettings(f"{variable} is no Redis URL; write redis://host:6379/0 or rediss://host:6379/0{hint}")
    _check_query(parts.scheme, parts.query, variable)


def _check_query(scheme: str, query: str, variable: str) -> None:
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in {"db", "virtual_host"}:
            raise BadSettings(f"{variable}: write the database as {scheme}://host:6379/{value[:5]}, not as ?{name}=")
        if name in {"password", "username"}:
            raise BadSettings(f"{variable}: write user and password as {scheme}://user:password@host:6379/0, not as ?")
        if name not in _TLS_PARAMETERS:
            raise BadSettings(
                f"{variable}: the parameter {name[:40]!r} is not supported; remove it "
                f"(rediss:// takes {', '.join(_TLS_PARAMETERS)})"
            )
        if scheme != "rediss":
            raise BadSettings(f"{variable}: the parameter {name!r} is for rediss://; remove it, or write rediss://")
        if name == "ssl_cert_reqs" and value not in _CERTIFICATE_CHOICES:
            raise BadSettings(f"{variable}: ssl_cert_reqs={value[:40]!r} must be {', '.join(_CERTIFICATE_CHOICES)}")
        if name == "ssl_check_hostname" and value not in {"true", "false"}:
            raise BadSettings(f"{variable}: ssl_check_hostname={value[:40]!r} must be true or false")


def check_endpoint(url: str, variable: str) -> None:
    """Raise BadSettings unless ``url`` is the address of an HTTP server, perhaps with a path."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        valid = valid and not parts.query and not parts.fragment and not re.search(r"\s", url)
    except ValueError:  # of the port
        valid = False
    if not valid:
        raise BadSettings(f"{variable}={url.rpartition('@')[2]!r} is no address; write https://host:port")
    if parts.username is not None:
        raise BadSettings(f"{variable}: user and password belong into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")


def split_bucket_url(url: str, variable: str) -> tuple[str, str]:
    """Bucket and prefix of s3://bucket/prefix; the prefix is "" or ends with "/". Raises BadSettings."""
    match = re.fullmatch(r"s3://([^/]*)(?:/(.*))?", url, re.DOTALL)
    if match is None:
        raise BadSettings(f"{variable}={url!r} is no bucket; write s3://bucket or s3://bucket/prefix")
    name, prefix = match[1], (match[2] or "").removesuffix("/")
    if re.fullmatch(_BUCKET_NAME, name) is None:
        raise BadSettings(
            f"{variable}={url!r}: {name!r} is no bucket; a bucket has 3 to 63 lower-case letters, digits, '-', '.', '_'"
        )
    problem = _prefix_problem(prefix) if prefix else ""
    if problem:
        raise BadSettings(f"{variable}={url!r}: {problem}")
    return name, f"{prefix}/" if prefix else ""


def _prefix_problem(prefix: str) -> str:
    """Why object stores refuse the prefix, or folders on a disk; "" if they take it."""
    if len(prefix.encode(errors="replace")) > _LONGEST_PREFIX_BYTES:
        return f"the prefix is longer than {_LONGEST_PREFIX_BYTES} bytes"
    bad = next((letter for letter in prefix if not letter.isprintable() or letter == "\\"), None)
    if bad is not None:
        return f"the prefix contains {bad!r}, which object stores do not take; remove it"
    segments = prefix.split("/")
    if "" in segments:
        return "the prefix has an empty segment ('//' or a '/' at its start); write each '/' once"
    if not {".", ".."}.isdisjoint(segments):
        return "the prefix has a segment '.' or '..'; write the path without it"
    return ""
