"""The built-in glyph data: characters as identities, Matplotlib's own fonts as the conditions they were captured in.

An image is a character in one font under nuisance: affine distortion, colours of varying contrast and sign, uneven
light, an occluder, blur and noise. No image is stored in the package and nothing is downloaded.
"""

import unicodedata
from collections.abc import Iterator
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import simplejpeg
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from core.data.dataset_folder import DataSource
from core.data.ijb_tree import Sample, TreePeople, frames_to_media
from core.errors import UserError
from core.evaluation.alignment import REFERENCE_POINTS, REFERENCE_SIZE

__all__ = ["glyph_source"]

FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
)
SOURCE = "characters of the DejaVu and STIX fonts that Matplotlib ships"
CREDIT = "DejaVu fonts (Bitstream Vera licence) and STIX fonts (STIX font licence), distributed with Matplotlib"
CELL = 64
FONT_PIXELS = 50
CATEGORIES = "LNPS"
BRAILLE = range(0x2800, 0x2900)
MIN_FONTS = 8
CANDIDATES = 3
MIN_EXTENT = 20
SIGNATURE = 16
COINCIDENCE, COINCIDING_FONTS = 0.99, 0.5
TEST_SHARE, MIN_IDENTITIES = 0.2, 20
TEST_FONTS = 8
CANVAS = 2
NUM_PAIRS = 400_000
BATCH = 256
JPEG_QUALITY = 90

# Nuisance at its strongest; an image gets a random part of each
ROTATION, SHEAR, LOG_SCALE, SHIFT = np.deg2rad(10), 0.12, 0.12, 0.05
CONTRAST, INVERTED_RATE, TINT, GRADIENT = (110.0, 200.0), 0.1, 25.0, 35.0
OCCLUDED_RATE, OCCLUDER = 0.2, (0.15, 0.35)
BLUR, NOISE = 0.7 / 40, 15.0
POSE_ROTATION, POSE_SCALE, POSE_SHIFT = np.deg2rad(25), (1.0, 1.4), 0.08


def glyph_source(seed: int, image_size: int, identities: int | None) -> DataSource:
    """The glyph data of a seed; `identities` characters (None: all, about 2,400), a fifth of them for the evaluation.

    Training has an image for each font that has the character, in an order of characters drawn from the seed.
    """
    rng = np.random.default_rng([seed, 0])
    points, has = _characters()
    if identities is not None:
        candidates = np.sort(rng.permutation(len(points))[: CANDIDATES * identities])
        points, has = points[candidates], has[candidates]
    masks, has = _draw_masks(points, has)
    distinct = _distinct(masks, has)
    masks, has = masks[distinct], has[distinct]
    if identities is not None and not MIN_IDENTITIES <= identities <= len(masks):
        raise UserError(f"--identities {identities}: the fonts give {MIN_IDENTITIES} to {len(masks)} identities")
    chosen = rng.permutation(len(masks))[:identities]
    num_test = round(TEST_SHARE * len(chosen))
    train, test = chosen[num_test:], chosen[:num_test]

    labels, fonts = np.nonzero(has[train])
    train_rng = np.random.default_rng([seed, 1])
    jpegs = (sample.jpeg for sample in _capture(masks, train[labels], fonts, image_size, False, train_rng))

    order = np.argsort(np.where(has[test], rng.random((num_test, len(FONTS))), 1), axis=1)[:, :TEST_FONTS]
    num_frames = TEST_FONTS // 2 * 3
    media = frames_to_media(np.full(num_test, num_frames))
    subjects = np.repeat(np.arange(num_test), num_frames)
    samples = _capture(masks, test[subjects], order.ravel()[media], image_size, True, np.random.default_rng([seed, 2]))
    return DataSource(
        kind="glyphs",
        image_size=image_size,
        labels=labels,
        jpegs=jpegs,
        people=TreePeople(subjects, media, samples),
        num_pairs=NUM_PAIRS,
        facts={"source": SOURCE, "credit": CREDIT, "fonts": list(FONTS)},
    )


def _font_path(name: str) -> Path:
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"


def _characters() -> tuple[np.ndarray, np.ndarray]:
    """Code points (C,) of the letters, numbers, punctuation and symbols in enough fonts; which fonts, bool (C, fonts).

    Braille is left out: its patterns differ from each other by shifts and reflections.
    """
    in_fonts = [set(FT2Font(str(_font_path(name))).get_charmap()) for name in FONTS]
    points = sorted(set().union(*in_fonts))
    points = np.array([c for c in points if unicodedata.category(chr(c))[0] in CATEGORIES and c not in BRAILLE])
    has = np.array([np.isin(points, list(in_font)) for in_font in in_fonts]).T
    enough = has.sum(axis=1) >= MIN_FONTS
    return points[enough], has[enough]


