"""The one image codec: encoded images to uint8 RGB arrays, and arrays of one size to another.

Every program reads pixels by one rule, whatever the format:

- Images are turned upright as the orientation tag of their EXIF data says.
- Grey and palette images become RGB. Alpha is dropped: the colours are those that are stored. Of an animation or a file
  of several pictures the first one is read.
- 16 bits become 8 by their high byte. Other values (signed, 32 bits, floating point) are refused: what is white in them
  is not known.

JPEGs are decoded by libjpeg-turbo (simplejpeg; with four colours by OpenCV), all other formats by Pillow. Nothing is
decoded before the size in the header is known to be within `MAX_IMAGE_PIXELS`, for which 1.5 GB of memory are enough.
"""

import contextlib
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError

from core.errors import UserError, explain
from core.images.formats import START, format_of

__all__ = ["MAX_IMAGE_PIXELS", "decode_image", "is_plain_jpeg", "read_image", "resize_image"]

LIMIT = "BCTLAB_MAX_IMAGE_PIXELS"
"""The environment variable that sets `MAX_IMAGE_PIXELS`, for all programs and the workers that they start."""
MAX_IMAGE_PIXELS = int(os.environ.get(LIMIT, "")) if os.environ.get(LIMIT, "").isdecimal() else 1 << 26
"""Pixels of the largest image that is decoded: 8192 x 8192, where the environment does not say otherwise."""
MAX_SCANS = 64
"""Of a JPEG: encoders write at most some 20. Each goes over the whole picture, however few bytes it has."""
CHEAP_SCANS = 1 << 34
"""Bytes times pixels up to which any number of scans takes less than a second."""
FOUR_COMPONENTS = ("CMYK", "YCCK")
"""JPEG colour spaces that libjpeg does not convert to RGB; OpenCV does."""
JPEG, SEGMENT, APP1, START_OF_SCAN, EXIF = b"\xff\xd8", 0xFF, 0xE1, 0xDA, b"Exif\0\0"
FRAMES = (0xC0, 0xC1, 0xC2)
"""Frame headers of what libjpeg decodes: baseline, extended, progressive."""
SCAN = bytes((SEGMENT, START_OF_SCAN))
"""The parts of a JPEG before its picture."""
BITS_PER_SAMPLE, PHOTOMETRIC, TILE_WIDTH, TILE_LENGTH, SAMPLE_FORMAT = 258, 262, 322, 323, 339
WHITE_IS_ZERO, UNSIGNED = 0, 1
"""Tags of a TIFF, and values of theirs."""


def decode_image(data: bytes | memoryview, out: np.ndarray | None = None, min_side: int | None = None) -> np.ndarray:
    """Decode an image to uint8 (H, W, 3) RGB by the rule above; `ValueError` saying why if that is impossible.

    If `out` has the image's shape, the pixels are written there. With `min_side`, a JPEG at least twice as large may be
    shrunk while it is decoded, to sides that are not below `min_side`. A truncated image counts as undecodable.
    """
    name = "JPEG" if data[:2] == JPEG else _format_name(data)
    try:
        image = _decode_jpeg(data, out, min_side) if name == "JPEG" else _decode_by_pillow(data, name)
    except UnidentifiedImageError:
        raise ValueError(f"damaged, or a kind of {name} that is not read: save it as JPEG or PNG") from None
    except Image.DecompressionBombError:
        raise _too_large() from None
    except ValueError:
        raise
    except Exception as error:  # damaged files make decoders raise errors of any kind
        raise ValueError(str(error) or type(error).__name__) from error
    if out is not None and image is not out and out.shape == image.shape:
        out[:] = image
    return image


def _format_name(data: bytes | memoryview) -> str:
    """Pillow's name of the format; `ValueError` if it is not read."""
    if not len(data):
        raise ValueError("the file is empty")
    found = format_of(bytes(data[:START]))
    if found is None:
        raise ValueError("unknown format or damaged")
    if not found.is_read:
        raise ValueError(f"{found.name} is not read: convert it to JPEG or PNG")
    return found.name


def is_plain_jpeg(data: bytes, size: int, in_colours: Sequence[str] = ("YCbCr", "RGB")) -> bool:
    """True for a JPEG of `size` x `size` pixels in colour without EXIF: its bytes can be used as they are.

    `in_colours`: the JPEG colour spaces that are meant. `ValueError` for a damaged header.
    """
    if data[:2] != JPEG:
        return False
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    return (height, width) == (size, size) and colours in in_colours and not _jpeg_head(data)[1]


def _decode_jpeg(data: bytes | memoryview, out: np.ndarray | None, min_side: int | None) -> np.ndarray:
    shape, exif = _jpeg_head(data)
    if out is not None and exif is None and min_side is None and out.size * len(data) <= CHEAP_SCANS:
        _require_size(out.shape[1], out.shape[0])
        if shape in (out.shape, (*out.shape[:2], 1)):  # in colour or grey: nothing of what follows is needed
            image = simplejpeg.decode_jpeg(data, "RGB", buffer=out)
            return out if image.shape == out.shape else image
    *sides, colours, _ = simplejpeg.decode_jpeg_header(data)
    height, width = map(int, sides)
    _require_size(width, height)
    if width * height * len(data) > CHEAP_SCANS and (scans := bytes(data).count(SCAN)) > MAX_SCANS:
        raise ValueError(f"it has {scans} scans, more than any encoder writes: damaged")
    if colours in FOUR_COMPONENTS:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        if image is None:
            raise ValueError("damaged")
        return _upright(image, exif)
    if min_side is not None and min(height, width) >= 2 * min_side:
        return _upright(simplejpeg.decode_jpeg(data, "RGB", min_height=min_side, min_width=min_side), exif)
    return _upright(simplejpeg.decode_jpeg(data, "RGB"), exif)


