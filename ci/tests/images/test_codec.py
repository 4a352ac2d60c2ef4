"""The rule by which pixels are read, in every format and in every program's path."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from core.builtin.image_folder import folder_source
from core.data.lists import ListDataset
from core.data.recordio import RecordWriter
from core.data.records import RecordDataset
from core.evaluation.ijb_embeddings import AlignedImages
from core.evaluation.ijb_meta import IjbImages
from core.evaluation.retrieval_images import RetrievalImages
from core.images.alignment import REFERENCE_POINTS
from core.images.codec import decode_image

ORIENTATION = 0x0112
LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True, "exact": True}, "TIFF": {}}
NEARLY = {"JPEG": {"quality": 100, "subsampling": 0}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}
UPRIGHT = {
    1: lambda image: image,
    2: np.fliplr,
    3: lambda image: np.rot90(image, 2),
    4: np.flipud,
    5: lambda image: np.rot90(np.fliplr(image)),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: np.rot90(np.flipud(image)),
    8: np.rot90,
}
"""How a viewer shows an image that has the tag, by its value."""


def picture(height: int = 16, width: int = 24, seed: int = 0) -> np.ndarray:
    """A smooth picture, so that lossy formats change it little, with no symmetry."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR)


def encoded(image: np.ndarray | Image.Image, kind: str, orientation: int | None = None, **options: object) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    exif, written = Image.Exif(), io.BytesIO()
    if orientation is not None:
        exif[ORIENTATION] = orientation
        options["exif"] = exif
    image.save(written, kind, **options)
    return written.getvalue()


def by_opencv(suffix: str, image: np.ndarray) -> bytes:
    return cv2.imencode(suffix, image[..., ::-1].copy() if image.ndim == 3 else image)[1].tobytes()


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", [*LOSSLESS, *NEARLY])
def test_orientation_is_applied_in_every_format(kind, orientation):
    stored = picture()
    read = decode_image(encoded(stored, kind, orientation, **LOSSLESS.get(kind, NEARLY.get(kind))))
    expected = UPRIGHT[orientation](stored)
    assert read.shape == expected.shape
    assert np.abs(read.astype(int) - expected).max() <= (0 if kind in LOSSLESS else 6)


def jpeg_with(*segments: bytes) -> bytes:
    jpeg = simplejpeg.encode_jpeg(picture(), 95, "RGB", "444")
    return jpeg[:2] + b"".join(b"\xff\xe1" + struct.pack(">H", len(s) + 2) + s for s in segments) + jpeg[2:]


def test_orientation_of_jpegs_by_other_writers():
    stored = simplejpeg.decode_jpeg(jpeg_with())
    entry = {"<": struct.pack("<HHIHH", ORIENTATION, 3, 1, 6, 0), ">": struct.pack(">HHIHH", ORIENTATION, 3, 1, 6, 0)}
    little = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry["<"] + bytes(4)
    big = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + entry[">"] + bytes(4)
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation='6'/>"
    for segments in ((little,), (big,), (xmp, little)):
        assert np.array_equal(decode_image(jpeg_with(*segments)), np.rot90(stored, -1))
    for segments in (
        (xmp,),
        (little[:12],),
        (b"Exif\0\0rubbish",),
        (b"",),
        (little.replace(b"\x06\0\0\0", b"\x0c\0\0\0"),),
    ):
        assert np.array_equal(decode_image(jpeg_with(*segments)), stored)


def test_damaged_exif_leaves_the_picture_whole(recwarn):
    for rubbish in (b"rubbish", b"Exif\0\0MM\0*\0\0\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0", b"\0"):
        for kind, options in LOSSLESS.items():
            if kind != "TIFF":
                assert np.array_equal(decode_image(encoded(picture(), kind, exif=rubbish, **options)), picture())
        assert np.array_equal(decode_image(jpeg_with(rubbish)), decode_image(jpeg_with()))
    assert not recwarn


