"""Writes a PNG row by row, because a contact sheet may be larger than the memory.

Pillow encodes whole images only. Format: PNG specification, third edition, https://www.w3.org/TR/png-3/.
"""

import struct
import zlib
from typing import IO, TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Pixels of RGB with 8 bits each.
_BITS, _RGB = 8, 2

_LEVEL = 6

#: Rows that are filtered and compressed at once, which takes about ten times their size.
_ROWS_AT_ONCE = 64


class PngWriter:
    """An open RGB PNG of ``width`` x ``height`` px. ``write`` takes its rows in order, ``close`` ends the file."""

    def __init__(self, file: IO[bytes], width: int, height: int, text: dict[str, str]) -> None:
        self._file = file
        self._deflate = zlib.compressobj(_LEVEL)
        self._above = np.zeros((1, width, 3), np.uint8)
        file.write(b"\x89PNG\r\n\x1a\n")
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, _BITS, _RGB, 0, 0, 0))
        for name, value in text.items():
            self._chunk(b"tEXt", name.encode("latin-1") + b"\0" + value.encode("latin-1"))

    def write(self, rows: "NDArray[np.uint8]") -> None:
        """Append rows, (count, width, 3) uint8 RGB. Each is filtered as makes it smallest (section 12.7)."""
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            self._write_few(rows[start : start + _ROWS_AT_ONCE])

    def _write_few(self, rows: "NDArray[np.uint8]") -> None:
        left = np.concatenate([np.zeros_like(rows[:, :1]), rows[:, :-1]], axis=1)
        above = np.concatenate([self._above, rows[:-1]])
        filtered = np.stack([rows, rows - left, rows - above])
        # Differences near zero count as small from both sides.
        sizes = np.minimum(filtered, -filtered).sum(axis=(2, 3), dtype=np.int64)
        kinds = sizes.argmin(axis=0)
        chosen = filtered[kinds, np.arange(len(rows))].reshape(len(rows), -1)
        lines = np.concatenate([kinds[:, None].astype(np.uint8), chosen], axis=1)
        self._chunk(b"IDAT", self._deflate.compress(lines.tobytes()))
        self._above = rows[-1:].copy()

    def close(self) -> None:
        """Write what is left, and the end."""
        self._chunk(b"IDAT", self._deflate.flush())
        self._chunk(b"IEND", b"")

    def _chunk(self, kind: bytes, data: bytes) -> None:
        if data or kind == b"IEND":
            self._file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
