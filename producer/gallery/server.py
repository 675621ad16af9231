"""A server on 127.0.0.1 that shows the galleries of a bucket, or of a data folder, to a browser on this machine.

It serves the objects of galleries and nothing else, by GET and HEAD. Their paths are their keys, so that a page finds
those of other jobs beside its own. Credentials stay in this process. Pages of other sites reach it neither by a name
of their own that leads to 127.0.0.1 (the Host header is checked) nor by embedding its scripts (they get
``Cross-Origin-Resource-Policy``).
"""

import logging
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import ClassVar
from urllib.parse import unquote

from producer.jobs.gallery_objects import content_type
from producer.jobs.inventory import load_job, read_state
from producer.jobs.local_store import LocalStore
from workers.clients.storage import Store
from workers.contract import keys
from workers.contract.errors import STORAGE_ERRORS, NoJob, ServerFailed, one_line

log = logging.getLogger(__name__)

_ADDRESS = "127.0.0.1"


def check(job_id: str | None, store: Store | LocalStore) -> str | None:
    """What a person is to know before the job's page, or the list of jobs if None, is shown; None if nothing.

    Raises NoJob if there is nothing to show, CorruptJob, and object store errors.
    """
    if job_id is None:
        if not _exists("index.html", store):
            raise NoJob("no list of jobs, which the collector writes; name a job, as in 'filterfarm gallery JOB'")
        return None
    load_job(job_id, store)
    if _exists(f"{job_id}/gallery.js", store):
        return None
    if read_state(store, job_id) == "running":
        return f"{job_id} has no gallery yet; the collector writes it with the first tile"
    return f"{job_id} was made by an older version; submit it again to add the new gallery"


@contextmanager
def serving(store: Store | LocalStore, port: int) -> Iterator[str]:
    """A running server on ``port``, or on a free one if 0; gives its URL, which ends with a slash.

    Raises ServerFailed if the port cannot be used.
    """
    try:
        server = _Server(store, port)
    except OSError as error:
        raise ServerFailed(
            f"cannot listen on port {port} of {_ADDRESS}: {error.strerror}; choose another --port, or leave it out"
        ) from error
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        try:
            yield f"http://{_ADDRESS}:{server.port}/"
        finally:
            server.shutdown()
            thread.join()


def _exists(key: str, store: Store | LocalStore) -> bool:
    return store.get(key, max_bytes=1) is not None


class _Server(socketserver.ThreadingTCPServer):
    # As http.server.ThreadingHTTPServer, which also looks its own address up in the DNS.
    allow_reuse_address = True
    daemon_threads = True
    #: a browser opens several connections at once
    request_queue_size = 64

    def __init__(self, store: Store | LocalStore, port: int) -> None:
        super().__init__((_ADDRESS, port), _Handler)
        self.store = store
        self.port: int = self.socket.getsockname()[1]
        self.hosts = {f"{name}:{self.port}" for name in (_ADDRESS, "localhost")}
        if self.port == 80:
            self.hosts |= {_ADDRESS, "localhost"}

    def handle_error(self, request: object, client_address: object) -> None:
        """Log what a handler raised. A browser that closes its connection is no error."""
        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError | TimeoutError):
            log.error("request aborted reason=%s", one_line(error))


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "filterfarm", ""
    #: seconds after which an idle connection is closed
    timeout: ClassVar[int] = 60

    def do_GET(self) -> None:
        """Send an object, or one line of text that says why not."""
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # a body, which nobody reads, is not the next request
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or hosts[0].lower() not in self.server.hosts:
            self.send_error(HTTPStatus.FORBIDDEN, f"this server answers to {_ADDRESS}:{self.server.port}")
            return
        key = _key(self.path)
        kind = content_type(key)
        if kind is None:
            self.send_error(HTTPStatus.NOT_FOUND, "a gallery has no such file")
            return
        try:
            self._send(key, kind)
        except STORAGE_ERRORS as error:
            log.error("cannot read key=%s reason=%s", key, error)
            self.send_error(HTTPStatus.BAD_GATEWAY, str(error))

    do_HEAD = do_GET

    def _not_allowed(self) -> None:
        self.send_error(HTTPStatus.METHOD_NOT_ALLOWED, "this server only shows: GET and HEAD")

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _not_allowed

    def _send(self, key: str, kind: str) -> None:
        found = self.server.store.open(key)
        if found is None:
            self.send_error(HTTPStatus.NOT_FOUND, f"no {key} yet")
            return
        with found:
            self._head(HTTPStatus.OK, kind, found.size)
            if self.command == "HEAD":
                return
            try:
                for chunk in found.chunks:
                    self.wfile.write(chunk)
            except STORAGE_ERRORS as error:
                # The browser sees by its length that the object is incomplete.
                log.error("cannot read key=%s reason=%s", key, error)
                self.close_connection = True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Send one line of text, and close the connection."""
        body = f"filterfarm: {message or HTTPStatus(code).phrase}\n".encode(errors="replace")
        self.close_connection = True
        self._head(code, "text/plain; charset=utf-8", len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, code: int, kind: str, length: int) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.send_header("Cache-Control", "no-cache")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        if code == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """No line for each request."""


def _key(target: str) -> str:
    """The object key that a request's target names; "" if it cannot be one. A folder is its index.html."""
    path = target.partition("?")[0]
    try:
        key = unquote(path.removeprefix("/"), errors="strict") if path.startswith("/") else ""
    except UnicodeDecodeError:
        return ""
    folder = key.removesuffix("/")
    if path == "/" or (key != folder and keys.is_name(folder)):
        return f"{key}index.html"
    return key