def test_png_whose_exif_comes_after_the_pixels_and_orientation_in_xmp_alone():
    png = encoded(picture(), "PNG", 6)
    at = png.index(b"eXIf") - 4
    (length,) = struct.unpack_from(">I", png, at)
    chunk, rest = png[at : at + 12 + length], png[:at] + png[at + 12 + length :]
    assert np.array_equal(decode_image(rest[:-12] + chunk + rest[-12:]), np.rot90(picture(), -1))
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    for kind in ("WEBP", "TIFF"):
        options = LOSSLESS[kind] | ({"xmp": xmp.encode()} if kind == "WEBP" else {"tiffinfo": {700: xmp.encode()}})
        assert np.array_equal(decode_image(encoded(picture(), kind, **options)), picture())


@pytest.fixture(params=[*LOSSLESS, "JPEG"])
def tagged(request, tmp_path):
    """Ten folders p0 ... p9 with two square photos that have to be turned; how the first one of a folder looks."""
    kind = request.param
    for person in range(10):
        (tmp_path / f"p{person}").mkdir()
        for shot in range(2):
            data = encoded(picture(64, 64, person), kind, 6, **LOSSLESS.get(kind, NEARLY.get(kind)))
            (tmp_path / f"p{person}" / f"{shot}.img").write_bytes(data)
    return tmp_path, np.rot90(picture(64, 64, 1), -1).astype(int), 0 if kind in LOSSLESS else 6


def test_every_program_reads_the_same_upright_pixels(tagged):
    folder, expected, most = tagged
    photo = folder / "p1" / "0.img"
    with RecordWriter(folder / "train") as writer:
        writer.write(0, 0, photo.read_bytes())
    (folder / "list.txt").write_text("p1/0.img 0\n")
    boxes = np.array([[8, 16, 40, 64]])
    retrieval = RetrievalImages(folder, ["p1/0.img"], folder / "list.txt", boxes).read(0)
    (folder / "loose_crop").symlink_to(folder / "p1")
    empty = np.empty(0)
    points = (REFERENCE_POINTS * 64 / 112)[None]
    ijb = IjbImages(folder, "IJBC", ["0.img"], points, empty, empty, empty, empty, empty)
    read = {
        "records": RecordDataset(folder / "train").batch([0])[0][0],
        "list": ListDataset(folder / "list.txt").batch([0])[0][0],
        "IJB": AlignedImages(ijb, 64).read(np.array([0]))["image"][0],
    }
    for name, image in read.items():
        assert np.abs(image - expected).max() <= most + (name == "IJB"), name
    assert np.abs(retrieval - expected[16:64, 8:40]).max() <= most
    small = ListDataset(folder / "list.txt", image_size=16).batch([0])[0][0]
    assert np.abs(small - expected.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))).max() <= 1 + most
    (folder / "loose_crop").unlink()
    source = folder_source(folder, 0, 64)
    row = 2 * source.facts["train_identities"].index("p1")
    made = decode_image(list(source.jpegs)[row])
    assert np.abs(made - expected).max() <= 6 + most


def tiff(raw: bytes, bits: int, sample_format: int = 1, photometric: int = 1) -> bytes:
    """A grey TIFF of 32 x 32 pixels, written by hand."""
    tags = [
        (256, 3, 32), (257, 3, 32), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 134), (277, 3, 1),
        (278, 3, 32), (279, 4, len(raw)), (339, 3, sample_format),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + raw


GREY16 = (np.arange(1024).reshape(32, 32) * 64 + 37).astype(np.uint16)
RGB16 = np.stack([GREY16, GREY16.T, GREY16[::-1]], axis=2)


