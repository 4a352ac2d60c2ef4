"""Lists of the Google Landmarks Dataset v2 from its csv files: training classes, queries, index and ground truth.

`train_clean.csv` has the columns landmark_id and images (ids separated by blanks), `train.csv` a line an image with id
and landmark_id (and url, but for Kaggle's), `index.csv` the column id, `retrieval_solution_v2.1.csv` id, images and
Usage (Public, Private or Ignored). The image abc….jpg of a part lies in `train/a/b/c`, `test/a/b/c` (queries) or
`index/a/b/c`.
"""

import json
import logging
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import polars as pl

from core.data.lists import MOST_NAMES, file_sizes
from core.errors import UserError
from core.files import first_line
from core.outputs import replaced_atomically

__all__ = ["PARTS", "ground_truth", "prepare_gldv2", "read_index", "read_solution", "read_train"]

logger = logging.getLogger(__name__)
PARTS = ("train", "test")
SCORED, IGNORED = ("Public", "Private"), "Ignored"
ID = r"^[0-9A-Za-z_-]{3,}$"


def prepare_gldv2(
    csv: Path, images: Path, out: Path, parts: tuple[str, ...] = PARTS, skip_missing: bool = False
) -> None:
    """Write the lists of the given parts to the folder `out`, from the csv files in `csv`.

    "train": `train_clean.txt`, lines `path label`, classes numbered in the order of their landmark_id, their images one
    after another; `train.txt` if there is no train_clean.csv, of all images of train.csv. "test":
    `gldv2_index.txt` and `gldv2_queries.txt`, a path a line, and `gldv2_ground_truth.json`: {"usage": Public or Private
    for each query, "positives": rows of the index for each query}, without the ignored queries. Paths are relative to
    `images`, where all files are looked up: missing ones are named and counted in a `UserError`, or left out with
    `skip_missing`. Damaged csv files are a `UserError` too. Nothing is written before everything is checked. Memory:
    about 300 bytes a training image.
    """
    if not out.is_dir():
        raise UserError(f"the output folder {out} does not exist: make it, or name another")
    source = _training_file(csv) if "train" in parts else None
    train = None if source is None else read_train(source)
    test = _read_test(csv) if "test" in parts else None
    outputs = {}
    if source is not None and train is not None:
        train = _with_paths(train, images, "train", skip_missing)
        outputs[f"{source.stem}.txt"] = _lines(train.select("path", "label"))
        logger.info("%s.txt: %d images of %d classes", source.stem, len(train), train["label"].n_unique())
    if test is not None:
        index = _with_paths(test[0], images, "index", skip_missing)
        solution = _with_paths(test[1], images, "test", skip_missing)
        outputs["gldv2_index.txt"] = _lines(index.select("path"))
        outputs["gldv2_queries.txt"] = _lines(solution.select("path"))
        outputs["gldv2_ground_truth.json"] = json.dumps(ground_truth(solution, index)) + "\n"
        logger.info("test: %d queries, %d images in the index", len(solution), len(index))
    with ExitStack() as stack:  # all of them appear, or none
        for name, text in outputs.items():
            temporary = stack.enter_context(replaced_atomically(out / name))
            temporary.write_text(text, encoding="utf-8", newline="\n")


