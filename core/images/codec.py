"""The one image codec: encoded images to uint8 RGB arrays, and arrays of one size to another."""

from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from core.errors import UserError

__all__ = ["FOUR_COMPONENTS", "JPEG_START", "decode_image", "read_image", "resize_image"]

JPEG_START = b"\xff\xd8"
FOUR_COMPONENTS = ("CMYK", "YCCK")
"""JPEG colour spaces that libjpeg does not convert to RGB; OpenCV does."""


def decode_image(data: bytes | memoryview, out: np.ndarray | None = None) -> np.ndarray:
    """Decode JPEG, PNG or another format that OpenCV reads to uint8 (H, W, 3) RGB; `ValueError` if that is impossible.

    If `out` has the image's shape, the pixels are written there and the result shares its memory; otherwise it is a
    new array. A truncated JPEG counts as undecodable.
    """
    if data[:2] == JPEG_START:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in FOUR_COMPONENTS:
            fits = out is not None and out.shape == (height, width, 3)
            return simplejpeg.decode_jpeg(data, "RGB", buffer=out if fits else None)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) if len(data) else None
    except cv2.error:  # a header with more pixels than OpenCV allows
        image = None
    if image is None:
        raise ValueError("unknown format or damaged")
    if out is not None and out.shape == image.shape:
        out[:] = image
    return image


def resize_image(image: np.ndarray, size: int) -> np.ndarray:
    """Resize an image (H, W, 3) to (size, size, 3): by averaging areas to shrink it, bilinear to enlarge it."""
    shrinks = min(image.shape[:2]) >= size
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def read_image(path: Path) -> np.ndarray:
    """The image at `path`, uint8 (H, W, 3) RGB; `UserError` naming it if it cannot be read or decoded."""
    try:
        return decode_image(path.read_bytes())
    except OSError as error:
        raise UserError(f"image not readable: {path} ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"image cannot be decoded: {path} ({error})") from None
