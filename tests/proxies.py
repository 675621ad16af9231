"""A TCP proxy that can play a broken network: everything passes, or vanishes without a word, or is cut off."""

import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

#: pass: as if there were no proxy. swallow: clients connect, and nothing they or the server send ever arrives; what
#: was connected then stays dead for ever, as behind a router that has lost its table. cut: connections are reset.
Mode = Literal["pass", "swallow", "cut"]


class Proxy:
    """Listens on a port of 127.0.0.1 and passes on to another one."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        #: each socket's other end; None for one that leads nowhere any more
        self._pairs: dict[socket.socket, socket.socket | None] = {}
        self._mode: Mode = "pass"
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def set(self, mode: Mode) -> None:
        """Change the network, for what is connected and for what will be."""
        with self._lock:
            self._mode = mode
            for end in list(self._pairs):
                if mode == "swallow":
                    self._pairs[end] = None
                elif mode == "cut":
                    self._close(end)

    def close(self) -> None:
        """Cut everything and stop listening."""
        self._ended.set()
        self._thread.join(10)
        self.set("cut")
        self._listener.close()
        self._selector.close()

    def _loop(self) -> None:
        while not self._ended.is_set():
            for key, _ in self._selector.select(0.1):
                with self._lock:
                    if key.fileobj is self._listener:
                        self._accept()
                    elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._pairs:
                        self._pass_on(key.fileobj)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        if self._mode == "cut":
            client.close()
            return
        server: socket.socket | None = None
        if self._mode == "pass":
            try:
                server = socket.create_connection(("127.0.0.1", self._target), timeout=5)
            except OSError:
                client.close()
                return
            self._join(server, client)
        self._join(client, server)

    def _join(self, end: socket.socket, other: socket.socket | None) -> None:
        self._pairs[end] = other
        self._selector.register(end, selectors.EVENT_READ, None)

    def _pass_on(self, end: socket.socket) -> None:
        try:
            data = end.recv(65_536)
        except OSError:
            data = b""
        other = self._pairs[end]
        if not data:
            self._close(end)
            if other is not None:
                self._close(other)
        elif other is not None:
            with suppress(OSError):  # its end is seen when it is read
                other.sendall(data)

    def _close(self, end: socket.socket) -> None:
        if end in self._pairs:
            del self._pairs[end]
            self._selector.unregister(end)
            end.close()


@contextmanager
def proxy(target: int) -> Iterator[Proxy]:
    """A proxy before ``target``, a port of 127.0.0.1; everything passes at first."""
    made = Proxy(target)
    try:
        yield made
    finally:
        made.close()
