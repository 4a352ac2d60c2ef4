"""Image lists of other tools: im2rec's and InsightFace's `.lst`, tables with a header (csv, tsv), text from Windows.

im2rec's lines are `index<TAB>label[<TAB>label ...]<TAB>path`, InsightFace's `aligned<TAB>path<TAB>label[<TAB>box and
landmarks]`. A table's first line names its columns; the separator is a comma, a semicolon, a tab or a blank.
"""

import codecs
import csv
import logging
import re
from contextlib import suppress
from pathlib import Path

import polars as pl

from core.errors import UserError

__all__ = ["plain_text", "read_foreign_list"]

logger = logging.getLogger(__name__)
PATH_COLUMNS = (
    ("path", "filepath", "imagepath", "imgpath", "impath", "file", "filename", "image", "img", "imagename", "imgname",
     "imagefile", "imgfile"),
    ("imageid", "imgid", "id"),
)  # fmt: skip
LABEL_COLUMNS = (
    ("label", "labelid", "class", "classid", "identity", "identityid", "individual", "individualid", "person",
     "personid", "pid", "subject", "subjectid", "landmark", "landmarkid", "category", "categoryid", "target"),
    ("id",),
)  # fmt: skip
"""In lower case, without blanks, `_` and `-`. A later group counts where none of an earlier one is there."""
SPLIT_COLUMNS = ("split", "subset", "set", "partition")
GLDV2_COLUMNS = ({"id", "landmarkid"}, {"id", "url", "landmarkid"}, {"images", "landmarkid"})
SEPARATORS = (",", ";", "\t", " ")
BLANKS = " \t\r"
FIRST_LINE = 1 << 16
"""Bytes among which it is sought."""
CLASS = r"^[0-9]{1,9}(\.0*)?$"
"""A label: im2rec writes 3.000000, and so does pandas after a missing value."""
LONGEST_NUMBER = 100
"""Characters: Python would look for a number in a longer text for minutes."""
NUMBER = r"^[+-]?[0-9]*\.?[0-9]+([eE][+-]?[0-9]+)?\.?$"
PLAIN = "write a text file of lines `path label`"


def plain_text(text: bytes) -> bytes:
    """The text without a byte order mark; of UTF-16, which Windows writes too, as UTF-8."""
    if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and b"\0" in text:
        return text.decode("utf-16", errors="replace").encode()
    return text.removeprefix(codecs.BOM_UTF8)


def read_foreign_list(text: bytes, path: str | Path) -> pl.DataFrame | None:
    """Columns `path` (each byte a character, Latin-1) and `label` (Int64) of a list in another form than `path label`.

    None if the first line is not that of such a list. A table's whole numbers are the labels; names are numbered in
    sorted order. A log line says what was recognised. `UserError` with file and line where a line does not fit
    the first, where the columns of paths and labels are not clear, and for faces that are not aligned.
    """
    head = re.search(rb"\S[^\r\n]*", text[:FIRST_LINE])
    if head is None:
        return None
    first = head.group().decode("latin-1").strip()
    fields = first.split("\t")
    numeric = [len(field) < LONGEST_NUMBER and re.match(NUMBER, field.strip()) is not None for field in fields]
    if len(fields) >= 3 and numeric[0] and not all(numeric):
        if all(numeric[:-1]):
            return _im2rec(text, path, len(fields))
        if not numeric[1] and all(numeric[2:]):
            return _insightface(text, path)
    if re.search(r"\s[0-9]+$", first):
        return None
    return _table(text, head.end(), path, first)


def _im2rec(text: bytes, path: str | Path, num_fields: int) -> pl.DataFrame:
    table = _read(text, path, "\t", num_fields, quoted=False)
    logger.info("%s is an im2rec list: index, label, path", path)
    _require(table, pl.col("0").str.contains(r"^[0-9]+$"), path, "does not begin with an index")
    if num_fields > 3:
        logger.info("%s: of the %d labels of a line the first is the class", path, num_fields - 2)
    return _with_classes(table.select("line", path=str(num_fields - 1), label="1"), path)


def _insightface(text: bytes, path: str | Path) -> pl.DataFrame:
    table = _read(text, path, "\t", 3, quoted=False, ragged=True)
    _require(
        table, pl.col("0").is_in(["0", "1"]), path,
        f"does not begin with 0 or 1, as in InsightFace's lists (aligned, path, label); {PLAIN}",
    )  # fmt: skip
    _require(
        table, pl.col("0") == "1", path,
        "is a face that is not aligned (its first field is 0): align the images, and set the field to 1",
    )  # fmt: skip
    logger.info("%s is a list of InsightFace's: aligned, path, label", path)
    return _with_classes(table.select("line", path="1", label="2"), path)


def _table(text: bytes, end: int, path: str | Path, header: str) -> pl.DataFrame | None:
    """The rows below a table's header, which ends at `end`; None if it names no columns of paths and labels."""
    for separator in SEPARATORS:
        (names,) = csv.reader([header], delimiter=separator)
        columns = [re.sub(r"[ _-]", "", name).lower() for name in names]
        if set(columns) in GLDV2_COLUMNS:
            raise UserError(f"{path} is a table of GLDv2: make the list with tools/prepare_gldv2.py --only train")
        image = _column(PATH_COLUMNS, columns, names, path, "paths")
        label = _column(LABEL_COLUMNS, columns, names, path, "labels", but=image)
        if image is None or label is None:
            continue
        logger.info("%s: paths in its column %s, labels in %s", path, names[image], names[label])
        below = text.find(b"\n", end) + 1 or len(text)
        table = _read(text[below:], path, separator, len(names), first_line=text.count(b"\n", 0, below) + 1)
        table = _training_rows(table, columns, names, path)
        return _with_classes(table.select("line", path=str(image), label=str(label)), path)
    if Path(path).suffix.lower() in (".csv", ".tsv"):
        raise UserError(
            f"{path}, line 1: {header[:100]!r} does not name a column of paths and one of labels; begin the file "
            f"with a line such as path,label, or {PLAIN}"
        )
    return None