def _read_test(csv: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    return read_index(csv / "index.csv"), read_solution(csv / "retrieval_solution_v2.1.csv")


def _lines(table: pl.DataFrame) -> str:
    return table.write_csv(include_header=False, separator=" ", quote_style="never")


def read_train(path: Path) -> pl.DataFrame:
    """Columns `id` and `label` of the training images: classes from 0 on by landmark_id, each's images in file order.

    `path` is a train_clean.csv, a line a class, or a train.csv, a line an image.
    """
    columns = _header(path)[0]
    if "images" not in columns and {"id", "landmark_id"} <= set(columns):
        table = _read(path, ("id", "landmark_id")).with_columns(pl.col("landmark_id").cast(pl.Int64, strict=False))
        _require(path, table["landmark_id"].is_not_null(), "landmark_id is not a whole number")
        _require(path, table["id"].str.contains(ID), "id is not an image id")
        _require(path, table["id"].is_first_distinct(), "this id occurs twice")
        table = table.sort("landmark_id", maintain_order=True)
        return table.select("id", label=pl.col("landmark_id").rank("dense") - 1)
    table = _read(path, ("landmark_id", "images"))
    table = table.with_columns(pl.col("landmark_id").cast(pl.Int64, strict=False), _ids("images"))
    _require(path, table["landmark_id"].is_not_null(), "landmark_id is not a whole number")
    _require(path, table["images"].list.len() > 0, "images is empty")
    _require(path, table["landmark_id"].is_first_distinct(), "this landmark_id occurs twice")
    _require_ids(path, table["images"])
    table = table.sort("landmark_id").with_row_index("label")
    return table.select(pl.col("images").alias("id"), "label").explode("id")


def _training_file(csv: Path) -> Path:
    """train_clean.csv, or train.csv where that one is missing."""
    clean, whole = csv / "train_clean.csv", csv / "train.csv"
    if clean.is_file() or not whole.is_file():
        return clean
    logger.info(
        "there is no %s: the list is made of all images of %s; GLDv2's is not cleaned, Kaggle's of 2020 and 2021 is",
        clean, whole,
    )  # fmt: skip
    return whole


def read_index(path: Path) -> pl.DataFrame:
    """Column `id` of the images in the index, in the file's order."""
    table = _read(path, ("id",))
    _require(path, table["id"].str.contains(ID), "id is not an image id")
    _require(path, table["id"].is_first_distinct(), "this id occurs twice")
    return table


def read_solution(path: Path) -> pl.DataFrame:
    """Columns `id`, `usage` and `images` (list of ids) of the queries that are scored, in the file's order."""
    table = _read(path, ("id", "images", "Usage")).with_columns(_ids("images"))
    _require(path, table["id"].str.contains(ID), "id is not an image id")
    _require(path, table["id"].is_first_distinct(), "this id occurs twice")
    _require(path, table["Usage"].is_in([*SCORED, IGNORED]), "Usage is not Public, Private or Ignored")
    _require_ids(path, table["images"])
    return table.filter(pl.col("Usage") != IGNORED).select("id", pl.col("Usage").alias("usage"), "images")


def ground_truth(solution: pl.DataFrame, index: pl.DataFrame) -> dict[str, list]:
    """`usage` and `positives` (ascending rows of the index) for each query; positives outside the index are dropped."""
    rows = index.select("id").with_row_index("row")
    named = solution.with_row_index("query").select("query", pl.col("images").alias("id")).explode("id").drop_nulls()
    found = named.join(rows, on="id")
    if len(found) < len(named):
        logger.info("%d of %d positives are not in the index and are dropped", len(named) - len(found), len(named))
    by_query = found.group_by("query").agg(pl.col("row").unique().sort())
    positives = solution.with_row_index("query").join(by_query, on="query", how="left", maintain_order="left")["row"]
    without = positives.null_count()
    if without:
        logger.info("%d of %d queries have no positives", without, len(solution))
    return {"usage": solution["usage"].to_list(), "positives": [rows or [] for rows in positives.to_list()]}


def _with_paths(table: pl.DataFrame, images: Path, part: str, skip_missing: bool) -> pl.DataFrame:
    """The rows whose files are there, with a column `path` from their `id`."""
    letters = [pl.col("id").str.slice(i, 1) for i in range(3)]
    table = table.with_columns(pl.format(part + "/{}/{}/{}/{}.jpg", *letters, "id").alias("path"))
    paths = table["path"].to_list()
    missing = file_sizes(lambda row: f"{images}/{paths[row]}", len(paths), f"looking for the files of {part}") < 0
    if not missing.any():
        return table
    rows = np.flatnonzero(missing)
    names = ", ".join(paths[row] for row in rows[:MOST_NAMES]) + (" and others" if len(rows) > MOST_NAMES else "")
    text = f"{len(rows)} of the {len(paths)} files of {part} are missing below {images}: {names}"
    if not skip_missing or len(rows) == len(paths):
        raise UserError(f"{text}; download them, or leave them out with --missing skip")
    logger.info("%s; they are left out", text)
    return table.filter(pl.Series(~missing))


def _read(path: Path, columns: tuple[str, ...]) -> pl.DataFrame:
    """The columns of a csv file with a header, as text without missing values."""
    separator = _header(path)[1]
    try:
        table = pl.read_csv(path, columns=list(columns), infer_schema=False, separator=separator)
    except pl.exceptions.PolarsError as error:
        reason = str(error).split("\n")[0][:200]
        raise UserError(f"{path} cannot be read ({reason}); expected the columns {', '.join(columns)}") from error
    if not len(table):
        raise UserError(f"{path} has no lines below its header")
    return table.select(columns).fill_null("")


def _header(path: Path) -> tuple[list[str], str]:
    """The names in the first line of a csv file, and what separates them: Excel writes semicolons in some countries."""
    line = first_line(path, "csv file of GLDv2").decode("utf-8-sig", errors="replace").rstrip("\r\n")
    separator = ";" if ";" in line and "," not in line else ","
    return [name.strip().strip('"') for name in line.split(separator)], separator


def _ids(column: str) -> pl.Expr:
    return pl.col(column).str.extract_all(r"\S+")


def _require(path: Path, valid: pl.Series, mistake: str) -> None:
    """`UserError` with the first line for which `valid` (N,) is not true."""
    if not valid.all():
        raise UserError(f"{path}, line {int((~valid).arg_true()[0]) + 2}: {mistake}")


def _require_ids(path: Path, images: pl.Series) -> None:
    valid = images.list.eval(pl.element().str.contains(ID)).list.all()
    _require(path, valid, "images is not a list of image ids separated by blanks")
