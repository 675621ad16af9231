"""What a listing says of an object, and an object that is being read; the same for a bucket and for a folder."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType

#: Object stores give times in whole seconds, and their clocks may be a little ahead of their ``Date`` header.
SETTLED_NS = 2_000_000_000


@dataclass(frozen=True)
class StoredObject:
    """One line of a listing."""

    key: str
    #: bytes
    size: int
    #: Unix time of the last write in ns; whole seconds or ms on an object store
    modified_ns: int
    #: false if the last write is so recent that another one could have the same time
    settled: bool


@dataclass(frozen=True)
class OpenObject:
    """An object that is read piece by piece. A context manager, which closes it."""

    #: bytes
    size: int
    #: all bytes, in pieces of at most 1 MiB
    chunks: Iterator[bytes]
    close: Callable[[], object]

    def __enter__(self) -> "OpenObject":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