def _column(
    groups: tuple[tuple[str, ...], ...],
    columns: list[str],
    names: list[str],
    path: str | Path,
    what: str,
    but: int | None = None,
) -> int | None:
    """The number of the column that is called like one of the first group that occurs; `UserError` if several are."""
    for group in groups:
        found = [number for number, column in enumerate(columns) if column in group and number != but]
        if len(found) > 1:
            listed = " and ".join(names[number] for number in found)
            raise UserError(f"{path}: its columns {listed} may all hold the {what}; leave one of them, or {PLAIN}")
        if found:
            return found[0]
    return None


def _training_rows(table: pl.DataFrame, columns: list[str], names: list[str], path: str | Path) -> pl.DataFrame:
    """The rows that a column such as `split` calls train, if there is one that tells rows apart."""
    for number, column in enumerate(columns):
        if column not in SPLIT_COLUMNS or table[str(number)].n_unique() < 2:
            continue
        kept = table.filter(pl.col(str(number)).str.to_lowercase().is_in(["train", "training"]))
        if not len(kept):
            raise UserError(f"{path}: no row of its column {names[number]} says train; leave it out, or {PLAIN}")
        logger.info("%s: %d of its %d rows are train in %s", path, len(kept), len(table), names[number])
        return kept
    return table


def _with_classes(table: pl.DataFrame, path: str | Path) -> pl.DataFrame:
    """`path` and the class of each row from `line`, `path` and the text `label`."""
    label, number = pl.col("label"), pl.col("label").str.contains(NUMBER)
    _require(table, pl.col("path").is_not_null(), path, "has no path")
    _require(table, label.is_not_null(), path, "has no label")
    first_is_number = bool(table.select(number.first()).item())
    other = "a name" if first_is_number else "a number"
    _require(table, number == first_is_number, path, f"has {other} for its label, unlike the first; {PLAIN}")
    if first_is_number:
        _require(
            table, label.str.contains(CLASS), path,
            "has a label that is no class: classes are whole numbers from 0 on of at most 9 digits",
        )  # fmt: skip
        return table.select("path", label=label.str.replace(r"\..*", "").cast(pl.Int64))
    logger.info(
        "%s: its %d names of classes are numbered in sorted order; another list with other names numbers them "
        "otherwise",
        path, table["label"].n_unique(),
    )  # fmt: skip
    return table.select("path", label=label.rank("dense").cast(pl.Int64) - 1)


def _read(
    text: bytes, path: str | Path, separator: str, num_fields: int, *, quoted: bool = True, ragged: bool = False,
    first_line: int = 1,
) -> pl.DataFrame:  # fmt: skip
    """Columns `line`, "0", "1", ...: the fields of all lines that are not empty, as text without blanks around it.

    `ragged`: further fields are left out.
    """
    names = [str(i) for i in range(num_fields)]
    header = (
        separator.join(names).encode() + b"\n"
    )  # tells Polars how many fields to expect, whatever the first line has
    try:
        table = pl.read_csv(
            header + (text if text.isascii() else text.decode("latin-1").encode()),
            separator=separator, quote_char='"' if quoted else None,
            schema=dict.fromkeys(names, pl.String), truncate_ragged_lines=ragged,
        )  # fmt: skip
    except pl.exceptions.PolarsError as error:
        raise _bad_line(text, path, separator, num_fields, quoted, first_line, error) from error
    blank_as_null = [pl.col(name).str.strip_chars(BLANKS).replace("", None) for name in names]
    table = table.with_columns(blank_as_null).with_row_index("line", first_line)
    table = table.filter(~pl.all_horizontal(pl.col(names).is_null()))
    if not len(table):
        raise UserError(f"image list {path} contains no images")
    return table


def _bad_line(
    text: bytes, path: str | Path, separator: str, num_fields: int, quoted: bool, first_line: int, error: Exception
) -> UserError:
    """The error for the first line with more fields than the first one. Slow: only for a file that cannot be read."""
    lines = text.decode("latin-1").splitlines()
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    with suppress(csv.Error):  # a field of more characters than Python reads
        for number, fields in enumerate(csv.reader(lines, delimiter=separator, quoting=quoting), first_line):
            if len(fields) > num_fields:
                return UserError(
                    f"{path}, line {number}: {len(fields)} fields, but {num_fields} in the first; correct it, or "
                    f"{PLAIN}"
                )
    return UserError(f"{path} cannot be read as a table: {str(error).splitlines()[0][:200]}")


def _require(table: pl.DataFrame, valid: pl.Expr, path: str | Path, mistake: str) -> None:
    """`UserError` with the first line for which `valid` is not true."""
    bad = table.filter(~valid.fill_null(False))
    if len(bad):
        raise UserError(f"{path}, line {bad['line'][0]}: it {mistake}")
