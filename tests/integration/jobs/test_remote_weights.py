"""Weights by address: real servers, one download, and one line for each fault."""

import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from producer.jobs import remote_weights
from producer.jobs.remote_weights import is_remote, local_copy
from tests.servers import free_port
from workers.clients.storage import Store
from workers.contract.errors import FilterfarmError, NoBucket, WeightsMissing
from workers.contract.settings import Settings

CONTENT = b"parameters" * 1000


@dataclass
class Site:
    """A web server with TLS: its address, and the paths that were asked for."""

    url: str
    asked: list[str] = field(default_factory=list)
    etag: str = '"1"'
    content: bytes = CONTENT


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names]
    subprocess.run([*make, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    site = Site(url=f"https://127.0.0.1:{free_port()}")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append(self.path)
            if self.path.startswith("/elsewhere"):
                self.send_response(302)
                self.send_header("Location", "http://127.0.0.1:9/x.pth")
                self.end_headers()
            elif self.path.startswith("/missing"):
                self.send_error(404)
            else:
                self.send_response(200)
                self.send_header("ETag", site.etag)
                self.send_header("Content-Length", str(len(CONTENT)))
                self.end_headers()
                self.wfile.write(site.content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", int(site.url.rpartition(":")[2])), Handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path) -> Settings:
    return Settings(cache_dir=tmp_path / "cache")


def test_only_addresses_are_remote() -> None:
    # Given / When / Then
    assert is_remote("https://host/x.pth")
    assert is_remote("s3://bucket/x.pth#ema")
    assert not any(map(is_remote, (None, "IMAGENET1K_V1", "x.pth", "/tmp/x.pth#ema", "~/x.pth")))


def test_a_file_is_downloaded_once_and_keeps_its_name(site: Site, cache: Settings) -> None:
    # Given / When it is asked for twice, the second time with a key
    first = local_copy(f"{site.url}/models/my%20net.pth?signature=secret", cache)
    second = local_copy(f"{site.url}/models/my%20net.pth?signature=secret#ema", cache)
    # Then there is one copy, which a job names as the address does
    assert Path(first).read_bytes() == CONTENT
    assert Path(first).name == "my_net.pth"
    assert second == f"{first}#ema"
    files = [path for path in (cache.cache_dir / "downloads").rglob("*") if path.is_file()]
    assert sorted(path.suffix for path in files) == [".json", ".pth"]
    assert not any("secret" in path.read_text() for path in files)


def test_a_file_that_changed_is_downloaded_again(site: Site, cache: Settings) -> None:
    # Given
    first = local_copy(f"{site.url}/x.pth", cache)
    # When the server has another version
    site.etag, site.content = '"2"', CONTENT[::-1]
    second = local_copy(f"{site.url}/x.pth", cache)
    # Then both are kept, each by its own content
    assert Path(first).read_bytes() == CONTENT
    assert Path(second).read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/missing/x.pth?key=secret", r"/missing/x\.pth: HTTP 404.*use its path"),
        ("/elsewhere/x.pth", r"redirected to http://127\.0\.0\.1:9/x\.pth, which is not https"),
        ("/", "names no file"),
    ],
)
def test_what_cannot_be_downloaded_is_one_line(site: Site, cache: Settings, path: str, message: str) -> None:
    # Given / When / Then
    with pytest.raises(WeightsMissing, match=message) as caught:
        local_copy(site.url + path, cache)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_download_that_ends_early_is_not_kept(site: Site, cache: Settings) -> None:
    # Given
    site.content = CONTENT[:100]
    # When / Then
    with pytest.raises(WeightsMissing, match=r"x\.pth (ended after 100 of 10000 bytes|broke off).*try again"):
        local_copy(f"{site.url}/x.pth", cache)
    assert list((cache.cache_dir / "downloads").iterdir()) == []


def test_a_download_above_the_limit_is_refused(site: Site, cache: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    monkeypatch.setattr(remote_weights, "MAX_OBJECT_BYTES", 100)
    # When / Then
    with pytest.raises(WeightsMissing, match="more than 100 bytes"):
        local_copy(f"{site.url}/x.pth", cache)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://host/x.pth", "use https:// or s3://bucket/key, or a file"),
        ("ftp://me:secret@host/x.pth", "ftp://host/x.pth"),
        ("https://127.0.0.1:9/x.pth", "cannot download weights from https://127.0.0.1:9/x.pth"),
        ("https://127.0.0.1:nine/x.pth", "cannot download weights from"),
    ],
)
def test_an_address_that_does_not_answer_is_one_line(
    cache: Settings, monkeypatch: pytest.MonkeyPatch, address: str, message: str
) -> None:
    # Given
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    # When / Then
    with pytest.raises(WeightsMissing, match=message) as caught:
        local_copy(address, cache)
    assert "secret" not in str(caught.value)


def test_an_object_of_another_bucket_is_downloaded_once(store: Store, settings: Settings, tmp_path: Path) -> None:
    # Given
    source = tmp_path / "x.pth"
    source.write_bytes(CONTENT)
    store.put_file("weights/x.pth", source)
    address = f"s3://{settings.bucket}/{settings.prefix}weights/x.pth"
    mine = Settings(**{**vars(settings), "cache_dir": tmp_path / "cache", "bucket_url": "s3://other"})
    # When
    first, second = (local_copy(address, mine) for _ in range(2))
    # Then
    assert first == second
    assert Path(first).read_bytes() == CONTENT


@pytest.mark.parametrize(("key", "error"), [("weights/none.pth", WeightsMissing), ("", WeightsMissing)])
def test_an_object_that_is_not_there_is_one_line(
    store: Store, settings: Settings, key: str, error: type[FilterfarmError]
) -> None:
    # Given / When / Then
    with pytest.raises(error):
        local_copy(f"s3://{settings.bucket}/{key}", settings)


def test_a_bucket_that_is_not_there_is_one_line(store: Store, settings: Settings) -> None:
    # Given / When / Then
    with pytest.raises(NoBucket, match="no-such-bucket"):
        local_copy("s3://no-such-bucket/x.pth", settings)
