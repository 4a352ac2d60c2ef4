"""A data set as a folder: training records, an evaluation tree of other identities, and a description."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.builtin.ijb_tree import SubjectImages, write_ijb_tree
from core.builtin.roxford_tree import LandmarkImages, write_roxford_tree
from core.data.recordio import RecordWriter
from core.data.records import write_image_records
from core.errors import UserError
from core.json_files import read_json
from core.outputs import make_folder, replaced_atomically, require_replaceable, writing
from core.progress import track
from core.temporary_names import is_temporary

__all__ = ["DataSource", "check_replaceable", "write_dataset_folder"]

DESCRIPTION = "dataset.json"
MEMBERS = ("train.rec", "train.idx", "eval", DESCRIPTION)


@dataclass
class DataSource:
    """What a data set is made from.

    `labels` (N,) of the training images, sorted, 0 to C - 1 without gaps; `jpegs` yields the images in that order;
    `evaluation` are images of other identities than those in training, and `landmarks` those of a retrieval test, if
    there is one. `facts` go into the description, among them `source` and `credit`.
    """

    kind: str
    image_size: int
    labels: np.ndarray
    jpegs: Iterator[bytes]
    evaluation: SubjectImages
    num_pairs: int
    facts: dict[str, object]
    landmarks: LandmarkImages | None = None


def check_replaceable(out: Path, kind: str) -> None:
    """`UserError` unless `out` can be written, and does not exist, is empty, or has a data set of this kind alone.

    The data set's splits may be there too.
    """
    require_replaceable(out, folder=True)
    if not out.exists():
        return
    names = [name for name in os.listdir(out) if not is_temporary(name)]
    foreign = sorted(name for name in names if name not in MEMBERS and not name.startswith("train_part_"))
    if foreign:
        raise UserError(f"{out} has other files in it, such as {foreign[0]}; give another folder, or empty this one")
    if not names:
        return
    try:
        found = read_json(out / DESCRIPTION, "description of a data set").get("kind", "unknown")
    except UserError:
        found = "unknown"
    if found != kind:
        raise UserError(f"{out} is a data set of kind {found}, not {kind}; give another folder, or empty this one")


def write_dataset_folder(out: Path, source: DataSource, seed: int) -> dict[str, object]:
    """Write `out`/train.rec and .idx (InsightFace's layout, sorted by class), `out`/eval/IJBC, `out`/eval/roxford5k if
    the source has a retrieval test, and `out`/dataset.json.

    Written beside `out` and renamed at the end: `out` is complete or as it was before. Returns the description.
    """
    check_replaceable(out, source.kind)
    with writing(out.parent):
        make_folder(out.parent)
    num_images, num_classes = len(source.labels), int(source.labels[-1]) + 1
    with replaced_atomically(out) as folder:
        folder.mkdir()
        images = (((label, 0), jpeg) for label, jpeg in zip(source.labels.tolist(), source.jpegs))
        images = track(images, "Training images", num_images, "images")
        with RecordWriter(folder / "train") as writer:
            write_image_records(writer, num_images, num_classes, images)
        counts = {"eval/IJBC": write_ijb_tree(folder / "eval" / "IJBC", source.evaluation, seed, source.num_pairs)}
        if source.landmarks is not None:
            counts["eval/roxford5k"] = write_roxford_tree(folder / "eval" / "roxford5k", source.landmarks, seed)
        description = {
            "kind": source.kind,
            "seed": seed,
            "image_size": source.image_size,
            "train": {"images": num_images, "classes": num_classes},
            **counts,
            **source.facts,
        }
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return description
