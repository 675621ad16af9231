"""The server of ``filterfarm gallery``, on both object stores and on a folder, by plain HTTP."""

import http.client
import logging
import random
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from producer.gallery.server import check, serving
from producer.jobs.local_store import LocalStore
from tests import servers
from tests.conftest import BUCKET, S3
from tests.jobs import sample_job
from workers.clients.storage import Store
from workers.contract import keys
from workers.contract.errors import NoJob, ServerFailed
from workers.contract.settings import Settings

JOB = sample_job("features.0")
SHEET = random.Random(0).randbytes(3_000_000)
OBJECTS = {
    "index.html": b"<!doctype html>jobs",
    "index.js": b'filterfarm.receive("jobs","",{});',
    "assets/app.css": b"body {}",
    "farm.json": b"{}",
    keys.job(JOB.id): JOB.to_json(),
    keys.index(JOB.id): b"<!doctype html>job",
    f"{JOB.id}/gallery.js": b'filterfarm.receive("job","x",{});',
    keys.tile(JOB.id, "features.0", 1): b"png",
    keys.grid(JOB.id, "features.0"): SHEET,
    keys.weights(JOB.id, "ab" * 32): b"parameters",
}


@pytest.fixture
def bucket(s3: S3) -> Store:
    """A folder of a bucket with OBJECTS, on each object store in turn."""
    store = Store(Settings(bucket_url=f"s3://{BUCKET}/{uuid.uuid4().hex}", endpoint_url=s3.endpoint), retry_s=5)
    for key, body in OBJECTS.items():
        store.put(key, body, "application/x-wrong")
    return store


@pytest.fixture
def address(bucket: Store) -> Iterator[str]:
    """Host and port of a server of the bucket."""
    with serving(bucket, 0) as url:
        yield url.removeprefix("http://").rstrip("/")


def ask(
    address: str, path: str, method: str = "GET", headers: dict[str, str] | None = None
) -> tuple[http.client.HTTPResponse, bytes]:
    """One request on a connection of its own; the answer and its body."""
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def say(address: str, request: bytes) -> bytes:
    """All that the server sends on a connection with these bytes."""
    host, _, port = address.partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def test_the_objects_of_a_gallery_are_served_with_their_types(address: str) -> None:
    # Given objects that were stored with another content type
    expected = {
        "index.html": "text/html; charset=utf-8",
        "index.js": "text/javascript; charset=utf-8",
        "assets/app.css": "text/css; charset=utf-8",
        keys.job(JOB.id): "application/json",
        keys.index(JOB.id): "text/html; charset=utf-8",
        f"{JOB.id}/gallery.js": "text/javascript; charset=utf-8",
        keys.tile(JOB.id, "features.0", 1): "image/png",
        keys.grid(JOB.id, "features.0"): "image/png",
    }
    # When they are asked for on one connection
    connection = http.client.HTTPConnection(address, timeout=30)
    for key, kind in expected.items():
        for method, body in (("GET", OBJECTS[key]), ("HEAD", b"")):
            connection.request(method, f"/{key}?t=1")
            answer = connection.getresponse()
            # Then each comes whole, and HEAD says the same without it
            assert (answer.status, answer.read()) == (200, body), (method, key)
            assert answer.headers["Content-Type"] == kind
            assert answer.headers["Content-Length"] == str(len(OBJECTS[key]))
            assert answer.headers["Cache-Control"] == "no-cache"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
            assert "Connection" not in answer.headers
    connection.close()


def test_a_folder_is_its_page_and_paths_may_be_encoded(address: str) -> None:
    assert ask(address, "/")[1] == OBJECTS["index.html"]
    assert ask(address, f"/{JOB.id}/")[1] == OBJECTS[keys.index(JOB.id)]
    assert ask(address, f"/{JOB.id}/tiles/features%2E0/1.png")[1] == b"png"


