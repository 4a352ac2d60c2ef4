"""Splitting a training set (records or a list) into an old and a new side, by class or by image."""

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from core.data.lists import ImageList, read_list
from core.data.record_files import record_prefix
from core.data.recordio import RecordWriter
from core.data.records import RecordDataset, write_image_records
from core.data.released_split import first_images, numbered_by_shuffle, shuffled_images
from core.errors import UserError
from core.outputs import make_folder, replaced_atomically, require_writable
from core.progress import track
from core.room import require_room

__all__ = ["RULES", "class_split", "data_split", "split_list", "split_records"]

logger = logging.getLogger(__name__)
RULES = ("bctlab", "released")
"""Which images go to which side: as the functions here say, or as in `core.data.released_split`."""
Sides = tuple[np.ndarray, np.ndarray]
"""Old and new label of each image, int64 (N,) each, -1 where the image is not on that side."""


def class_split(labels: np.ndarray, ratio: float, rounded: bool = False) -> Sides:
    """The sides of a split by class: the first floor(ratio * C) of the C identities, in label order, are old.

    Both sides are numbered from 0. `rounded`: to the nearest number, of two the even one.
    """
    present, rank = np.unique(labels, return_inverse=True)
    num_old = round(ratio * len(present)) if rounded else int(ratio * len(present) + 1e-9)
    return np.where(rank < num_old, rank, -1), np.where(rank < num_old, -1, rank - num_old)