def packed12(values: np.ndarray) -> bytes:
    a, b = values[:, 0::2], values[:, 1::2]
    return np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], axis=2).astype(np.uint8).tobytes()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(Image.fromarray(GREY16), "PNG"), GREY16 >> 8),
        (encoded(Image.fromarray(GREY16), "TIFF"), GREY16 >> 8),
        (encoded(Image.fromarray(GREY16), "TIFF", compression="tiff_lzw"), GREY16 >> 8),
        (b"P5 32 32 65535\n" + GREY16.astype(">u2").tobytes(), GREY16 >> 8),
        (by_opencv(".png", RGB16), RGB16 >> 8),
        (by_opencv(".tiff", RGB16), RGB16 >> 8),
        (cv2.imencode(".png", np.dstack([RGB16[..., ::-1], GREY16]))[1].tobytes(), RGB16 >> 8),
        (tiff(GREY16.tobytes(), 16, photometric=0), 255 - (GREY16 >> 8)),
        (tiff(packed12(GREY16 >> 4), 12), GREY16 >> 8),
    ],
)
def test_16_bits_become_8_by_their_high_byte(data, expected):
    expected = np.repeat(expected[..., None], 3, 2) if expected.ndim == 2 else expected
    assert np.array_equal(decode_image(data), expected)


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.fromarray(GREY16.astype(np.int32)), "TIFF"),
        encoded(Image.fromarray((GREY16 / 65535).astype(np.float32)), "TIFF"),
        tiff((GREY16.astype(int) - 30000).astype(np.int16).tobytes(), 16, sample_format=2),
        tiff((GREY16 >> 9).astype(np.int8).tobytes(), 8, sample_format=2),
        tiff(GREY16.astype(np.uint32).tobytes(), 32),
    ],
)
def test_values_of_which_white_is_not_known_are_refused(data):
    with pytest.raises(
        ValueError, match=r"signed, of 32 bits or floating point; scale them to 8 or 16 bits from 0 on$"
    ):
        decode_image(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (by_opencv(".tiff", (RGB16 / 65535).astype(np.float32)), "a kind of TIFF that is not read: save it as"),
        (tiff((GREY16 / 65535).astype(np.float16).tobytes(), 16, sample_format=3), "a kind of TIFF that is not read"),
        (b"Pf\n32 32\n-1.0\n" + bytes(4096), "PFM is not read: convert it to JPEG or PNG"),
        (by_opencv(".hdr", (RGB16 / 65535).astype(np.float32)), "Radiance HDR is not read"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "HEIC is not read"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100), "JPEG XL is not read"),
        (b"8BPS\0\1" + bytes(100), "Photoshop is not read"),
        (b"", "the file is empty"),
        (b"<html>404</html>", "unknown format or damaged"),
    ],
)
def test_what_is_not_read_is_said_by_name(data, message):
    with pytest.raises(ValueError, match=message):
        decode_image(data)


def test_alpha_is_dropped_and_palettes_and_grey_become_rgb():
    colours = picture(32, 32)
    alpha = np.linspace(0, 255, 32).astype(np.uint8) * np.ones((32, 1), np.uint8)
    clear = Image.fromarray(np.dstack([colours, alpha]))
    for kind, options in (*LOSSLESS.items(), ("JPEG2000", {}), ("BMP", {})):
        assert np.array_equal(decode_image(encoded(clear, kind, **options)), colours), kind
    grey = Image.fromarray(colours).convert("L")
    expected = np.repeat(np.asarray(grey)[..., None], 3, axis=2)
    grey.putalpha(Image.fromarray(alpha))
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(decode_image(encoded(grey, kind)), expected)
    palette = Image.fromarray(colours).quantize(16)
    for kind, options in (("PNG", {}), ("GIF", {}), ("BMP", {}), ("TIFF", {}), ("PNG", {"transparency": 3}),
                          ("GIF", {"transparency": 3}), ("PNG", {"transparency": bytes(16)})):  # fmt: skip
        read = decode_image(encoded(palette, kind, **options))
        assert np.array_equal(read, np.asarray(palette.convert("RGB"))), (kind, options)
    for kind, mode in (("PNG", "1"), ("PNG", "L"), ("PPM", "1"), ("PPM", "L"), ("TIFF", "1"), ("JPEG", "L")):
        image = Image.fromarray(colours).convert(mode)
        expected = np.asarray(image.convert("L"))[..., None]
        assert np.abs(decode_image(encoded(image, kind)).astype(int) - expected).max() <= 8 * (kind == "JPEG")


