"""Sizes in the headers of images: refused before anything is decoded, in every format and in little memory."""

import io
import os
import re
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
import simplejpeg
from limited_child import outcome
from PIL import Image, PngImagePlugin

from core.data.lists import ListDataset
from core.data.recordio import RecordWriter
from core.data.records import RecordDataset
from core.errors import UserError
from core.images import codec
from core.images.codec import decode_image, read_image

SIDES = [30_000, 65_500]


def saved(kind: str, **options: object) -> bytearray:
    picture = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    written = io.BytesIO()
    Image.fromarray(picture).save(written, kind, **options)
    return bytearray(written.getvalue())


def patched(data: bytearray, at: int, layout: str, *values: int) -> bytes:
    struct.pack_into(layout, data, at, *values)
    return bytes(data)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, content: bytes, bits: int = 1) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + content + chunk(b"IEND", b"")


def tiff(width: int, height: int, *tags: tuple[int, int, int]) -> bytes:
    """A grey image of 8 bits in one strip; `tags`: (tag, type 3 or 4, value)."""
    tags = ((256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), *tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", t, k, 1, v) for t, k, v in tags)


def of_side(kind: str, side: int) -> bytes:
    """A few bytes whose header says `side` x `side` pixels."""
    if kind == "JPEG":
        data = bytearray(simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8)))
        return patched(data, data.index(b"\xff\xc0") + 5, ">HH", side, side)
    if kind == "CMYK":
        written = io.BytesIO()
        Image.new("CMYK", (16, 16)).save(written, "JPEG")
        data = bytearray(written.getvalue())
        return patched(data, data.index(b"\xff\xc0") + 5, ">HH", side, side)
    if kind == "progressive JPEG":
        data = saved("JPEG", progressive=True)
        return patched(data, data.index(b"\xff\xc2") + 5, ">HH", side, side)
    if kind == "PNG":
        return png(side, side, chunk(b"IDAT", zlib.compress(bytes(1000))))
    if kind == "GIF":
        return patched(bytearray(patched(saved("GIF"), 6, "<HH", side, side)), 8, "<H", side)
    if kind == "frame of a GIF":
        data = saved("GIF")
        return patched(data, data.index(b",\0\0\0\0") + 5, "<HH", side, side)
    if kind == "BMP":
        return patched(saved("BMP"), 18, "<ii", side, side)
    if kind == "TIFF":
        return tiff(side, side, (273, 4, 100), (278, 4, side), (279, 4, 10))
    if kind == "tile of a TIFF":
        return tiff(16, 16, (322, 4, side), (323, 4, side), (324, 4, 100), (325, 4, 10))
    if kind == "WEBP":
        first = Image.fromarray(np.zeros((16, 24, 3), np.uint8))
        written = io.BytesIO()
        first.save(written, "WEBP", save_all=True, append_images=[Image.new("RGB", (24, 16), 9)])
        data = bytearray(written.getvalue())
        assert data[12:16] == b"VP8X"
        return bytes(data[:24]) + (side - 1).to_bytes(3, "little") * 2 + bytes(data[30:])
    if kind == "PPM":
        return f"P6 {side} {side} 255\n".encode() + bytes(100)
    assert kind == "JPEG2000"
    data = saved("JPEG2000", no_jp2=True)
    at = data.index(b"\xff\x51")
    return patched(bytearray(patched(data, at + 6, ">II", side, side)), at + 22, ">II", side, side)


KINDS = ["JPEG", "CMYK", "progressive JPEG", "PNG", "GIF", "frame of a GIF", "BMP", "TIFF", "tile of a TIFF", "WEBP",
         "PPM", "JPEG2000"]  # fmt: skip


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_header_of_gigabytes_is_refused_at_once_and_in_little_memory(kind, side):
    data = of_side(kind, side)
    began = time.process_time()
    error = outcome(lambda: decode_image(data), megabytes=256, seconds=20)
    assert isinstance(error, ValueError), error
    assert re.search("more than the 67,108,864 pixels that .* BCTLAB_MAX_IMAGE_PIXELS", str(error)), error
    assert time.process_time() - began < 5