def data_split(labels: np.ndarray, ratio: float, seed: int) -> Sides:
    """The sides of a split by image; labels stay.

    Of the k images of a class, max(1, round(ratio * k)) but never all go to the old side, drawn at random, and the
    others to the new side; a single image goes to both.
    """
    rank, counts = np.unique(labels, return_inverse=True, return_counts=True)[1:]
    num_old = np.minimum(np.maximum(1, np.rint(ratio * counts)), np.maximum(counts - 1, 1))
    order = np.lexsort((np.random.default_rng(seed).random(len(labels)), rank))
    place = np.empty(len(labels), np.int64)
    place[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return _with_labels(labels, place < num_old[rank])


def split_records(
    rec: str | Path, mode: str, ratio: float, seed: int = 0, *, rule: str = "bctlab", out: str | Path | None = None
) -> dict[str, tuple[int, int]]:
    """Split the records X that `rec` names by "class" or "data" into X_part_30_class and X_part_70_class (ratio 0.3).

    Returns images and classes by output prefix. The outputs have InsightFace's header; payloads and further labels of
    a record stay as they are. They lie beside X, or in the folder `out`, which is made if missing. `rule`: of `RULES`.
    Images are copied one by one; memory is about 60 bytes an image.
    """
    _require_options(ratio, seed, rule)
    prefix = record_prefix(rec)
    dataset = RecordDataset(prefix)
    folder = _output_folder(prefix, out)
    labels = dataset.labels()
    if rule == "released" and (labels[1:] < labels[:-1]).any():
        logger.info("%s.rec is not sorted by class, as the release expects; its rule is applied to each class", prefix)
    if mode == "class":
        sides = class_split(labels, ratio, rounded=rule == "released")
    elif rule == "released":
        sides = _with_labels(labels, first_images(labels, ratio))
    else:
        sides = data_split(labels, ratio, seed)
    _require_images(f"{prefix}.rec", ratio, sides)
    outputs = [str(folder / f"{Path(prefix).name}_part_{100 * share:g}_{mode}") for share in (ratio, 1 - ratio)]
    require_room(outputs[0], os.path.getsize(f"{prefix}.rec"))
    make_folder(folder)
    written = {}
    with ExitStack() as stack:  # both parts appear, or none
        for output, side in zip(outputs, sides):
            rows = np.flatnonzero(side >= 0)
            num_classes = int(side.max()) + 1 if mode == "class" else dataset.num_classes
            images = track(_copies(dataset, rows, side[rows]), Path(output).name, len(rows), "images")
            writer = stack.enter_context(RecordWriter(output))
            write_image_records(writer, len(rows), num_classes, images)
            writer.flush()
            written[output] = (len(rows), num_classes)
    return written


def split_list(
    path: str | Path, mode: str, ratio: float, seed: int = 0, *, rule: str = "bctlab", out: str | Path | None = None
) -> dict[str, tuple[int, int]]:
    """Split the list X.txt by "class" or "data" into X_part_30_class.txt and X_part_70_class.txt (for ratio 0.3).

    For "class" the classes are shuffled by the seed and the first of them go to the old side. X_part_100_class.txt is
    then the whole list with the old classes numbered first, as on the old side. The new side is numbered from 0. For
    "data" labels stay, and the whole list is X.txt itself. Lines keep their order, but by the released rule, which
    writes class after class. The outputs lie beside X.txt, or in the folder `out`, which is made if missing.
    Returns images and classes by file. Image files are not looked up. Memory: the list's text several times and some 60
    bytes a line.
    """
    _require_options(ratio, seed, rule)
    images = read_list(path)
    folder = _output_folder(path, out)
    order = np.argsort(images.labels, kind="stable") if rule == "released" else np.arange(len(images))
    whole = []
    if mode == "class":
        sides, numbers = _list_class_split(images.labels, ratio, seed, rule)
        whole = [(1, numbers)]
    elif rule == "released":
        sides = _with_labels(images.labels, shuffled_images(images.labels, ratio))
    else:
        sides = data_split(images.labels, ratio, seed)
    _require_images(str(path), ratio, sides)
    make_folder(folder)
    written = {}
    with ExitStack() as stack:  # all parts appear, or none
        for share, side in [*zip((ratio, 1 - ratio), sides), *whole]:
            rows = order[side[order] >= 0]
            output = folder / f"{Path(path).stem}_part_{100 * share:g}_{mode}.txt"
            part = ImageList(images.paths.gather(rows), side[rows])
            stack.enter_context(replaced_atomically(output)).write_bytes(part.text())
            written[str(output)] = (len(rows), int(side.max()) + 1)
    if folder != Path(path).parent:
        logger.info("paths still start from the folder of %s: train with image_root=%s", path, Path(path).parent)
    return written


def _list_class_split(labels: np.ndarray, ratio: float, seed: int, rule: str) -> tuple[Sides, np.ndarray]:
    """The sides, and the labels (N,) of the whole list, the old classes first."""
    if rule == "released":
        numbers, num_old = numbered_by_shuffle(labels, ratio)
        return (np.where(numbers < num_old, numbers, -1), np.where(numbers < num_old, -1, numbers - num_old)), numbers
    present, rank = np.unique(labels, return_inverse=True)
    numbers = np.random.default_rng(seed).permutation(len(present))[rank]
    return class_split(numbers, ratio), numbers


def _with_labels(labels: np.ndarray, old: np.ndarray) -> Sides:
    """Both sides with the labels (N,) that the images have, from those that are old, bool (N,)."""
    rank, counts = np.unique(labels, return_inverse=True, return_counts=True)[1:]
    return np.where(old, labels, -1), np.where(~old | (counts[rank] == 1), labels, -1)


def _output_folder(source: str | Path, out: str | Path | None) -> Path:
    """Where the parts are written; `UserError` now if that is impossible."""
    folder = Path(source).parent if out is None else Path(out)
    try:
        require_writable(folder)
    except UserError as error:
        raise UserError(f"{error} (--out)") from error
    return folder


def _require_options(ratio: float, seed: int, rule: str) -> None:
    if not 0 < ratio < 1:
        raise UserError(f"the ratio {ratio} is not between 0 and 1: give the share of the old side, such as 0.3")
    if len({f"{100 * share:g}" for share in (ratio, 1 - ratio, 1)}) < 3:
        raise UserError(f"with a ratio of {ratio} two of the files would have the same name; choose another ratio")
    if seed < 0:
        raise UserError(f"the seed {seed} is negative: give a whole number from 0 on")
    if rule == "released" and seed:
        raise UserError(f"the seed {seed} has no effect on the released rule, which has its own: leave it out")


def _require_images(source: str, ratio: float, sides: Sides) -> None:
    if min(side.max() for side in sides) < 0:
        raise UserError(f"{source}: a ratio of {ratio:g} leaves one side without images; choose another ratio")


def _copies(dataset: RecordDataset, rows: np.ndarray, labels: np.ndarray) -> Iterator[tuple[tuple[float, ...], bytes]]:
    for row, label in zip(rows.tolist(), labels.tolist()):
        stored, payload = dataset.record(row)
        yield (label, *stored[1:]), payload
