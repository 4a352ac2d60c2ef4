"""Text files beside a file of vectors: ids, classes and images, one a line.

UTF-8, or UTF-16 with a byte order mark; lines may end as Windows ends them. Memory: some 4 times the text.
"""

import os
from collections.abc import Callable
from pathlib import Path

import polars as pl

from core.data.foreign_lists import plain_text
from core.errors import UserError
from core.files import require_file

__all__ = ["located", "read_ids", "read_image_list", "read_images", "read_labels", "read_lines", "require_once"]


def read_ids(path: str | Path) -> pl.Series:
    """One id a line, any text; `UserError` with file and line for an empty line and an id that comes twice."""
    ids = read_lines(path, "list of ids")
    if (ids == "").any():
        raise UserError(f"{path}, line {_first(ids == '') + 1} is empty: each line is the id of a vector")
    require_once(ids, lambda row: f"{path}, line {row + 1}")
    return ids


def read_labels(path: str | Path) -> pl.Series:
    """One class a line, null for an empty line, whose entry has none."""
    labels = read_lines(path, "list of classes")
    return labels.set(labels == "", None)


def read_image_list(path: str | Path) -> pl.DataFrame:
    """A list of lines `path id` as the columns number (of the line), image, id; empty lines are left out.

    The path ends at the last tab or, in a line without a tab, at the last blank before the id, so that it may contain
    blanks itself. Relative paths are below the folder of the list. `UserError` with file and line for a line of another
    form, and an id that comes twice.
    """
    lines = read_lines(path, "list of images")
    line = pl.col("line")
    tabbed = line.str.contains("\t", literal=True)
    table = (
        lines.to_frame()
        .with_row_index("number", 1)
        .filter(line.str.contains(r"\S"))
        .with_columns(
            image=pl.when(tabbed).then(line.str.extract(r"^(.+)\t")).otherwise(line.str.extract(r"^(.+) ")),
            id=pl.when(tabbed).then(line.str.extract(r"\t([^\t]+)$")).otherwise(line.str.extract(r" ([^ ]+)$")),
        )
    )
    bad = table.filter(pl.col("id").is_null() | pl.col("image").is_null())
    if len(bad):
        raise UserError(f"{path}, line {bad['number'][0]}: {bad['line'][0][:100]!r} is not a path, a blank and an id")
    require_once(table["id"], lambda row: f"{path}, line {table['number'][row]}")
    images = located(table["image"].str.strip_chars_end(" "), Path(path).parent)
    return table.select("number", images.alias("image"), "id")


def read_images(path: str | Path, ids: pl.Series) -> pl.Series:
    """The image of each of `ids` (N,) by a list as `read_image_list` reads it, null for an id that is not in it.

    `UserError` also for an id that is not among `ids`.
    """
    table = read_image_list(path)
    unknown = table.filter(~pl.col("id").is_in(ids.implode()))
    if len(unknown):
        raise UserError(
            f"{path}, line {unknown['number'][0]}: there is no vector with the id {unknown['id'][0]!r}: correct it, or "
            "put a tab between path and id if the id contains blanks"
        )
    return ids.replace_strict(table["id"], table["image"], default=None)


def located(images: pl.Series, folder: Path) -> pl.Series:
    """Paths with relative ones below `folder`, absolute; addresses such as s3://... as they are."""
    start = os.path.join(os.path.abspath(folder), "")
    whole = images.str.starts_with("/") | images.str.contains("://", literal=True)
    return images.zip_with(whole.fill_null(True), start + images)


def require_once(ids: pl.Series, place_of: Callable[[int], str]) -> None:
    """`UserError` at the first id that has come before; `place_of` says in words where a row is."""
    if ids.n_unique() == len(ids):
        return
    row = _first(~ids.is_first_distinct())
    first = place_of(_first(ids == ids[row]))
    raise UserError(f"{place_of(row)}: the id {ids[row]!r} is that of {first} too: each has its own in a gallery")


def _first(mask: pl.Series) -> int:
    """The first row that is true."""
    return int(mask.arg_true()[0])


def read_lines(path: str | Path, what: str) -> pl.Series:
    """The lines of a text without their ends; `UserError` naming `what` if it is missing or of another encoding."""
    text = plain_text(require_file(path, what).read_bytes())
    try:
        decoded = text.decode()
    except UnicodeDecodeError as error:
        line = text[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line} is not UTF-8: write the {what} in UTF-8") from None
    lines = decoded.replace("\r\n", "\n").removesuffix("\n")
    return pl.Series("line", lines.split("\n") if decoded else [], dtype=pl.String)