@pytest.mark.parametrize("kind", [*KINDS, "AVIF"])
def test_the_limit_is_of_pixels_and_can_be_set(monkeypatch, kind):
    plain = {"CMYK": "JPEG", "progressive JPEG": "JPEG", "frame of a GIF": "GIF", "tile of a TIFF": "TIFF"}
    data = bytes(saved(plain.get(kind, kind)))
    monkeypatch.setattr(codec, "MAX_IMAGE_PIXELS", 16 * 24)
    assert decode_image(data).shape == (16, 24, 3)
    monkeypatch.setattr(codec, "MAX_IMAGE_PIXELS", 16 * 24 - 1)
    with pytest.raises(ValueError, match="more than the 383 pixels"):
        decode_image(data)
    assert Image.MAX_IMAGE_PIXELS == 89_478_485  # other users of Pillow in the process keep its limit


def test_the_limit_comes_from_the_environment():
    program = "from core.images.codec import MAX_IMAGE_PIXELS; print(MAX_IMAGE_PIXELS)"
    environment = {**os.environ, "BCTLAB_MAX_IMAGE_PIXELS": "200000000"}
    found = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
    assert found.stdout == b"200000000\n"


def test_a_bomb_of_a_few_kilobytes_is_not_decoded():
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1251 * 1000)) for _ in range(10)) + packer.flush()
    data = png(10_000, 10_000, chunk(b"IDAT", rows))
    assert len(data) < 20_000
    assert "67,108,864 pixels" in str(outcome(lambda: decode_image(data), megabytes=64))


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_text_of_a_png_that_unpacks_to_gigabytes_is_not_unpacked(kind):
    bomb = (
        zlib.compress(zlib.compress(bytes(1 << 20), 9) * 300, 9) if kind == b"iCCP" else zlib.compress(bytes(1 << 26))
    )
    start = b"key\0\1\0\0\0" if kind == b"iTXt" else b"key\0\0"
    row = chunk(b"IDAT", zlib.compress(bytes(9)))
    data = png(8, 1, chunk(kind, start + bomb) * 40 + row)
    found = outcome(lambda: decode_image(data), megabytes=300, seconds=20)
    assert isinstance(found, np.ndarray | ValueError)


def test_a_jpeg_of_endless_scans_is_refused(monkeypatch):
    monkeypatch.setattr(codec, "CHEAP_SCANS", 0)
    data = bytearray(saved("JPEG", progressive=True))
    at = data.rindex(b"\xff\xda")
    assert decode_image(bytes(data)).shape == (16, 24, 3)
    with pytest.raises(ValueError, match="scans"):
        decode_image(bytes(data[:at] + data[at:-2] * 100 + data[-2:]))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientations_that_there_are_not_leave_the_picture(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        assert decode_image(bytes(saved(kind, exif=exif))).shape == (16, 24, 3)


def test_damaged_exif_of_any_kind_leaves_the_picture():
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    good = exif.tobytes()
    for _ in range(300):
        bad = bytearray(good)
        for at in rng.integers(6, len(bad), 4):
            bad[at] = rng.integers(256)
        image = decode_image(bytes(saved("JPEG", exif=bytes(bad))))
        assert image.shape in ((16, 24, 3), (24, 16, 3))


def test_only_the_first_of_many_frames_is_decoded():
    frames = [Image.new("P", (400, 400), i % 255) for i in range(300)]
    written = io.BytesIO()
    frames[0].save(written, "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(written.getvalue()).shape == (400, 400, 3)
    chunks = PngImagePlugin.PngInfo()
    chunks.add(b"acTL", struct.pack(">II", 0xFFFFFFFF, 0))
    assert decode_image(bytes(saved("PNG", pnginfo=chunks))).shape == (16, 24, 3)


def test_every_reader_names_the_image(tmp_path):
    bomb = of_side("PNG", 30_000)
    (tmp_path / "a.png").write_bytes(bomb)
    (tmp_path / "list.txt").write_text("a.png 0\n")
    with RecordWriter(tmp_path / "train") as writer:
        writer.write(0, 0, bomb)
    with pytest.raises(UserError, match=r"a\.png.*67,108,864 pixels"):
        read_image(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png.*67,108,864 pixels"):
        ListDataset(tmp_path / "list.txt", image_size=8).batch([0])
    with pytest.raises(UserError, match=r"record 0.*67,108,864 pixels"):
        RecordDataset(tmp_path / "train", image_size=8).batch([0])
