"""An evaluation set in the layout of the revisited Oxford benchmark, made from any images.

`gnd_roxford5k.pkl`, a dict of `imlist` and `qimlist` (names without .jpg) and `gnd` (per query the box `bbx` and the
places in `imlist` that are `easy`, `hard` or `junk` for it), and all images as `jpg/NAME.jpg`.
"""

import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.progress import track

__all__ = ["GRADES", "NOT_QUERIED", "LandmarkImages", "write_roxford_tree"]

GRADES = ("easy", "hard", "junk")
NOT_QUERIED = -1


@dataclass
class LandmarkImages:
    """The images of a retrieval test with Q queries and a database of N images.

    `queries` yields JPEG bytes and the box (4,) of the queried object: left, top, right, bottom in pixels, 0 at the
    image's left and top edge. `database` yields JPEG bytes, in the order of `identities` (N,), integers: 0 to Q - 1
    is the query whose object the image shows, NOT_QUERIED none, and of `grades` (N,), integers: places in GRADES.
    """

    queries: Iterable[tuple[bytes, np.ndarray]]
    database: Iterable[bytes]
    num_queries: int
    identities: np.ndarray
    grades: np.ndarray


def write_roxford_tree(folder: Path, images: LandmarkImages, seed: int) -> dict[str, int]:
    """Write `folder`/gnd_roxford5k.pkl and `folder`/jpg; returns the counts of what was written.

    The database images are named in an order drawn from the seed, so that an image's place carries no information.
    The images are written one by one.
    """
    (folder / "jpg").mkdir(parents=True)
    num_images = len(images.identities)
    place = np.random.default_rng(seed).permutation(num_images)
    names = [f"database_{i:06d}" for i in range(num_images)]
    for i, jpeg in zip(place, track(images.database, "Retrieval images", num_images, "images")):
        (folder / "jpg" / f"{names[i]}.jpg").write_bytes(jpeg)
    query_names = [f"query_{i:06d}" for i in range(images.num_queries)]
    truth = []
    for query, (name, (jpeg, box)) in enumerate(zip(query_names, images.queries)):
        (folder / "jpg" / f"{name}.jpg").write_bytes(jpeg)
        shown = images.identities == query
        of_grade = {grade: np.sort(place[shown & (images.grades == g)]).tolist() for g, grade in enumerate(GRADES)}
        truth.append({"bbx": [float(edge) for edge in box], **of_grade})
    with open(folder / "gnd_roxford5k.pkl", "wb") as file:
        pickle.dump({"imlist": names, "qimlist": query_names, "gnd": truth}, file, protocol=2)
    return {
        "queries": images.num_queries,
        "database": num_images,
        **{grade: sum(len(one[grade]) for one in truth) for grade in GRADES},
    }
