"""Encodes a tile and its record as PNG, and decodes them."""

import io
import warnings
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, PngImagePlugin
from pydantic import ValidationError

from workers.contract.errors import CorruptTile, one_line
from workers.contract.job import Job
from workers.contract.records import TileRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The PNG text field that holds the record as JSON.
TEXT_KEY = "filterfarm"

#: Largest number of pixels of a tile: Pillow warns of more.
MAX_TILE_PIXELS = 89_478_485

#: Durations in milliseconds of a frame of an animation, and of the last one.
_FRAME_MS, _REST_MS = 100, 1500

#: Bytes by which a tile's PNG may exceed its pixels.
_OVERHEAD_BYTES = 65_536


def max_bytes(size_px: tuple[int, int]) -> int:
    """Upper bound in bytes of the PNG of a tile of that height and width."""
    return size_px[0] * size_px[1] * 4 + _OVERHEAD_BYTES


def encode_tile(pixels: "NDArray[np.uint8]", record: TileRecord) -> bytes:
    """PNG of ``pixels`` ((H, W, 3) uint8 RGB) with ``record`` as text."""
    text = PngImagePlugin.PngInfo()
    text.add_text(TEXT_KEY, record.model_dump_json())
    out = io.BytesIO()
    # Huffman coding alone: noise-like pictures have no repetitions, and this takes a third of the time.
    Image.fromarray(pixels).save(out, "PNG", pnginfo=text, compress_level=1, compress_type=zlib.Z_HUFFMAN_ONLY)
    return out.getvalue()


def encode_frames(frames: "Sequence[NDArray[np.uint8]]") -> bytes:
    """Animated WebP of frames ((H, W, 3) uint8 RGB each, of one size); the last one is shown longest."""
    pictures = [Image.fromarray(frame) for frame in frames]
    pauses_ms = [_FRAME_MS] * (len(pictures) - 1) + [_REST_MS]
    out = io.BytesIO()
    pictures[0].save(
        out, "WEBP", save_all=True, append_images=pictures[1:], duration=pauses_ms, loop=0, quality=90, method=2
    )
    return out.getvalue()


def decode_tile(data: bytes, size_px: tuple[int, int]) -> tuple["NDArray[np.uint8]", TileRecord]:
    """Pixels ((H, W, 3) uint8 RGB) and record of a tile; ``size_px``: its expected height and width.

    Raises CorruptTile for other data, before a picture of another size is decoded, and for an invalid record.
    """
    if len(data) > max_bytes(size_px):
        raise CorruptTile(f"a tile of {len(data)} bytes is too long for {_text(size_px)}")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.size[::-1] != size_px or image.mode != "RGB":
                raise CorruptTile(f"a tile is {_text(image.size[::-1])} {image.mode}, not {_text(size_px)} RGB")
            pixels = np.asarray(image)
            text = image.info.get(TEXT_KEY, "")
    except (OSError, SyntaxError, ValueError, zlib.error, Image.DecompressionBombError) as error:
        raise CorruptTile(f"a tile is no readable PNG: {one_line(error, 100)}") from error
    try:
        return pixels, TileRecord.model_validate_json(text)
    except ValidationError as error:
        raise CorruptTile(f"its record is not valid: {one_line(error, 100)}") from error


def decode_tile_of(job: Job, layer: str, filter_: int, data: bytes) -> tuple["NDArray[np.uint8]", TileRecord]:
    """Like ``decode_tile``, for the tile of one filter of a job. Raises CorruptTile also if it is another tile."""
    pixels, record = decode_tile(data, job.recipe.tile_px)
    if (record.job, record.layer, record.filter) != (job.id, layer, filter_):
        raise CorruptTile(f"its record names {record.job} {record.layer}/{record.filter}")
    return pixels, record


def is_picture(data: bytes) -> bool:
    """True if ``data`` decodes as a PNG of any size that Pillow takes for harmless."""
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image.load()
    except (OSError, SyntaxError, ValueError, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return False
    return True


def _text(size_px: tuple[int, int]) -> str:
    return f"{size_px[0]}x{size_px[1]} px"
