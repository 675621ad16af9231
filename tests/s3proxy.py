"""An HTTP proxy before an object store that fails on request, as object stores do."""

import http.client
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>as configured</Message></Error>'


@dataclass
class S3Proxy:
    """What the proxy does with requests. It may be changed at any time. ``requests`` lists the answered requests."""

    endpoint: str
    #: cut every connection without an answer
    down: bool = False
    #: answer 403 to requests of these methods, with this code
    denied: bool = False
    denied_methods: tuple[str, ...] = ("GET", "HEAD", "PUT", "DELETE")
    denied_code: str = "AccessDenied"
    #: answer that there is no such bucket, as AWS does; rclone and SeaweedFS create the bucket on a PUT
    no_bucket: bool = False
    #: share of the requests that get 503, 0..1
    overloaded: float = 0.0
    #: seconds before a request is passed on
    delay_s: float = 0.0
    #: (Unix seconds of its receipt, method, path, status; 0 where the connection was cut), in the order of the answers
    requests: list[tuple[float, str, str, int]] = field(default_factory=list)
    #: number of requests so far, answered or not
    received: int = 0
    #: paths of the requests that waited for a "100 Continue" before they sent their body
    announced: list[str] = field(default_factory=list)

    def since(self, when: float) -> list[tuple[float, str, str, int]]:
        """Requests that were received after a time, in Unix seconds."""
        return [request for request in list(self.requests) if request[0] > when]


@contextmanager
def s3_proxy(backend: str) -> Iterator[S3Proxy]:
    """A proxy before the object store at ``backend``, on a free port. It passes signed headers on unchanged."""
    chance = random.Random(0)
    address = urlsplit(backend).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def handle_expect_100(self) -> bool:
            proxy.announced.append(self.path)
            return super().handle_expect_100()

        def handle_any(self) -> None:
            self.came = time.time()
            delay_s = proxy.delay_s
            proxy.received += 1
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if proxy.down:
                self._note(0)
                self.close_connection = True
            elif proxy.denied and self.command in proxy.denied_methods:
                self._answer(403, _ERROR.format(code=proxy.denied_code).encode(), {})
            elif proxy.no_bucket:
                self._answer(404, _ERROR.format(code="NoSuchBucket").encode(), {})
            elif chance.random() < proxy.overloaded:
                self._answer(503, _ERROR.format(code="SlowDown").encode(), {})
            else:
                time.sleep(delay_s)
                self._pass_on(body)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_any

        def _pass_on(self, body: bytes) -> None:
            onward = http.client.HTTPConnection(address, timeout=60)
            try:
                onward.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in {"connection", "expect"}:
                        onward.putheader(name, value)
                onward.endheaders(body)
                answer = onward.getresponse()
                self._answer(answer.status, answer.read(), dict(answer.getheaders()))
            except OSError:
                self._answer(502, _ERROR.format(code="BadGateway").encode(), {})
            finally:
                onward.close()

        def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self._note(status)
            try:
                self.send_response_only(status)
                for name, value in headers.items():
                    if name.lower() not in {"connection", "transfer-encoding", "content-length"}:
                        self.send_header(name, value)
                # The answer to HEAD holds the length of the object, and has no body.
                length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
                self.send_header("Content-Length", length)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)
            except OSError:  # the client has disconnected
                self.close_connection = True

        def _note(self, status: int) -> None:
            proxy.requests.append((self.came, self.command, self.path, status))

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    with Server(("127.0.0.1", 0), Handler) as server:
        proxy = S3Proxy(endpoint=f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join(10)