def _draw_masks(points: np.ndarray, has: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coverage masks uint8 (C, fonts, CELL, CELL) of the characters (C,), and in which fonts (C, fonts) they are there.

    Centred, in the font's size, so that case tells. Tiny characters are left out.
    """
    masks = np.zeros((len(points), len(FONTS), CELL, CELL), np.uint8)
    for f, name in enumerate(FONTS):
        font = ImageFont.truetype(str(_font_path(name)), FONT_PIXELS, layout_engine=ImageFont.Layout.BASIC)
        for c in np.flatnonzero(has[:, f]):
            left, top, right, bottom = font.getbbox(chr(points[c]), anchor="ls")
            start = (round((CELL - left - right) / 2), round((CELL - top - bottom) / 2))
            cell = Image.new("L", (CELL, CELL))
            ImageDraw.Draw(cell).text(start, chr(points[c]), fill=255, font=font, anchor="ls")
            masks[c, f] = np.asarray(cell)
    rows, columns = (masks.max(axis=axis) > 127 for axis in (3, 2))
    has = has & (np.maximum(rows.sum(axis=2), columns.sum(axis=2)) >= MIN_EXTENT)
    large = has.sum(axis=1) >= MIN_FONTS
    return masks[large], has[large]


def _distinct(masks: np.ndarray, has: np.ndarray) -> np.ndarray:
    """Which characters (C,) to keep, so that no two look the same, as Latin A, Greek Alpha and Cyrillic A do.

    Of characters that coincide in at least half of their common fonts the first one stays. As evaluation adds the
    embedding of the mirror image, a character that coincides with another one's mirror image goes too.
    """
    num = len(masks)
    common, same, mirrored = (np.zeros((num, num), np.int8) for _ in range(3))
    for f in range(masks.shape[1]):
        there = np.flatnonzero(has[:, f])
        step = CELL // SIGNATURE
        small = masks[there, f].reshape(-1, SIGNATURE, step, SIGNATURE, step).mean(axis=(2, 4), dtype=np.float32)
        small /= np.linalg.norm(small, axis=(1, 2), keepdims=True)
        flat, flipped = small.reshape(len(there), -1), small[:, :, ::-1].reshape(len(there), -1)
        pairs = np.ix_(there, there)
        common[pairs] += 1
        same[pairs] += flat @ flat.T > COINCIDENCE
        mirrored[pairs] += flat @ flipped.T > COINCIDENCE
    alike = np.maximum(same, mirrored) >= np.maximum(1, COINCIDING_FONTS * common)
    return ~np.triu(alike, 1).any(axis=0)


def _capture(
    masks: np.ndarray, characters: np.ndarray, fonts: np.ndarray, size: int, loose: bool, rng: np.random.Generator
) -> Iterator[Sample]:
    """Images of the given characters in the given fonts (N,), as crops of side `size` or as loose crops."""
    for start in range(0, len(characters), BATCH):
        batch = masks[characters[start : start + BATCH], fonts[start : start + BATCH]]
        poses = _draw_poses(len(batch), size, rng) if loose else np.broadcast_to(np.eye(3), (len(batch), 3, 3))
        images, scores = _disturb(batch, poses, size, size * CANVAS if loose else size, rng)
        points = np.append(REFERENCE_POINTS * (size / REFERENCE_SIZE), np.ones((5, 1)), axis=1)
        landmarks = points @ poses[:, :2].transpose(0, 2, 1)
        for image, landmark, score in zip(images, landmarks, scores):
            jpeg = simplejpeg.encode_jpeg(image, JPEG_QUALITY, "RGB", "420")
            yield Sample(jpeg, landmark, float(score))


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


def _disturb(
    masks: np.ndarray, poses: np.ndarray, size: int, side: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (B, side, side, 3) of masks (B, CELL, CELL) under random nuisance, and scores (B,) in [0.5, 1].

    The nuisance is drawn in the crop's frame, which `poses` then place in the image. The score falls with its strength.
    """
    count = len(masks)
    geometry, contrast, light, blur, noise = strengths = rng.random((5, count))
    occlusion = np.where(rng.random(count) < OCCLUDED_RATE, rng.random(count), 0)
    into_image = poses @ _distortions(geometry, size, rng)
    coverage = np.stack(
        [cv2.warpAffine(mask, into[:2], (side, side), flags=cv2.INTER_LINEAR) for mask, into in zip(masks, into_image)]
    ).astype(np.float32)[..., None] / np.float32(255)

    gap = CONTRAST[1] + (CONTRAST[0] - CONTRAST[1]) * contrast
    middle = rng.uniform(gap / 2 + 10, 245 - gap / 2)
    sign = np.where(rng.random(count) < INVERTED_RATE, 1, -1)
    ink, ground, occluder = (
        (grey[:, None] + rng.uniform(-TINT, TINT, (count, 3))).astype(np.float32)
        for grey in (middle + sign * gap / 2, middle - sign * gap / 2, rng.uniform(0, 255, count))
    )
    angle = rng.uniform(0, 2 * np.pi, count)
    slope = np.stack([np.cos(angle), np.sin(angle)], 1) * (light * GRADIENT)[:, None]
    ramp = np.linspace(-0.5, 0.5, side)
    shade = slope[:, :1, None] * ramp[None, None, :] + slope[:, 1:, None] * ramp[None, :, None]
    images = ground[:, None, None] + coverage * (ink - ground)[:, None, None] + shade[..., None].astype(np.float32)

    corners = _occluder_corners(occlusion, size, rng)
    corners = corners @ poses[:, :2, :2].transpose(0, 2, 1) + poses[:, None, :2, 2]
    for i in range(count):
        if occlusion[i]:
            cv2.fillConvexPoly(images[i], np.rint(corners[i]).astype(np.int32), occluder[i].tolist())
        cv2.GaussianBlur(images[i], (0, 0), max(blur[i] * BLUR * size, 0.05), dst=images[i])
    grain = rng.standard_normal(images.shape, dtype=np.float32)
    images += grain * (noise * NOISE).astype(np.float32)[:, None, None, None]
    scores = 1 - 0.5 * (strengths.sum(axis=0) + occlusion) / (len(strengths) + 1)
    return np.clip(np.rint(images), 0, 255).astype(np.uint8), scores


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


def _occluder_corners(strength: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Corners (B, 4, 2) in the crop of a rectangle whose longer side grows with the strength."""
    long = size * (OCCLUDER[0] + (OCCLUDER[1] - OCCLUDER[0]) * strength)
    sides = long[:, None] * np.where(rng.random((len(long), 1)) < 0.5, [[1.0, 0.6]], [[0.6, 1.0]])
    start = rng.random((len(long), 2)) * (size - sides)
    return start[:, None] + sides[:, None] * np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
