"""Five-landmark alignment: the similarity transform that maps a face's landmarks to fixed points of a square crop."""

import cv2
import numpy as np

__all__ = ["REFERENCE_POINTS", "REFERENCE_SIZE", "similarity_transforms", "warp"]

REFERENCE_SIZE = 112
REFERENCE_POINTS = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
"""Eyes, nose and corners of the mouth (x, y) in a crop of 112 x 112 pixels: the ArcFace template of InsightFace."""


def similarity_transforms(landmarks: np.ndarray, image_size: int) -> np.ndarray:
    """Least-squares similarity transforms from landmarks to the reference points scaled by `image_size` / 112.

    `landmarks` (N, 5, 2) are pixels (x, y) of the images; the result (N, 2, 3), float64, maps them into the crop. In
    two dimensions Umeyama's optimum (PAMI 1991, without reflection) is linear least squares over the complex numbers:
    q = a p + b with a = sum conj(p') q' / sum |p'|^2 over the centred points p', q'. Rows are NaN or infinite where
    all five landmarks coincide.
    """
    points = np.asarray(landmarks, dtype=np.float64) @ np.array([1.0, 1.0j])
    targets = REFERENCE_POINTS @ np.array([1.0, 1.0j]) * (image_size / REFERENCE_SIZE)
    point_centres, target_centre = points.mean(axis=1), targets.mean()
    centred = points - point_centres[:, None]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        turn = centred.conj() @ (targets - target_centre) / np.square(np.abs(centred)).sum(axis=1)
        shift = target_centre - turn * point_centres
    return np.stack(
        [np.stack([turn.real, -turn.imag, shift.real], axis=1), np.stack([turn.imag, turn.real, shift.imag], axis=1)],
        axis=1,
    )


def warp(image: np.ndarray, transform: np.ndarray, image_size: int) -> np.ndarray:
    """The crop (`image_size`, `image_size`, 3) of an image (H, W, 3) under a transform (2, 3), bilinear, border 0."""
    return cv2.warpAffine(image, transform, (image_size, image_size), flags=cv2.INTER_LINEAR, borderValue=0.0)
