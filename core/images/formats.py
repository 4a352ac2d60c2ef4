"""Formats of image files, told by their first bytes: a suffix may be missing or wrong."""

import re
from typing import NamedTuple

__all__ = ["START", "ImageFormat", "format_of"]

START = 64
"""Bytes at the beginning of a file that `format_of` looks at."""


class ImageFormat(NamedTuple):
    """`name` (Pillow's, where the format is read), the usual `suffix`, and whether images of this format are read."""

    name: str
    suffix: str
    is_read: bool


FORMATS = [
    (re.compile(pattern, re.DOTALL), ImageFormat(name, suffix, is_read))
    for pattern, name, suffix, is_read in (
        (rb"\xff\xd8", "JPEG", ".jpg", True),  # also .jfif, .jpe, and MPO, whose first picture is an ordinary JPEG
        (rb"\x89PNG\r\n\x1a\n", "PNG", ".png", True),
        (rb"RIFF....WEBP", "WEBP", ".webp", True),
        (rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", "BMP", ".bmp", True),  # sizes of its headers
        (rb"GIF8[79]a", "GIF", ".gif", True),
        (rb"II\*\0....CR|....ftypcrx|FUJIFILMCCD-RAW|II(RO|RS|U\0)|\0MRM", "camera raw", ".raw", False),
        (rb"II[*+]\0|MM\0[*+]", "TIFF", ".tif", True),
        (rb"P[1-6]\s+[#\d]", "PPM", ".ppm", True),  # PBM, PGM and PPM
        (rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", "JPEG2000", ".jp2", True),
        (rb"....ftyp(avi[fs]|(mif1|msf1).{4}(.{4})*?avi[fs])", "AVIF", ".avif", True),
        (rb"....ftyp(hei|hev|mif1|msf1)", "HEIC", ".heic", False),
        (rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL", ".jxl", False),
        (rb"P[fF]\s", "PFM", ".pfm", False),
        (rb"#\?R(ADIANCE|GBE)", "Radiance HDR", ".hdr", False),
        (rb"\x76\x2f\x31\x01", "OpenEXR", ".exr", False),
        (rb"8BPS", "Photoshop", ".psd", False),
    )
]


def format_of(start: bytes) -> ImageFormat | None:
    """The format of a file whose first bytes (`START` of them, or all it has) are `start`; None if it is no image."""
    return next((image_format for pattern, image_format in FORMATS if pattern.match(start)), None)
