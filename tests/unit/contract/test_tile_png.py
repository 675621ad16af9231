"""Tiles as PNG: what goes in comes out, and what is no tile is refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from workers.contract.errors import CorruptJob, CorruptTile, ExitCode
from workers.contract.records import TileRecord
from workers.contract.tile_png import TEXT_KEY, decode_tile, encode_tile, max_bytes

SIZE_PX = 16


def record() -> TileRecord:
    return TileRecord(
        job="vgg16-notebook-3f9a1c2e",
        layer="features.24",
        filter=511,
        seed=2**62,
        status="live",
        start_activation=-0.125,
        activation=1e300,
        stored_activation=1.0,
        restarts=2,
        steps=40,
        seconds=0.5,
        attempts=1,
        device="NVIDIA L4 \u2014 \u00e9\u6f22",
        versions={"torch": "2.9.0+cu128"},
    )


def noise(size_px: int = SIZE_PX) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (size_px, size_px, 3), np.uint8)


def png(image: Image.Image, text: str | None = None) -> bytes:
    chunks, out = PngImagePlugin.PngInfo(), io.BytesIO()
    if text is not None:
        chunks.add_text(TEXT_KEY, text)
    image.save(out, "PNG", pnginfo=chunks)
    return out.getvalue()


@pytest.mark.parametrize("size_px", [8, 16, 150])
def test_pixels_and_record_come_back_as_they_were(size_px: int) -> None:
    # Given
    pixels = noise(size_px)
    # When
    got, got_record = decode_tile(encode_tile(pixels, record()), (size_px, size_px))
    # Then
    assert got.dtype == np.uint8
    assert np.array_equal(got, pixels)
    assert got_record == record()


def test_any_viewer_sees_the_pixels_and_the_text() -> None:
    # Given
    pixels = noise()
    # When
    with Image.open(io.BytesIO(encode_tile(pixels, record()))) as image:
        seen, text = np.asarray(image), image.info[TEXT_KEY]
    # Then
    assert np.array_equal(seen, pixels)
    assert TileRecord.model_validate_json(text) == record()


def test_the_same_tile_is_the_same_bytes() -> None:
    # Given / When / Then
    assert encode_tile(noise(), record()) == encode_tile(noise(), record())


@pytest.mark.parametrize("size_px", [8, 64, 512])
def test_noise_stays_below_the_most_bytes_a_tile_can_have(size_px: int) -> None:
    # Given noise, which no encoder makes smaller / When / Then
    assert len(encode_tile(noise(size_px), record())) < max_bytes((size_px, size_px))


@pytest.mark.parametrize("size_px", [SIZE_PX - 1, SIZE_PX + 1, 2 * SIZE_PX])
def test_a_tile_of_another_size_is_corrupt(size_px: int) -> None:
    # Given
    data = encode_tile(noise(), record())
    # When / Then
    with pytest.raises(CorruptTile, match=f"16x16 px RGB, not {size_px}x{size_px} px") as caught:
        decode_tile(data, (size_px, size_px))
    assert caught.value.exit_code == ExitCode.CORRUPT_TILE


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "I;16"])
def test_a_picture_of_another_kind_is_corrupt(mode: str) -> None:
    # Given
    data = png(Image.new(mode, (SIZE_PX, SIZE_PX)), record().model_dump_json())
    # When / Then
    with pytest.raises(CorruptTile, match="px RGB"):
        decode_tile(data, (SIZE_PX, SIZE_PX))


@pytest.mark.parametrize("data", [b"", b"garbage", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n" + b"\0" * 100])
def test_garbage_is_corrupt(data: bytes) -> None:
    # Given / When / Then
    with pytest.raises(CorruptTile, match="no readable PNG"):
        decode_tile(data, (SIZE_PX, SIZE_PX))


def test_another_picture_format_is_corrupt() -> None:
    # Given
    out = io.BytesIO()
    Image.fromarray(noise()).save(out, "BMP")
    # When / Then
    with pytest.raises(CorruptTile, match="no readable PNG"):
        decode_tile(out.getvalue(), (SIZE_PX, SIZE_PX))


def test_a_tile_cut_off_anywhere_before_its_pixels_end_is_refused() -> None:
    # Given a file whose pixels end before two checksums, zlib's and the chunk's, and the closing chunk
    data = encode_tile(noise(), record())
    end = data.index(b"IEND") - 4 - 8
    # When / Then
    for length in range(end):
        with pytest.raises((CorruptTile, CorruptJob)):
            decode_tile(data[:length], (SIZE_PX, SIZE_PX))


def test_a_tile_with_any_byte_changed_is_refused_or_unharmed() -> None:
    # Given
    wanted = noise(8)
    data = encode_tile(wanted, record())
    for place in range(len(data)):
        for flip in (0x01, 0x20, 0xFF):
            changed = bytearray(data)
            changed[place] ^= flip
            # When / Then nothing else is raised
            try:
                pixels, got_record = decode_tile(bytes(changed), (8, 8))
            except (CorruptTile, CorruptJob):
                continue
            assert np.array_equal(pixels, wanted)
            assert got_record == record()


def test_too_many_bytes_are_refused_unread() -> None:
    # Given
    data = encode_tile(noise(), record())
    data += b"\0" * (max_bytes((SIZE_PX, SIZE_PX)) + 1 - len(data))
    # When / Then
    with pytest.raises(CorruptTile, match="too long"):
        decode_tile(data, (SIZE_PX, SIZE_PX))


def test_a_small_file_that_claims_to_be_huge_is_refused_before_it_is_decoded() -> None:
    # Given a header of 60000 x 60000 pixels, 10 GB once decoded
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(header)) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    # When / Then
    with pytest.raises(CorruptTile):
        decode_tile(b"\x89PNG\r\n\x1a\n" + chunk, (SIZE_PX, SIZE_PX))


def test_a_picture_that_only_nears_pillows_limit_is_refused_without_a_warning() -> None:
    # Given 10000 x 10000 pixels, at which Pillow warns and does not yet raise
    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(header)) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    # When / Then
    with pytest.raises(CorruptTile):
        decode_tile(b"\x89PNG\r\n\x1a\n" + chunk, (SIZE_PX, SIZE_PX))


def test_a_text_that_unpacks_to_very_much_is_refused() -> None:
    # Given 64 MB of blanks in a few bytes
    chunks, out = PngImagePlugin.PngInfo(), io.BytesIO()
    chunks.add_text(TEXT_KEY, " " * (64 << 20), zip=True)
    Image.fromarray(noise()).save(out, "PNG", pnginfo=chunks)
    # When / Then
    with pytest.raises((CorruptTile, CorruptJob)):
        decode_tile(out.getvalue(), (SIZE_PX, SIZE_PX))


@pytest.mark.parametrize("text", [None, "", "{}", "[]", "not json", '{"job": "x"}'])
def test_a_picture_without_a_whole_record_is_refused(text: str | None) -> None:
    # Given
    data = png(Image.fromarray(noise()), text)
    # When / Then
    with pytest.raises((CorruptTile, CorruptJob), match="its record is not valid"):
        decode_tile(data, (SIZE_PX, SIZE_PX))


@pytest.mark.parametrize(
    "change",
    [{"layer": "../../etc"}, {"filter": -1}, {"status": "<b>"}, {"activation": "NaN"}, {"attempts": 0}],
)
def test_a_record_that_breaks_its_rules_is_refused(change: dict[str, object]) -> None:
    # Given
    text = record().model_copy(update=change).model_dump_json(warnings=False)
    # When / Then
    with pytest.raises((CorruptTile, CorruptJob), match="its record is not valid"):
        decode_tile(png(Image.fromarray(noise()), text), (SIZE_PX, SIZE_PX))


def test_a_record_of_a_later_version_is_kept_with_what_this_one_does_not_know() -> None:
    # Given
    text = record().model_copy(update={"status": "weak", "kernels": "cudnn"}).model_dump_json()
    text = text[:-1] + ',"entropy":1.5}'
    # When
    _, found = decode_tile(png(Image.fromarray(noise()), text), (SIZE_PX, SIZE_PX))
    # Then
    assert (found.status, found.kernels) == ("weak", "cudnn")
    assert found.model_dump()["entropy"] == 1.5