@pytest.mark.parametrize(
    "path",
    [
        "/farm.json", f"/{JOB.id}/weights/{'ab' * 32}", f"/{JOB.id}/weights/{'ab' * 32}?x=.png",
        f"/{JOB.id}/../farm.json", f"/{JOB.id}/%2e%2e/farm.json", "/..%2f..%2fetc/passwd", "//etc/passwd",
        f"//{JOB.id}//index.html", "/%00", "/%ff", "/%", "/%2", "/index.html%00", "/index.html%0d%0aX-Evil:%201",
        "/" + "a" * 5000, "/" + "%41" * 5000, f"/{JOB.id}", f"/{JOB.id}/tiles/", f"/{JOB.id}/tiles/features.0/2.png",
        "/no-such-job/index.html", "index.html", "http://elsewhere/index.html", "*", "/index.html;x",
        "/\u00e9",
    ],
)  # fmt: skip
def test_nothing_else_is_served(address: str, path: str) -> None:
    # When something else is asked for, by a client that takes any path
    answer = say(address, f"GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode("latin-1"))
    # Then one plain line says so
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 404 "), answer
    assert b"Content-Type: text/plain; charset=utf-8" in head
    assert b"X-Evil" not in head
    assert body.startswith(b"filterfarm: ")
    assert body.count(b"\n") == 1


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_changed(address: str, method: str) -> None:
    answer, body = ask(address, "/index.html", method)
    assert answer.status == 405
    assert answer.headers["Allow"] == "GET, HEAD"
    assert body.count(b"\n") == 1


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "0.0.0.0:{port}", ""]
)
def test_a_name_of_another_site_that_leads_here_is_refused(address: str, host: str) -> None:
    # When a browser was led here by a name that is not this server's
    answer, body = ask(address, "/index.html", headers={"Host": host.format(port=address.partition(":")[2])})
    # Then it gets nothing
    assert answer.status == 403
    assert b"doctype" not in body