def _jpeg_head(data: bytes | memoryview) -> tuple[tuple[int, int, int] | None, Image.Exif | None]:
    """Height, width and number of colours by a JPEG's first frame header, None if it has none before its picture, and
    its EXIF tags, None without them.
    """
    at, shape, exif, end = 2, None, None, len(data) - 10
    while at <= end and data[at] == SEGMENT and (kind := data[at + 1]) != START_OF_SCAN:
        if kind in FRAMES and shape is None:
            shape = (data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8], data[at + 9])
        following = at + 2 + (data[at + 2] << 8 | data[at + 3])
        if kind == APP1 and exif is None and data[at + 4 : at + 10] == EXIF:
            exif = Image.Exif()
            with _quiet(), contextlib.suppress(Exception):  # damaged: Pillow raises errors of any kind
                exif.load(bytes(data[at + 4 : following]))
        at = following
    return shape, exif


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's warnings of damaged metadata: an image is read, or the error says what is wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _upright(image: np.ndarray, exif: Image.Exif | None) -> np.ndarray:
    """An image (H, W, C) as it is to be seen: mirrored or turned as the orientation tag says."""
    if exif is None:
        return image
    orientation = 1
    with contextlib.suppress(Exception):  # values are parsed when they are asked for
        orientation = exif.get(ExifTags.Base.Orientation, 1)
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def _decode_by_pillow(data: bytes | memoryview, name: str) -> np.ndarray:
    with _quiet(), _within_limit(), Image.open(io.BytesIO(data), formats=(name,)) as image:
        _require_size(*image.size)
        tags = getattr(image, "tag_v2", {})
        _require_size(tags.get(TILE_WIDTH, 1), tags.get(TILE_LENGTH, 1))
        _remove_xmp(image)
        image.load()  # of a TIFF: turns it upright as well, and removes the tag
        _remove_xmp(image)
        exif = Image.Exif()
        with contextlib.suppress(Exception):  # damaged metadata leave the picture whole
            exif = image.getexif()
        return _upright(_to_rgb(image), exif)


@contextlib.contextmanager
def _within_limit() -> Iterator[None]:
    """With Pillow's own limit, which refuses twice as many, set to ours: it knows frames and tiles."""
    own, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, -(-MAX_IMAGE_PIXELS // 2)
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = own


def _require_size(width: int, height: int) -> None:
    """`ValueError` for an image of more pixels than are decoded."""
    if width * height > MAX_IMAGE_PIXELS:
        raise _too_large()


def _too_large() -> ValueError:
    return ValueError(
        f"by its header it has more than the {MAX_IMAGE_PIXELS:,} pixels that are decoded: scale it down, or allow "
        f"more with the environment variable {LIMIT}"
    )


def _remove_xmp(image: Image.Image) -> None:
    """Without EXIF, Pillow would take the orientation from there; viewers and browsers do not."""
    for key in ("xmp", "XML:com.adobe.xmp"):
        image.info.pop(key, None)


def _to_rgb(image: Image.Image) -> np.ndarray:
    """The pixels of an opened image, uint8 (H, W, 3); `ValueError` for values that have no known white."""
    tags = getattr(image, "tag_v2", {})
    is_grey16 = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    is_unsigned = set(tags.get(SAMPLE_FORMAT, (UNSIGNED,))) == {UNSIGNED}
    if image.mode == "F" or (image.mode == "I" and not is_grey16) or not is_unsigned:
        raise ValueError("its values are signed, of 32 bits or floating point; scale them to 8 or 16 bits from 0 on")
    if not is_grey16:
        image.info.pop("transparency", None)
        return np.array(image.convert("RGB"))
    (bits,) = tags.get(BITS_PER_SAMPLE, (16,))
    grey = (np.asarray(image) >> bits - 8).astype(np.uint8)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        grey = 255 - grey
    return np.repeat(grey[..., None], 3, axis=2)


def resize_image(image: np.ndarray, size: int) -> np.ndarray:
    """Resize an image (H, W, 3) to (size, size, 3): by averaging areas to shrink it, bilinear to enlarge it."""
    shrinks = min(image.shape[:2]) >= size
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def read_image(path: Path, stamp: np.ndarray | None = None) -> np.ndarray:
    """The image at `path`, uint8 (H, W, 3) RGB; `UserError` naming it if it cannot be read or decoded.

    Also if its size and modification time are not `stamp` (2,), as `core.images.source.file_stamps` gives them.
    """
    try:
        with open(path, "rb") as file:
            data, found = file.read(), os.fstat(file.fileno())
    except OSError as error:
        raise UserError(f"image not readable: {path}: {explain(error)}") from error
    if stamp is not None and (found.st_size, found.st_mtime_ns) != tuple(stamp.tolist()):
        raise UserError(
            f"{path} has changed since the program looked it up: repeat the command when nobody writes to the data"
        )
    try:
        return decode_image(data)
    except ValueError as error:
        raise UserError(f"image cannot be decoded: {path} ({error})") from None
