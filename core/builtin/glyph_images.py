"""Images of characters: affine distortion, colours of varying contrast and sign, and `core.builtin.corruption`."""

from collections.abc import Iterator

import cv2
import numpy as np
import simplejpeg

from core.builtin.corruption import Corruption, corrupt, detector_scores
from core.builtin.ijb_tree import Sample
from core.images.alignment import REFERENCE_POINTS, REFERENCE_SIZE

__all__ = ["CELL", "USUAL", "capture", "capture_scenes"]

CELL = 64
CANVAS = 2
SCENE_COLUMNS, SCENE_WIDTH = 3, 4
BATCH, SCENE_BATCH = 256, 16
JPEG_QUALITY = 90

# At strength 1
ROTATION, SHEAR, LOG_SCALE, SHIFT = np.deg2rad(10), 0.12, 0.12, 0.05
CONTRAST, INVERTED_RATE, TINT = (110.0, 200.0), 0.1, 25.0
POSE_ROTATION, POSE_SCALE, POSE_SHIFT = np.deg2rad(25), (1.0, 1.4), 0.08

USUAL = Corruption()


def capture(
    masks: np.ndarray,
    characters: np.ndarray,
    fonts: np.ndarray,
    size: int,
    rng: np.random.Generator,
    corruption: Corruption = USUAL,
    loose: bool = False,
) -> Iterator[Sample]:
    """Images of the given characters in the given fonts (N,), as crops of side `size` or as loose crops twice as wide.

    `masks` are coverages, uint8 (C, fonts, CELL, CELL). Memory: 256 images.
    """
    for start in range(0, len(characters), BATCH):
        batch = masks[characters[start : start + BATCH], fonts[start : start + BATCH]]
        poses = _draw_poses(len(batch), size, rng) if loose else np.broadcast_to(np.eye(3), (len(batch), 3, 3))
        strengths = corruption.draw(len(batch), rng)
        coverage = _cover(batch, strengths[0], poses, size, size * CANVAS if loose else size, rng)
        images = _paint(coverage, strengths, poses, size, rng)
        points = np.append(REFERENCE_POINTS * (size / REFERENCE_SIZE), np.ones((5, 1)), axis=1)
        landmarks = points @ poses[:, :2].transpose(0, 2, 1)
        for image, landmark, score in zip(images, landmarks, detector_scores(strengths)):
            yield Sample(_encode(image), landmark, float(score))


def capture_scenes(
    masks: np.ndarray,
    characters: np.ndarray,
    fonts: np.ndarray,
    size: int,
    rng: np.random.Generator,
    corruption: Corruption,
) -> Iterator[tuple[bytes, np.ndarray]]:
    """Scenes of nine characters each in the given fonts, both (N, 9), and the box (4,) of the first one in each.

    The characters lie in a square grid in a random order, on one ground and in one ink, each with a distortion of its
    own; the corruption is drawn for the scene. A scene is SCENE_WIDTH * `size` wide. Boxes are left, top, right, bottom
    in pixels, 0 at the image's edge: the frame of a crop as `capture` makes it. Memory: 16 scenes.
    """
    side = SCENE_WIDTH * size
    pitch = side / SCENE_COLUMNS
    for start in range(0, len(characters), SCENE_BATCH):
        batch = masks[characters[start : start + SCENE_BATCH], fonts[start : start + SCENE_BATCH]]
        count, num_members = batch.shape[:2]
        cells = rng.permuted(np.tile(np.arange(num_members), (count, 1)), axis=1)
        corners = pitch * np.stack([cells % SCENE_COLUMNS, cells // SCENE_COLUMNS], axis=-1)
        scales = rng.uniform(1, pitch / size, cells.shape)
        corners += rng.random(corners.shape) * (pitch - scales * size)[..., None]
        poses = np.tile(np.eye(3), (count, num_members, 1, 1))
        poses[..., :2, :2] *= scales[..., None, None]
        poses[..., :2, 2] = corners + (scales[..., None] - 1) / 2  # corners are of pixels, poses of their centres
        strengths = corruption.draw(count, rng)
        distortion = rng.random((num_members, count))
        distortion[0] = strengths[0]
        coverage = np.max(
            [_cover(batch[:, m], distortion[m], poses[:, m], size, side, rng) for m in range(num_members)], axis=0
        )
        images = _paint(coverage, strengths, poses[:, 0], size, rng)
        boxes = np.concatenate([corners[:, 0], corners[:, 0] + scales[:, :1] * size], axis=1)
        for image, box in zip(images, boxes):
            yield _encode(image), box


def _encode(image: np.ndarray) -> bytes:
    return simplejpeg.encode_jpeg(image, JPEG_QUALITY, "RGB", "420")


def _draw_poses(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Random similarities (B, 3, 3) from the crop's pixels to those of a loose crop CANVAS times as wide."""
    turn = rng.uniform(-ROTATION, ROTATION, count) * (POSE_ROTATION / ROTATION)
    scale = rng.uniform(*POSE_SCALE, count)
    centre = (CANVAS * size - 1) / 2 + size * rng.uniform(-POSE_SHIFT, POSE_SHIFT, (count, 2))
    cos, sin = scale * np.cos(turn), scale * np.sin(turn)
    linear = np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)], 1)
    return _about(linear, np.full(2, (size - 1) / 2), centre)