def test_localhost_is_this_server(address: str) -> None:
    port = address.partition(":")[2]
    assert ask(address, "/index.html", headers={"Host": f"localhost:{port}"})[0].status == 200


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /index.html HTTP/1.1\r\n\r\n", b"403"),
        (b"GET /index.html HTTP/1.1\r\nHost: {host}\r\nHost: evil.example\r\n\r\n", b"403"),
        (b"GET /index.html\r\n\r\n", b""),
        (b"GET /index.html HTTP/9.9\r\nHost: {host}\r\n\r\n", b"Invalid HTTP version"),
        (b"GET / index.html HTTP/1.1\r\nHost: {host}\r\n\r\n", b"400"),
        (b"BREW /index.html HTTP/1.1\r\nHost: {host}\r\n\r\n", b"501"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: {host}\r\n\r\n", b"414"),
        (b"GET /index.html HTTP/1.1\r\nHost: {host}\r\n" + b"A: b\r\n" * 200 + b"\r\n", b"431"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"Bad request syntax"),
        (b"", b""),
        (b"\r\n\r\n\r\n", b""),
    ],
)  # fmt: skip
def test_nonsense_gets_an_answer_without_a_page_and_the_server_goes_on(
    address: str, request_: bytes, status: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    # When something else than a good request comes
    answer = say(address, request_.replace(b"{host}", address.encode()))
    # Then it is refused
    assert b"doctype" not in answer
    assert status in answer.partition(b"\r\n")[0]
    # And the next one is answered, and nothing was logged
    assert ask(address, "/index.html")[0].status == 200
    assert not caplog.records


def test_a_body_is_not_taken_for_the_next_request(address: str) -> None:
    # When a request for nothing has a body that looks like one for a page
    inner = f"GET /index.html HTTP/1.1\r\nHost: {address}\r\n\r\n"
    answer = say(address, f"GET /x HTTP/1.1\r\nHost: {address}\r\nContent-Length: {len(inner)}\r\n\r\n{inner}".encode())
    # Then that is not answered
    assert b"doctype" not in answer


def test_a_browser_that_goes_away_is_no_error(address: str, caplog: pytest.LogCaptureFixture) -> None:
    # When connections are closed in the middle of an answer
    host, _, port = address.partition(":")
    for _ in range(5):
        connection = socket.create_connection((host, int(port)), timeout=30)
        connection.sendall(f"GET /{keys.grid(JOB.id, 'features.0')} HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
        connection.recv(10)
        # closed at once, with unread data: the server's next write fails
        connection.close()
    # Then the server goes on and has logged nothing
    assert ask(address, f"/{keys.grid(JOB.id, 'features.0')}")[1] == SHEET
    assert not caplog.records


def test_a_store_that_fails_is_one_line_for_the_browser_and_one_for_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a server of a store that has ended
    with servers.rclone(tmp_path) as (endpoint, key, secret):
        S3(name="rclone", endpoint=endpoint, key=key, secret=secret).sign_in(monkeypatch)
        store = Store(Settings(bucket_url="s3://filterfarm", endpoint_url=endpoint), retry_s=0)
        store.make_bucket()
        store.put("index.html", b"x", "text/html")
        store.put("a-job/grids/a.png", bytes(64 << 20), "image/png")
        with serving(store, 0) as url:
            host = url.removeprefix("http://").rstrip("/")
            connection = http.client.HTTPConnection(host, timeout=30)
            connection.request("GET", "/a-job/grids/a.png")
            half = connection.getresponse()
            half.read(1 << 20)
    with serving(store, 0) as url, caplog.at_level(logging.INFO):
        # When a page is asked for
        answer, body = ask(url.removeprefix("http://").rstrip("/"), "/index.html")
    # Then both say what to do, and neither has the secret
    assert answer.status == 502
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    (line,) = [record.getMessage() for record in caplog.records if "index.html" in record.getMessage()]
    for text in (body.decode(), line):
        assert "AWS_ENDPOINT_URL_S3" in text
        assert secret not in text
        assert text.count("\n") <= 1
    connection.close()


def test_an_object_that_breaks_off_is_seen_to_be_incomplete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Given an object that is being read, larger than what sockets hold, when its store ends
    with servers.rclone(tmp_path) as (endpoint, key, secret):
        S3(name="rclone", endpoint=endpoint, key=key, secret=secret).sign_in(monkeypatch)
        store = Store(Settings(bucket_url="s3://filterfarm", endpoint_url=endpoint), retry_s=0)
        store.make_bucket()
        store.put("a-job/grids/a.png", bytes(64 << 20), "image/png")
        serving_it = serving(store, 0)
        url = serving_it.__enter__()
        connection = http.client.HTTPConnection(url.removeprefix("http://").rstrip("/"), timeout=30)
        connection.request("GET", "/a-job/grids/a.png")
        answer = connection.getresponse()
        assert answer.status == 200
    # When the rest is read, then the reader sees that it is not whole
    with pytest.raises(http.client.IncompleteRead):
        answer.read()
    connection.close()
    serving_it.__exit__(None, None, None)
    # And one line is logged
    (record,) = caplog.records
    assert "a-job/grids/a.png" in record.getMessage()


def test_a_folder_of_a_run_is_served_in_the_same_way(tmp_path: Path) -> None:
    # Given a data folder
    for key, body in OBJECTS.items():
        path = tmp_path / "bucket" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    (tmp_path / "bucket" / JOB.id / "status.json").mkdir()
    # When it is served
    with serving(LocalStore(tmp_path), 0) as url:
        address = url.removeprefix("http://").rstrip("/")
        # Then the same is there, and no more
        assert ask(address, f"/{keys.grid(JOB.id, 'features.0')}")[1] == SHEET
        assert ask(address, "/")[1] == OBJECTS["index.html"]
        assert ask(address, "/farm.json")[0].status == 404
        assert ask(address, f"/{JOB.id}/tiles/features.0/2.png")[0].status == 404
        # And a file that cannot be read is one line
        answer, body = ask(address, f"/{keys.status(JOB.id)}")
        assert answer.status == 502
        assert body.count(b"\n") == 1


def test_a_port_in_use_is_reported_with_a_way_out(address: str, bucket: Store) -> None:
    port = int(address.partition(":")[2])
    with pytest.raises(ServerFailed, match=f"port {port} .*--port") as caught, serving(bucket, port):
        pass
    assert "\n" not in str(caught.value)


def test_a_job_without_the_new_gallery_is_said_to_be_of_an_older_version(bucket: Store) -> None:
    # Given a job with its gallery, then one without that runs, and one that has finished
    assert check(JOB.id, bucket) is None
    bucket.delete(f"{JOB.id}/gallery.js")
    assert "first tile" in str(check(JOB.id, bucket))
    bucket.put(keys.status(JOB.id), b'{"state": "finished"}', "application/json")
    # When / Then
    assert check(JOB.id, bucket) == (f"{JOB.id} was made by an older version; submit it again to add the new gallery")


def test_an_unknown_job_and_a_missing_list_are_refused(bucket: Store) -> None:
    for name in ("vgg16-notebook-00000000", "../escape"):
        with pytest.raises(NoJob, match="filterfarm status"):
            check(name, bucket)
    assert check(None, bucket) is None
    bucket.delete("index.html")
    with pytest.raises(NoJob, match="filterfarm gallery JOB"):
        check(None, bucket)
