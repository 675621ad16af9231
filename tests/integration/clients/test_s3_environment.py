"""The object store under what other people's environment, address and rights make of it."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import BUCKET, S3
from tests.s3proxy import s3_proxy
from workers.clients.storage import Store
from workers.contract.errors import BadSettings, FilterfarmError, NoBucket, StorageDenied, StorageUnreachable
from workers.contract.settings import Settings

TEXT = "text/plain"


@pytest.mark.parametrize(
    ("variables", "kind", "parts"),
    [
        ({"AWS_PROFILE": "nosuch"}, BadSettings, ["nosuch", "AWS_PROFILE"]),
        ({"AWS_DEFAULT_REGION": "us east 1"}, BadSettings, ["us east 1", "AWS_DEFAULT_REGION"]),
        ({"AWS_RETRY_MODE": "wild"}, BadSettings, ["wild", "AWS_RETRY_MODE"]),
        ({"AWS_DEFAULTS_MODE": "fast"}, BadSettings, ["fast"]),
        ({"AWS_CONFIG_FILE": "broken"}, BadSettings, ["broken"]),
        ({"AWS_SECRET_ACCESS_KEY": ""}, StorageDenied, ["AWS_SECRET_ACCESS_KEY"]),
        ({"AWS_ACCESS_KEY_ID": ""}, StorageDenied, ["AWS_ACCESS_KEY_ID"]),
        ({"AWS_SESSION_TOKEN": "stale"}, StorageDenied, []),
        ({"AWS_CA_BUNDLE": "/nosuch.pem"}, FilterfarmError, []),
    ],
)
def test_what_boto3_does_not_take_is_an_error_of_ours_of_one_line(
    seaweedfs: S3,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    variables: dict[str, str],
    kind: type[FilterfarmError],
    parts: list[str],
) -> None:
    # Given
    seaweedfs.sign_in(monkeypatch)
    monkeypatch.chdir(tmp_path)
    Path("broken").write_text("[profile\n")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    endpoint = seaweedfs.endpoint.replace("http:", "https:") if "AWS_CA_BUNDLE" in variables else seaweedfs.endpoint
    # When
    with pytest.raises(kind) as caught:
        Store(Settings(bucket_url=f"s3://{BUCKET}", endpoint_url=endpoint), retry_s=0).check()
    # Then
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert seaweedfs.secret not in str(caught.value)


@pytest.mark.parametrize("path", [f"/{BUCKET}", f"/{BUCKET}/", "/some/path"])
def test_an_endpoint_with_a_path_is_named_as_the_cause(settings: Settings, path: str) -> None:
    # Given an address as providers show it
    store = Store(replace(settings, endpoint_url=settings.endpoint_url + path), retry_s=0)
    # When / Then
    with pytest.raises((NoBucket, StorageDenied, StorageUnreachable)) as caught:
        store.check_writable()
    assert "AWS_ENDPOINT_URL_S3" in str(caught.value) or path.strip("/") in str(caught.value)
    assert "no such object" not in str(caught.value)


@pytest.mark.parametrize(
    "prefix",
    [
        "my pictures",
        "user=me/date=2024-01-01",
        "a+b",
        "été",
        "50 %",
        "%41",
        "#1",
        "a&b?c",
        "it's",
        '"q"',
        "[x]",
        "~a,b;c",
    ],
)
def test_a_prefix_may_have_any_printable_character(settings: Settings, prefix: str) -> None:
    # Given
    store = Store(replace(settings, bucket_url=f"{settings.bucket_url}/{prefix}"), retry_s=5)
    # When
    store.check_writable()
    store.put("job/tiles/features.0/0.png", b"x", TEXT)
    # Then
    assert store.get("job/tiles/features.0/0.png") == b"x"
    assert list(store.list("job/")) == ["job/tiles/features.0/0.png"]
    assert list(store.folders()) == ["job"]


def test_a_check_that_writes_leaves_nothing_behind(store: Store) -> None:
    # When
    store.check_writable()
    # Then
    assert list(store.list("")) == []


@pytest.mark.parametrize(("method", "operation"), [("PUT", "PutObject"), ("DELETE", "DeleteObject")])
def test_keys_that_may_not_do_everything_are_refused_with_the_operation(
    settings: Settings, s3: S3, method: str, operation: str
) -> None:
    with s3_proxy(s3.endpoint) as proxy:
        # Given keys that may list and read, and perhaps write
        proxy.denied, proxy.denied_methods = True, (method,)
        store = Store(replace(settings, endpoint_url=proxy.endpoint), retry_s=0)
        store.check()
        # When / Then
        with pytest.raises(StorageDenied, match=f"refuses {operation} in bucket '{BUCKET}'"):
            store.check_writable()


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidToken", "RequestTimeTooSkewed"])
def test_an_expired_token_or_a_wrong_clock_is_a_refusal(settings: Settings, s3: S3, code: str) -> None:
    with s3_proxy(s3.endpoint) as proxy:
        # Given a store that refuses for this reason
        proxy.denied, proxy.denied_code = True, code
        # When / Then: it is not tried for 30 s
        with pytest.raises(StorageDenied, match=code):
            Store(replace(settings, endpoint_url=proxy.endpoint), retry_s=30).check()
