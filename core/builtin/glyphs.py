"""The built-in glyph data: characters as identities, Matplotlib's own fonts as the conditions they were captured in.

An image is a corrupted picture of a character in one font. No image is stored in the package and nothing is downloaded.
"""

import itertools
import unicodedata
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from core.builtin.corruption import Corruption
from core.builtin.dataset_folder import DataSource
from core.builtin.glyph_images import CELL, capture, capture_scenes
from core.builtin.ijb_tree import SubjectImages, frames_to_media
from core.builtin.roxford_tree import GRADES, NOT_QUERIED, LandmarkImages
from core.errors import UserError

__all__ = ["distinct_characters", "glyph_source"]

FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
)
SOURCE = "characters of the DejaVu and STIX fonts that Matplotlib ships"
CREDIT = "DejaVu fonts (Bitstream Vera licence) and STIX fonts (STIX font licence), distributed with Matplotlib"
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
NUM_PAIRS = 400_000
NUM_QUERIES = 120
CORRUPTIONS = {
    "easy": Corruption((0.0, 0.6), 0.1),
    "hard": Corruption((0.6, 1.3), 0.4, (0.4, 1.4)),
    "junk": Corruption((1.0, 1.8), 1.0, (2.5, 3.4)),
}
"""Of the images of the retrieval database, by grade; the queries have the easy one."""
QUERIED_IMAGES = {"easy": 6, "hard": 6, "junk": 3}
OTHER_IMAGES = {"easy": 2, "hard": 2, "junk": 0}
"""Images of each grade in the database: of a character that is queried, and of any other one."""
SCENE_MEMBERS = 9


def glyph_source(seed: int, image_size: int, identities: int | None) -> DataSource:
    """The glyph data of a seed; `identities` characters (None: all, about 2,400), a fifth of them for the evaluation.

    Training has an image for each font that has the character, in an order of characters drawn from the seed.
    """
    if identities is not None and identities < MIN_IDENTITIES:
        raise UserError(f"--identities {identities}: give at least {MIN_IDENTITIES}")
    rng = np.random.default_rng([seed, 0])
    points, has = _characters()
    if identities is not None:
        candidates = np.sort(rng.permutation(len(points))[: CANDIDATES * identities])
        points, has = points[candidates], has[candidates]
    masks, has = _draw_masks(points, has)
    distinct = distinct_characters(masks, has)
    masks, has = masks[distinct], has[distinct]
    if identities is not None and identities > len(masks):
        raise UserError(f"--identities {identities}: the fonts give {len(masks)}; give that number or fewer")
    chosen = rng.permutation(len(masks))[:identities]
    num_test = round(TEST_SHARE * len(chosen))
    train, test = chosen[num_test:], chosen[:num_test]

    labels, fonts = np.nonzero(has[train])
    train_rng = np.random.default_rng([seed, 1])
    jpegs = (sample.jpeg for sample in capture(masks, train[labels], fonts, image_size, train_rng))

    order = _shuffled_fonts(has[test], rng)
    num_frames = TEST_FONTS // 2 * 3
    media = frames_to_media(np.full(num_test, num_frames))
    subjects = np.repeat(np.arange(num_test), num_frames)
    test_rng = np.random.default_rng([seed, 2])
    samples = capture(masks, test[subjects], order.ravel()[media], image_size, test_rng, loose=True)
    return DataSource(
        kind="glyphs",
        image_size=image_size,
        labels=labels,
        jpegs=jpegs,
        evaluation=SubjectImages(subjects, media, samples),
        num_pairs=NUM_PAIRS,
        landmarks=_landmark_images(masks, has, test, image_size, seed),
        facts={"source": SOURCE, "credit": CREDIT, "fonts": list(FONTS)},
    )


def _landmark_images(masks: np.ndarray, has: np.ndarray, test: np.ndarray, size: int, seed: int) -> LandmarkImages:
    """A retrieval test with the test identities (T,): up to half of them are queried, the others are distractors.

    A query is a scene in which other characters surround the queried one; the database has images of all test
    identities, in other fonts than that of the character in its query.
    """
    rng = np.random.default_rng([seed, 3])
    fonts = _shuffled_fonts(has[test], rng)
    num_queries = min(NUM_QUERIES, len(test) // 2)
    is_queried = np.arange(len(test)) < num_queries
    counts = np.concatenate([np.where(is_queried, QUERIED_IMAGES[grade], OTHER_IMAGES[grade]) for grade in GRADES])
    grades, identities = np.divmod(np.repeat(np.arange(len(counts)), counts), len(test))
    place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    database_fonts = fonts[identities, 1 + place % (TEST_FONTS - 1)]
    database = (
        capture(
            masks,
            test[identities[rows]],
            database_fonts[rows],
            size,
            np.random.default_rng([seed, 4, g]),
            CORRUPTIONS[grade],
        )
        for g, grade in enumerate(GRADES)
        for rows in [grades == g]
    )

    others = num_queries + rng.random((num_queries, len(test) - num_queries)).argsort(axis=1)
    others = others[:, np.arange(SCENE_MEMBERS - 1) % others.shape[1]]
    members = np.column_stack([np.arange(num_queries), others])
    scene_fonts = fonts[members, 0]
    return LandmarkImages(
        queries=capture_scenes(
            masks, test[members], scene_fonts, size, np.random.default_rng([seed, 5]), CORRUPTIONS["easy"]
        ),
        database=(sample.jpeg for sample in itertools.chain.from_iterable(database)),
        num_queries=num_queries,
        identities=np.where(identities < num_queries, identities, NOT_QUERIED),
        grades=grades,
    )


def _shuffled_fonts(has: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each character (T, fonts), TEST_FONTS of the fonts that have it in a random order: (T, TEST_FONTS)."""
    return np.argsort(np.where(has, rng.random(has.shape), 1), axis=1)[:, :TEST_FONTS]


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
    """Coverage masks uint8 (C, fonts, CELL, CELL) of the characters (C,), and which fonts have them (C, fonts).

    Centred, in the font's size, so that upper and lower case differ. Tiny characters are left out.
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


def distinct_characters(masks: np.ndarray, has: np.ndarray) -> np.ndarray:
    """Which characters (C,) to keep, so that no two look the same, as Latin A, Greek Alpha and Cyrillic A do.

    Of characters that coincide in at least half of their common fonts the first one stays. As evaluation adds the
    embedding of the mirror image, a character that coincides with the mirror image of another is removed too.
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
    return np.logical_not(np.triu(alike, 1).any(axis=0))
