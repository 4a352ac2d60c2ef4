"""A data set from a folder of images, one sub-folder an identity."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import simplejpeg

from core.builtin.dataset_folder import DataSource
from core.builtin.find_images import FoundImages, find_images
from core.builtin.ijb_tree import Sample, SubjectImages, frames_to_media
from core.errors import UserError
from core.images.alignment import REFERENCE_POINTS, REFERENCE_SIZE
from core.images.codec import decode_image, is_plain_jpeg, resize_image

__all__ = ["folder_source"]

logger = logging.getLogger(__name__)
TEST_SHARE = 0.2
MIN_TEST, MIN_TRAIN = 3, 2
JPEG_QUALITY = 95
NUM_PAIRS = 500_000
MOST_NAMES = 3


def folder_source(folder: Path, seed: int, image_size: int) -> DataSource:
    """Identities are the sub-folders of `folder` in the order of their names; images are assumed to be aligned.

    Images are found as `find_images` says, cropped to their central square and resized; the bytes of a colour JPEG of
    the right size without EXIF are kept. A fifth of the identities, drawn from the seed among those with two images or
    more, is held out for the evaluation; all others are for training. What is left out is counted and named in the log.
    `UserError` if there is no such folder, if it has too few identities and, naming them, for files that cannot be
    decoded: those that hold no image at all are found at once, others when they are read.
    """
    if not folder.is_dir():
        raise UserError(f"image folder not found: {folder}; --src must name a folder with one sub-folder an identity")
    found = find_images(folder)
    _report(found)
    names, identities = list(found.identities), list(found.identities.values())
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
            "train_identities": [names[i] for i in train],
            "test_identities": [names[i] for i in test],
            "left_out": {what: len(paths) for what, paths in found.left_out.items()},
        },
    )


def _report(found: FoundImages) -> None:
    """Log what is left out; `UserError` if files are damaged."""
    for what, paths in found.left_out.items():
        logger.warning("left out, %s (%d): %s", what, len(paths), _first_names(paths))
    if found.nested:
        logger.warning(
            "images in deeper folders (%d) belong to the identity of the uppermost folder: %s",
            len(found.nested),
            _first_names(found.nested),
        )
    if found.damaged:
        raise UserError(
            f"files that are named as images but hold none ({len(found.damaged)}): {_first_names(found.damaged)}; "
            "repair or remove them"
        )


def _first_names(paths: list[str]) -> str:
    return ", ".join(paths[:MOST_NAMES]) + (" and others" if len(paths) > MOST_NAMES else "")


def _samples(files: list[Path], image_size: int) -> Iterator[Sample]:
    landmarks = REFERENCE_POINTS * (image_size / REFERENCE_SIZE)
    return (Sample(jpeg, landmarks, 1.0) for jpeg in _jpegs(files, image_size))


def _jpegs(files: list[Path], image_size: int) -> Iterator[bytes]:
    """The images as JPEG of the given side; `UserError` naming the file that cannot be decoded."""
    for file in files:
        data = file.read_bytes()
        try:
            image = decode_image(data)
        except ValueError as error:
            raise UserError(f"{file} is not an image that can be decoded ({error}); repair or remove it") from None
        if is_plain_jpeg(data, image_size):
            yield data
            continue
        side = min(image.shape[:2])
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        square = np.ascontiguousarray(image[top : top + side, left : left + side])
        if side != image_size:
            square = resize_image(square, image_size)
        yield simplejpeg.encode_jpeg(square, JPEG_QUALITY, "RGB", "444")