def _about(linear: np.ndarray, origin: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Affine maps (B, 3, 3) with the given linear parts (B, 2, 2) that take `origin` to `target` (B, 2)."""
    maps = np.tile(np.eye(3), (len(linear), 1, 1))
    maps[:, :2, :2] = linear
    maps[:, :2, 2] = target - linear @ origin
    return maps


def _cover(
    masks: np.ndarray, strength: np.ndarray, poses: np.ndarray, size: int, side: int, rng: np.random.Generator
) -> np.ndarray:
    """Coverage float32 (B, side, side) in [0, 1] of masks (B, CELL, CELL), distorted at random within a crop of side
    `size`, which `poses` (B, 3, 3) then place in the image.
    """
    into_image = poses @ _distortions(strength, size, rng)
    return np.stack(
        [cv2.warpAffine(mask, into[:2], (side, side), flags=cv2.INTER_LINEAR) for mask, into in zip(masks, into_image)]
    ).astype(np.float32) / np.float32(255)


def _paint(
    coverage: np.ndarray, strengths: np.ndarray, poses: np.ndarray, size: int, rng: np.random.Generator
) -> np.ndarray:
    """Images uint8 (B, side, side, 3) of coverages (B, side, side), under corruptions of strengths (6, B).

    The occluder is drawn in the frame of a crop of side `size`, which `poses` (B, 3, 3) then place in the image.
    """
    contrast = strengths[1]
    count = len(coverage)
    gap = CONTRAST[1] + (CONTRAST[0] - CONTRAST[1]) * contrast
    middle = rng.uniform(gap / 2 + 10, 245 - gap / 2)
    sign = np.where(rng.random(count) < INVERTED_RATE, 1, -1)
    ink, ground, occluder = (
        (grey[:, None] + rng.uniform(-TINT, TINT, (count, 3))).astype(np.float32)
        for grey in (middle + sign * gap / 2, middle - sign * gap / 2, rng.uniform(0, 255, count))
    )
    images = ground[:, None, None] + coverage[..., None] * (ink - ground)[:, None, None]
    return corrupt(images, strengths, poses, size, occluder, rng)


def _distortions(strength: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Random affine maps (B, 3, 3) from the mask's pixels to those of the crop."""
    turn, slant, wide, high, right, down = rng.uniform(-1, 1, (6, len(strength))) * strength
    turn, slant = ROTATION * turn, SHEAR * slant
    wide, high = (size / CELL * np.exp(LOG_SCALE * log) for log in (wide, high))
    cos, sin = np.cos(turn), np.sin(turn)
    linear = np.stack([np.stack([cos * wide, (slant * cos - sin) * high], 1),
                       np.stack([sin * wide, (slant * sin + cos) * high], 1)], 1)  # fmt: skip
    target = (size - 1) / 2 + SHIFT * size * np.stack([right, down], 1)
    return _about(linear, np.full(2, (CELL - 1) / 2), target)
