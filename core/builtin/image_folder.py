"""A data set from a folder of images, one sub-folder an identity."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from core.builtin.dataset_folder import DataSource
from core.builtin.ijb_tree import Sample, SubjectImages, frames_to_media
from core.errors import UserError
from core.images.alignment import REFERENCE_POINTS, REFERENCE_SIZE
from core.images.codec import resize_image

__all__ = ["folder_source"]

logger = logging.getLogger(__name__)
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".pgm", ".ppm", ".tif", ".tiff")
TEST_SHARE = 0.2
MIN_TEST, MIN_TRAIN = 3, 2
JPEG_QUALITY = 95
NUM_PAIRS = 500_000


def folder_source(folder: Path, seed: int, image_size: int) -> DataSource:
    """Identities are the sub-folders of `folder` in the order of their names; images are assumed to be aligned.

    Images are cropped to their central square and resized; the bytes of a JPEG of the right size are kept. A fifth of
    the identities, drawn from the seed among those with two images or more, is held out for the evaluation; all others
    are for training. Folders without images are left out. `UserError` if there is no such folder, if it has too few
    identities and, while images are read, naming a file that cannot be decoded.
    """
    if not folder.is_dir():
        raise UserError(f"image folder not found: {folder}; --src must name a folder with one sub-folder an identity")
    found = {identity.name: _images_of(identity) for identity in sorted(folder.iterdir()) if identity.is_dir()}
    empty = [name for name, files in found.items() if not files]
    if empty:
        logger.warning("%d folders have no images and are left out, such as %s", len(empty), empty[0])
    identities = [files for files in found.values() if files]
    counts = np.array([len(files) for files in identities], dtype=np.int64)
    eligible = np.flatnonzero(counts >= 2)
    num_test = max(MIN_TEST, round(TEST_SHARE * len(counts)))
    if len(eligible) < MIN_TEST or len(counts) < MIN_TEST + MIN_TRAIN:
        raise UserError(
            f"{folder} has {len(counts)} identities with images, {len(eligible)} of them with two or more; at least "
            f"{MIN_TEST + MIN_TRAIN} are needed, {MIN_TEST} of them with two or more (one sub-folder an identity)"
        )
    test = np.sort(np.random.default_rng([seed, 0]).permutation(eligible)[:num_test])
    train = np.setdiff1d(np.arange(len(counts)), test)
    return DataSource(
        kind="folder",
        image_size=image_size,
        labels=np.repeat(np.arange(len(train)), counts[train]),
        jpegs=_jpegs([file for i in train for file in identities[i]], image_size),
        evaluation=SubjectImages(
            subjects=np.repeat(np.arange(len(test)), counts[test]),
            media=frames_to_media(counts[test]),
            samples=_samples([file for i in test for file in identities[i]], image_size),
        ),
        num_pairs=NUM_PAIRS,
        facts={
            "source": f"the image folder {folder.resolve().name}",
            "credit": "as the source of the images asks",
            "train_identities": [identities[i][0].parent.name for i in train],
            "test_identities": [identities[i][0].parent.name for i in test],
        },
    )


def _images_of(identity: Path) -> list[Path]:
    return sorted(p for p in identity.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def _samples(files: list[Path], image_size: int) -> Iterator[Sample]:
    landmarks = REFERENCE_POINTS * (image_size / REFERENCE_SIZE)
    return (Sample(jpeg, landmarks, 1.0) for jpeg in _jpegs(files, image_size))


def _jpegs(files: list[Path], image_size: int) -> Iterator[bytes]:
    """The images as JPEG of the given side; `UserError` naming the file that cannot be decoded."""
    for file in files:
        try:
            with Image.open(file) as opened:
                is_ready = (
                    opened.format == "JPEG"
                    and opened.mode == "RGB"
                    and opened.size == (image_size, image_size)
                    and not opened.getexif()
                )
                image = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"{file} is not an image that can be decoded ({error}); repair or remove it") from None
        if is_ready:
            yield file.read_bytes()
            continue
        side = min(image.shape[:2])
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        square = np.ascontiguousarray(image[top : top + side, left : left + side])
        if side != image_size:
            square = resize_image(square, image_size)
        yield simplejpeg.encode_jpeg(square, JPEG_QUALITY, "RGB", "444")
