"""Splitting a training set (records or a list) into an old and a new side, by class or by image."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from core.data.lists import read_list, write_list
from core.data.records import RecordDataset, write_image_records
from core.errors import UserError
from core.progress import track

__all__ = ["class_split", "data_split", "split_list", "split_records"]


def class_split(labels: np.ndarray, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Old and new label of each image (two arrays (N,)), -1 where the image is not on that side.

    The first floor(ratio * C) of the C identities, in label order, go to the old side; both sides are numbered from 0.
    """
    present, rank = np.unique(labels, return_inverse=True)
    num_old = int(ratio * len(present) + 1e-9)
    return np.where(rank < num_old, rank, -1), np.where(rank < num_old, -1, rank - num_old)


def data_split(labels: np.ndarray, ratio: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Old and new label of each image (two arrays (N,)), -1 where the image is not on that side; labels stay.

    Of the k images of a class, max(1, round(ratio * k)) but never all go to the old side, drawn at random, and the
    others to the new side; a single image goes to both.
    """
    rank, counts = np.unique(labels, return_inverse=True, return_counts=True)[1:]
    num_old = np.minimum(np.maximum(1, np.rint(ratio * counts)), np.maximum(counts - 1, 1))
    order = np.lexsort((np.random.default_rng(seed).random(len(labels)), rank))
    place = np.empty(len(labels), np.int64)
    place[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    old = place < num_old[rank]
    new = ~old | (counts[rank] == 1)
    return np.where(old, labels, -1), np.where(new, labels, -1)


def split_records(prefix: str | Path, mode: str, ratio: float, seed: int = 0) -> dict[str, tuple[int, int]]:
    """Split `prefix`.rec by "class" or "data" into `prefix`_part_30_class and `prefix`_part_70_class (for ratio 0.3).

    Returns images and classes by output prefix. The outputs have InsightFace's header; payloads and further labels of
    a record stay as they are. Images are copied one by one; memory is about 60 bytes an image.
    """
    _require_options(ratio, seed)
    dataset = RecordDataset(prefix)
    labels = dataset.labels()
    sides = class_split(labels, ratio) if mode == "class" else data_split(labels, ratio, seed)
    _require_images(f"{prefix}.rec", ratio, sides)
    written = {}
    for share, side in zip((ratio, 1 - ratio), sides):
        rows = np.flatnonzero(side >= 0)
        num_classes = int(side.max()) + 1 if mode == "class" else dataset.num_classes
        output = f"{prefix}_part_{100 * share:g}_{mode}"
        images = track(_copies(dataset, rows, side[rows]), Path(output).name, len(rows), "images")
        write_image_records(output, len(rows), num_classes, images)
        written[output] = (len(rows), num_classes)
    return written


def split_list(path: str | Path, mode: str, ratio: float, seed: int = 0) -> dict[str, tuple[int, int]]:
    """Split the list X.txt by "class" or "data" into X_part_30_class.txt and X_part_70_class.txt (for ratio 0.3).

    For "class" the classes are shuffled by the seed and the first of them go to the old side. X_part_100_class.txt is
    then the whole list with the old classes numbered first, as on the old side. The new side is numbered from 0. For
    "data" labels stay, and the whole list is X.txt itself. Lines keep their order. Returns images and classes by file.
    Image files are not looked up. Memory: the list's text several times and some 60 bytes a line.
    """
    _require_options(ratio, seed)
    images = read_list(path)
    if mode == "class":
        present, rank = np.unique(images.labels, return_inverse=True)
        numbers = np.random.default_rng(seed).permutation(len(present))[rank]
        sides = class_split(numbers, ratio)
        parts = [*zip((ratio, 1 - ratio), sides), (1, numbers)]
    else:
        sides = data_split(images.labels, ratio, seed)
        parts = list(zip((ratio, 1 - ratio), sides))
    _require_images(str(path), ratio, sides)
    written = {}
    for share, side in parts:
        rows = np.flatnonzero(side >= 0)
        output = Path(path).with_name(f"{Path(path).stem}_part_{100 * share:g}_{mode}.txt")
        write_list(output, images, rows, side[rows])
        written[str(output)] = (len(rows), int(side.max()) + 1)
    return written


def _require_options(ratio: float, seed: int) -> None:
    if not 0 < ratio < 1:
        raise UserError(f"the ratio {ratio} is not between 0 and 1: give the share of the old side, such as 0.3")
    if len({f"{100 * share:g}" for share in (ratio, 1 - ratio, 1)}) < 3:
        raise UserError(f"with a ratio of {ratio} two of the files would have the same name; choose another ratio")
    if seed < 0:
        raise UserError(f"the seed {seed} is negative: give a whole number from 0 on")


def _require_images(source: str, ratio: float, sides: tuple[np.ndarray, np.ndarray]) -> None:
    if min(side.max() for side in sides) < 0:
        raise UserError(f"{source}: a ratio of {ratio:g} leaves one side without images; choose another ratio")


def _copies(dataset: RecordDataset, rows: np.ndarray, labels: np.ndarray) -> Iterator[tuple[tuple[float, ...], bytes]]:
    for row, label in zip(rows.tolist(), labels.tolist()):
        stored, payload = dataset.record(row)
        yield (label, *stored[1:]), payload
