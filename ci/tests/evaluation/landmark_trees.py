"""A tiny test in the revisited benchmarks' layout, of coloured shapes, and GLDv2's lists of the same images."""

import json
import pickle
from pathlib import Path

import cv2
import numpy as np

COLOURS = ((230, 40, 40), (40, 190, 60), (40, 70, 230), (220, 200, 40))
"""One a landmark, RGB; also its query's."""
SIDE = 32


def draw_shape(landmark: int, rng: np.random.Generator, grey: bool) -> np.ndarray:
    """uint8 (32, 32, 3) RGB: a disc or a square of the landmark's colour on noise; much paler if `grey`."""
    image = rng.integers(90, 160, (SIDE, SIDE, 3)).astype(np.uint8)
    colour = np.array(COLOURS[landmark]) * (0.25 if grey else 1.0) + (96 if grey else 0)
    x, y, radius = (int(value) for value in (*rng.integers(14, 18, 2), rng.integers(9, 13)))
    if landmark % 2:
        cv2.circle(image, (x, y), radius, colour.tolist(), -1)
    else:
        cv2.rectangle(image, (x - radius, y - radius), (x + radius, y + radius), colour.tolist(), -1)
    return image


def write_image(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])


def write_revisited_tree(folder: Path, dataset: str = "roxford5k", distractors: int = 0, protocol: int = 2) -> Path:
    """Four queries; for each three easy, two hard (pale) and one junk image, and five images of nothing.

    A query is its landmark in a box of a larger picture that shows another landmark outside of the box.
    """
    rng = np.random.default_rng(0)
    truth, names = [], []
    for landmark in range(len(COLOURS)):
        rows = {"easy": [], "hard": [], "junk": []}
        for label in ("easy",) * 3 + ("hard",) * 2 + ("junk",):
            rows[label].append(len(names))
            names.append(f"database_{len(names):03d}")
            write_image(folder / "jpg" / f"{names[-1]}.jpg", draw_shape(landmark, rng, label == "hard"))
        canvas = np.tile(draw_shape((landmark + 1) % len(COLOURS), rng, False), (2, 3, 1))
        left, top = (int(value) for value in rng.integers(0, (3 * SIDE - SIDE, SIDE)))
        canvas[top : top + SIDE, left : left + SIDE] = draw_shape(landmark, rng, False)
        write_image(folder / "jpg" / f"query_{landmark}.jpg", canvas)
        truth.append({"bbx": [left + 0.3, top - 0.3, left + SIDE + 0.2, float(top + SIDE)], **rows})
    for _ in range(5):
        names.append(f"database_{len(names):03d}")
        noise = rng.integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8)
        write_image(folder / "jpg" / f"{names[-1]}.jpg", noise)
    content = {"imlist": names, "qimlist": [f"query_{i}" for i in range(len(COLOURS))], "gnd": truth}
    (folder / f"gnd_{dataset}.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    if distractors:
        listed = [f"ab/{i}.jpg" for i in range(distractors)]
        for i, name in enumerate(listed):
            write_image(folder / "more" / "jpg" / name, draw_shape(i % len(COLOURS), rng, False))
        (folder / "more" / "list.txt").write_text("\n".join(listed) + "\n")
    return folder


def write_gldv2_lists(tree: Path) -> Path:
    """The lists of GLDv2 over the images of a revisited tree, easy and hard ones positive."""
    content = pickle.loads((tree / "gnd_roxford5k.pkl").read_bytes())
    for name, key in (("index", "imlist"), ("queries", "qimlist")):
        (tree / f"gldv2_{name}.txt").write_text("".join(f"jpg/{image}.jpg\n" for image in content[key]))
    truth = {
        "usage": ["Public", "Private", "Private", "Public"],
        "positives": [one["easy"] + one["hard"] for one in content["gnd"]],
    }
    (tree / "gldv2_ground_truth.json").write_text(json.dumps(truth))
    return tree
