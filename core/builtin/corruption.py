"""Random corruption of images: uneven light, an occluder, blur and noise, of a strength drawn for each image."""

from dataclasses import dataclass

import cv2
import numpy as np

__all__ = ["Corruption", "corrupt", "detector_scores"]

# At strength 1: change of brightness across the image (of 255), longer side of the occluder and deviation of the blur
# (both as a share of the crop), deviation of the noise (of 255)
GRADIENT = 35.0
OCCLUDER = (0.15, 0.35)
BLUR, NOISE = 0.7 / 40, 15.0


@dataclass(frozen=True)
class Corruption:
    """How strongly images are corrupted. Each image draws a strength for its distortion, contrast, light, blur and
    noise from the range `strength`; a share `occluded_rate` has an occluder, of a strength from the range `occlusion`.
    """

    strength: tuple[float, float] = (0.0, 1.0)
    occluded_rate: float = 0.2
    occlusion: tuple[float, float] = (0.0, 1.0)

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Strengths (6, B): of distortion, contrast, light, blur and noise, then of the occluder (0: there is none)."""
        strengths = _between(self.strength, rng.random((5, count)))
        occluded = rng.random(count) < self.occluded_rate
        occlusion = np.where(occluded, _between(self.occlusion, rng.random(count)), 0)
        return np.concatenate((strengths, occlusion[None]))


def detector_scores(strengths: np.ndarray) -> np.ndarray:
    """Made-up scores (B,) of a face detector for images corrupted by strengths (6, B): 1 for a clean image."""
    return 1 - 0.5 * strengths.sum(axis=0) / len(strengths)


def corrupt(
    images: np.ndarray,
    strengths: np.ndarray,
    poses: np.ndarray,
    size: int,
    occluder: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Corrupted images, uint8 (B, H, W, 3), from float32 `images` (B, H, W, 3) in units of 0 to 255, overwritten here.

    Only the last four of the strengths (6, B) are used: light, blur, noise, occluder. The occluders, with the colours
    `occluder` (B, 3), lie in crops of side `size`, which `poses` (B, 3, 3) place in the images.
    """
    count, height, width = images.shape[:3]
    light, blur, noise, occlusion = strengths[2:]
    angle = rng.uniform(0, 2 * np.pi, count)
    slope = np.stack([np.cos(angle), np.sin(angle)], 1) * (light * GRADIENT)[:, None]
    across, down = (np.linspace(-0.5, 0.5, side) for side in (width, height))
    shade = slope[:, :1, None] * across[None, None, :] + slope[:, 1:, None] * down[None, :, None]
    images += shade[..., None].astype(np.float32)

    corners = _occluder_corners(occlusion, size, rng)
    corners = corners @ poses[:, :2, :2].transpose(0, 2, 1) + poses[:, None, :2, 2]
    for i in range(count):
        if occlusion[i]:
            cv2.fillConvexPoly(images[i], np.rint(corners[i]).astype(np.int32), occluder[i].tolist())
        cv2.GaussianBlur(images[i], (0, 0), max(blur[i] * BLUR * size, 0.05), dst=images[i])
    grain = rng.standard_normal(images.shape, dtype=np.float32)
    images += grain * (noise * NOISE).astype(np.float32)[:, None, None, None]
    return np.clip(np.rint(images), 0, 255).astype(np.uint8)


def _between(limits: tuple[float, float], share: np.ndarray) -> np.ndarray:
    """Linear interpolation: the lower limit for a share of 0, the upper one for 1."""
    return limits[0] + (limits[1] - limits[0]) * share


def _occluder_corners(strength: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Corners (B, 4, 2) in the crop of a rectangle whose longer side grows with the strength."""
    long = size * _between(OCCLUDER, strength)
    sides = long[:, None] * np.where(rng.random((len(long), 1)) < 0.5, [[1.0, 0.6]], [[0.6, 1.0]])
    start = rng.random((len(long), 2)) * (size - sides)
    return start[:, None] + sides[:, None] * np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
