"""The files of the revisited Oxford and Paris benchmarks: `gnd_<name>.pkl` and the images in `jpg/`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError
from core.evaluation.precision_recall import RetrievalResult
from core.evaluation.retrieval_images import RetrievalImages
from core.evaluation.revisited import evaluate_revisited, setup_truth
from core.files import require_file
from core.restricted_pickle import load_plain_pickle

__all__ = ["RevisitedTest", "read_revisited"]

LABELS = ("easy", "hard", "junk")


class RevisitedTest:
    """`queries` with their boxes, `database`, and `annotations`: of each query the rows easy, hard and junk."""

    depth: int | None = None
    """All of the database is ranked."""

    def __init__(self, task: str, queries: RetrievalImages, database: RetrievalImages, annotations: list[dict]):
        self.task, self.queries, self.database, self.annotations = task, queries, database, annotations

    def evaluate(self, rows: np.ndarray) -> RetrievalResult:
        """Metrics and curves of ranked rows (Q, K); rows beyond the database are distractors."""
        return evaluate_revisited(rows.T, self.annotations)

    def judged(self, query: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows that are positive for a query, and those that are junk, in the setup Medium."""
        truth = setup_truth(self.annotations[query], "medium")
        return truth["ok"], truth["junk"]


def read_revisited(data_path: str | Path, dataset: str) -> RevisitedTest:
    """The test `dataset` ("roxford5k" or "rparis6k") in `data_path`/`dataset`, or in `data_path` itself.

    The images lie in `jpg/` or `dataset`/jpg/ beside the pickle. `UserError` naming file and query for what is missing,
    no plain data, or not as the benchmark has it (indices outside the database, boxes without an area).
    """
    data_path = Path(data_path)
    if not data_path.is_dir():
        raise UserError(f"evaluation folder not found: {data_path}")
    file = f"gnd_{dataset}.pkl"
    folder = data_path if (data_path / file).is_file() else data_path / dataset
    path = require_file(folder / file, f"ground truth of {dataset}")
    image_folders = (folder / "jpg", folder / dataset / "jpg")
    image_folder = next((one for one in image_folders if one.is_dir()), None)
    if image_folder is None:
        raise UserError(f"folder of images not found: {image_folders[0]} (or {image_folders[1]})")
    content = load_plain_pickle(path)
    try:
        content = _as_text(content, {})
        names, query_names = (_names(content[key], key) for key in ("imlist", "qimlist"))
        boxes = np.array([one["bbx"] for one in content["gnd"]], dtype=np.float64).reshape(-1, 4)
        annotations = [{label: _indices(one[label]) for label in LABELS} for one in content["gnd"]]
    except (KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
        raise UserError(
            f"{path} is no ground truth of this benchmark ({error!r}): expected imlist, qimlist and gnd, with bbx, "
            "easy, hard and junk for each query"
        ) from error
    if not names or not query_names or len(query_names) != len(annotations):
        raise UserError(
            f"{path}: {len(names)} database images, {len(query_names)} queries and {len(annotations)} annotations do "
            "not fit together"
        )
    _check(path, query_names, len(names), boxes, annotations)
    queries, database = (
        RetrievalImages(image_folder, [f"{name}.jpg" for name in listed], path) for listed in (query_names, names)
    )
    return RevisitedTest(dataset, queries.cropped(boxes), database, annotations)


def _as_text(value: Any, known: dict[int, tuple[Any, Any]]) -> Any:
    """Containers with byte strings, of Python 2 or of NumPy, as text, and arrays of strings or objects as lists.

    `known` has each container so far, by its identity, and what was made of it: files can hold one in many places.
    """
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if not isinstance(value, Mapping | list | tuple | np.ndarray):
        return value
    if id(value) not in known:
        if isinstance(value, Mapping):
            text: Any = {_as_text(key, known): _as_text(item, known) for key, item in value.items()}
        elif not isinstance(value, np.ndarray):
            text = [_as_text(item, known) for item in value]
        else:
            text = _as_text(value.tolist(), known) if value.dtype.kind in "SUO" else value
        known[id(value)] = value, text
    return known[id(value)][1]


def _names(values: object, key: str) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(name, str) for name in values):
        raise ValueError(f"{key} is no list of names")
    return [str(name) for name in values]


def _indices(values: object) -> np.ndarray:
    if isinstance(values, list) and not all(isinstance(value, int | float | np.number) for value in values):
        raise ValueError("a list with other than indices")  # of long texts NumPy would make an array of their squares
    array = np.asarray(values)
    whole = array.astype(np.int64)
    if array.ndim > 1 or (whole != array).any():
        raise ValueError(f"{str(values)[:100]} is no list of indices")
    return whole.reshape(-1)


def _check(path: Path, queries: list[str], num_images: int, boxes: np.ndarray, annotations: list[dict]) -> None:
    for name, box, annotation in zip(queries, boxes, annotations):
        if not (np.isfinite(box).all() and (box[:2] < box[2:]).all()):
            raise UserError(f"{path}: the box {box.tolist()} of query {name} is not left, top, right, bottom")
        for label, rows in annotation.items():
            outside = rows[(rows < 0) | (rows >= num_images)]
            if len(outside):
                raise UserError(
                    f"{path}: {label} of query {name} has the index {outside[0]}, but the database has {num_images} "
                    "images (0 is the first): get the file again"
                )