def test_four_colours_become_rgb():
    printed = Image.fromarray(picture(32, 32)).convert("CMYK")
    for kind, options in (("JPEG", NEARLY["JPEG"]), ("TIFF", {})):
        assert np.abs(decode_image(encoded(printed, kind, **options)).astype(int) - picture(32, 32)).max() <= 6
    turned = decode_image(encoded(printed, "JPEG", 6, **NEARLY["JPEG"]))
    assert np.abs(turned.astype(int) - np.rot90(picture(32, 32), -1)).max() <= 6


def test_the_first_picture_of_several_is_read():
    frames = [Image.fromarray(picture(32, 32, seed)).quantize(32).convert("RGB") for seed in range(3)]
    for kind, options in (("GIF", {}), ("WEBP", LOSSLESS["WEBP"]), ("TIFF", {}), ("PNG", {}), ("MPO", NEARLY["JPEG"])):
        read = decode_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
        assert np.abs(read.astype(int) - np.asarray(frames[0])).mean() <= (1 if kind in ("MPO", "GIF") else 0), kind


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "JPEG2000", "AVIF"])
def test_images_cut_short_are_undecodable_without_noise(kind, capfd, recwarn):
    data = encoded(picture(), kind)
    for length in (12, len(data) // 2, len(data) * 9 // 10):
        with pytest.raises(ValueError, match=r"\w"):
            decode_image(data[:length])
    assert capfd.readouterr().err == ""
    assert not recwarn


def test_a_header_that_promises_too_many_pixels_is_undecodable():
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))
    with pytest.raises(ValueError, match="pixels"):
        decode_image(bomb + chunk(b"IEND", b""))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_pixels_are_written_to_an_array_of_their_shape(kind):
    for orientation, shape in ((None, (16, 24, 3)), (6, (24, 16, 3))):
        data, out, other = (
            encoded(picture(), kind, orientation),
            np.zeros(shape, np.uint8),
            np.zeros((5, 5, 3), np.uint8),
        )
        read = decode_image(data, out)
        assert np.array_equal(read, out) and out.any()
        assert decode_image(data, other).shape == shape and not other.any()
        assert np.array_equal(decode_image(memoryview(data)), out)


def test_jpegs_of_every_kind_have_the_same_pixels_in_an_array_of_their_shape():
    """The short way of commonplace JPEGs is that of all others: grey, four colours, progressive, turned, commented."""
    colour, grey = picture(16, 16), Image.fromarray(picture(16, 16)[..., 0])
    comment = b"\xff\xfe\0\x0e no Exif\0\0  "
    plain = encoded(colour, "JPEG")
    kinds = [
        plain, encoded(grey, "JPEG"), encoded(Image.fromarray(colour).convert("CMYK"), "JPEG"),
        encoded(colour, "JPEG", progressive=True), encoded(colour, "JPEG", 6), encoded(colour, "JPEG", 1),
        plain[:2] + comment + plain[2:], encoded(colour, "JPEG", subsampling=0), encoded(picture(16, 15), "JPEG"),
    ]  # fmt: skip
    for data in kinds:
        out = np.full((16, 16, 3), 7, np.uint8)
        expected = decode_image(data)
        assert np.array_equal(decode_image(data, out), expected)
        assert np.array_equal(out, expected) or expected.shape != out.shape
        for damaged in (data[: len(data) * 2 // 3], data[:30], data[:2], data[:2] + b"\xff\xda" + data[2:]):
            with pytest.raises(ValueError):
                decode_image(damaged, out)


def test_large_jpegs_may_be_shrunk_while_they_are_decoded():
    for orientation, shape in ((None, (50, 75)), (6, (75, 50))):
        data = encoded(picture(200, 300), "JPEG", orientation)
        assert decode_image(data, min_side=40).shape[:2] == shape
        assert min(decode_image(data, min_side=150).shape[:2]) == 200
