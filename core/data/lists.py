"""A training set in an image list: a text file with a line `path label` for each image, and the images below a folder.

The path ends at the last blank before the label, so it may contain blanks itself; the label is a whole number. Empty
lines are skipped. Paths are relative to a root folder, or absolute. Lists of other tools (`core.data.foreign_lists`)
give the same rows.
"""

import errno
import hashlib
import logging
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from core.data.encoded_images import EncodedImages
from core.data.foreign_lists import plain_text, read_foreign_list
from core.data.labels import report_empty_classes, require_classes
from core.errors import UserError
from core.files import require_file
from core.progress import Progress

__all__ = ["ImageList", "ListDataset", "file_sizes", "read_list"]

logger = logging.getLogger(__name__)
BLANKS = " \t\r"
MOST_DIGITS = 9
"""Of a label: a longer number is not a class."""
LABEL_AT_END = rf"[{BLANKS}]+[0-9]{{1,{MOST_DIGITS}}}[{BLANKS}]*$"
BLOCK = 4096
REFUSALS = (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
"""Errors of a look-up that do not say that a file is missing."""
STAT_THREADS = 16
"""Enough to hide the latency of a network file system; on a local disk one is as fast."""
FINGERPRINT_FILES = 64
MOST_NAMES = 10


@dataclass(frozen=True)
class ImageList:
    """The N images of a list, in its order: `paths`, strings, and `labels`, int64 (N,).

    A path is bytes, in whatever encoding the file system has. Polars holds UTF-8 alone, so each byte is a character of
    `paths` (Latin-1), and `path` gives the bytes. Held are 16 bytes an image beside the text of the paths.
    """

    paths: pl.Series
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, row: int) -> bytes:
        """The path of a row as it is written in the list."""
        return self.paths[row].encode("latin-1")

    def text(self) -> bytes:
        """Its lines `path label`."""
        lines = pl.DataFrame({"path": self.paths, "label": self.labels})
        return lines.select(pl.format("{} {}\n", "path", "label").str.join("")).item().encode("latin-1")

    def select(self, rows: np.ndarray) -> "ImageList":
        """The list with these rows only."""
        return ImageList(self.paths.gather(rows), self.labels[rows])


class ListDataset(EncodedImages):
    """The images of a list, in its order, with the interface of `RecordDataset`.

    All files are looked up when the list is opened. Missing ones are an error that names the first ten and gives their
    number; with `skip_bad` that line is logged instead, and their rows are left out. A file that cannot be read or
    decoded is found when it is needed: an error with its name, or with `skip_bad` a warning with its name, and the
    first image of its class that can be decoded takes its place (a black one if there is none). The rows stay, and are
    the same in every run, because old embeddings are joined to them. A class without images is allowed.

    Held are the paths and 32 bytes an image, 100 MB for the 1.58 million of GLDv2-clean; images stay on disk.
    Picklable, and safe with forked and spawned workers.

    With `images` they are the list, and nothing is read at `path`, which may be a folder.

    Attributes: `prefix` (path of the list), `root` (by default the list's folder), `num_images`, `num_classes` (largest
    label in the list + 1), `fingerprint` (hex SHA-256 of the list's text, the rows that are left out, the sizes of all
    files and the content of 64 spread over them; independent of where the list and the images are). A file that has
    another size when it is read is an error, whatever `skip_bad` is.

    With `image_size` given, images are squashed to that square: JPEGs at least twice as large are shrunk while they are
    decoded, the rest is done by averaging over areas. Otherwise, as with records, all must have the size of the first,
    a square. Raises `UserError` as said above, and naming file and line for a line that is not `path label`.
    """

    def __init__(
        self,
        path: str | Path,
        root: str | Path | None = None,
        image_size: int | None = None,
        skip_bad: bool = False,
        images: ImageList | None = None,
    ):
        super().__init__(image_size, skip_bad)
        self.prefix = str(path)
        self.root = Path(path).parent if root is None else Path(root)
        self._list = read_list(path) if images is None else images
        self.num_classes = int(self._list.labels.max()) + 1
        report_empty_classes(self.prefix, self._list.labels)
        sizes = self._find_files()
        present = np.flatnonzero(sizes >= 0)
        if len(present) < len(sizes):
            self._report_missing(np.flatnonzero(sizes < 0))
            self._list, sizes = self._list.select(present), sizes[present]
        self._sizes = sizes
        self.num_images = len(self._list)
        self.fingerprint = self._fingerprint(
            Path(path).read_bytes() if images is None else images.text(), present, sizes
        )

    def __len__(self) -> int:
        return self.num_images

    def labels(self) -> np.ndarray:
        """Labels of all rows, int64 (N,)."""
        return self._list.labels

    @property
    def name(self) -> str:
        """`prefix`, under the name that all image sources share."""
        return self.prefix

    def image_name(self, row: int) -> str:
        """The file of a row, for messages."""
        return os.fsdecode(self._file(row))

    def _find_files(self) -> np.ndarray:
        """Sizes of the files, -1 where there is none; paths are read as Windows's where that finds more of them."""
        description = f"looking for the files of {Path(self.prefix).name}"
        sizes = file_sizes(self._file, len(self._list), description)
        as_written = self._list
        windows = as_written.paths.str.replace_all("\\", "/", literal=True)
        if (sizes >= 0).all() or windows.equals(as_written.paths):
            return sizes
        self._list = ImageList(windows, as_written.labels)
        converted = file_sizes(self._file, len(self._list), description)
        if (converted >= 0).sum() <= (sizes >= 0).sum():
            self._list = as_written
            return sizes
        logger.info("%s: its paths are Windows's; each \\ is read as /", self.prefix)
        return converted

    def _file(self, row: int) -> bytes:
        return os.path.join(os.fsencode(self.root), self._list.path(row))

    def payload(self, row: int) -> bytes:
        """The encoded image of a row; `OSError`, or `UserError` if it has changed since the list was opened."""
        with open(self._file(row), "rb") as file:
            data = file.read()
        if len(data) != self._sizes[row]:
            raise UserError(
                f"{self.image_name(row)} has changed since {self.prefix} was opened ({self._sizes[row]} bytes before, "
                f"{len(data)} now): start again when nobody writes to the data"
            )
        return data

    def _report_missing(self, rows: np.ndarray) -> None:
        names = ", ".join(os.fsdecode(self._list.path(row)) for row in rows[:MOST_NAMES].tolist())
        more = " and others" if len(rows) > MOST_NAMES else ""
        text = f"{self.prefix}: {len(rows)} of its {len(self._list)} files are missing below {self.root}: {names}{more}"
        if not self.skip_bad or len(rows) == len(self._list):
            raise UserError(f"{text}; set the folder of the images (image_root), or leave these out (bad_images skip)")
        logger.info("%s; their lines are left out", text)

    def _fingerprint(self, text: bytes, present: np.ndarray, sizes: np.ndarray) -> str:
        digest = hashlib.sha256(text)
        for array in (present, sizes):
            digest.update(array.astype("<i8").tobytes())
        for row in np.unique(np.linspace(0, len(sizes) - 1, FINGERPRINT_FILES).astype(np.int64)).tolist():
            try:
                digest.update(self.payload(row))
            except OSError as error:
                if not self.skip_bad:
                    raise self.undecodable(row, error) from None
        return digest.hexdigest()


def read_list(path: str | Path) -> ImageList:
    """Parse a list of lines `path label`, or of another tool.

    `UserError` naming file and line for a line that is not `path label`, or not as the list's first line announces, and
    for labels that are absurd for so many images. Memory at the peak: some 6 times the text.
    """
    images = _parse(path)
    require_classes(str(path), int(images.labels.max()) + 1, len(images))
    return images


def _parse(path: str | Path) -> ImageList:
    text = plain_text(require_file(path, "image list").read_bytes())
    foreign = read_foreign_list(text, path)
    if foreign is not None:
        return ImageList(foreign["path"].rechunk(), foreign["label"].to_numpy())
    line, label = pl.col("line"), pl.col("line").str.strip_prefix(pl.col("path")).str.strip_chars(BLANKS)
    table = (
        _lines(text, path)
        .with_row_index("number", 1)
        .filter(line.str.contains(rf"[^{BLANKS}]"))
        .with_columns(path=line.str.replace(LABEL_AT_END, ""))
        .select("number", "path", label=label.cast(pl.Int64, strict=False))
    )
    if not len(table):
        raise UserError(f"image list {path} contains no images")
    bad = table.filter(pl.col("label").is_null() | (pl.col("path") == ""))["number"]
    if len(bad):
        shown = text.split(b"\n")[bad[0] - 1].rstrip(BLANKS.encode()).decode(errors="replace")
        raise UserError(
            f"{path}, line {bad[0]}: {shown[:100]!r} is not a path, a blank and a label; labels are whole numbers from "
            f"0 on of at most {MOST_DIGITS} digits"
        )
    return ImageList(table["path"].rechunk(), table["label"].to_numpy())


def _lines(text: bytes, path: str | Path) -> pl.DataFrame:
    """A column `line`, each byte of a line as a character (Latin-1), null for an empty line."""
    if not text:
        return pl.DataFrame(schema={"line": pl.String})
    try:
        return pl.read_csv(
            text if text.isascii() else text.decode("latin-1").encode(),
            has_header=False,
            separator="\0",  # the one byte that no path contains: a line is one field
            quote_char=None,
            schema={"line": pl.String},
        )
    except pl.exceptions.PolarsError as error:
        raise UserError(
            f"{path} is not a text file of lines `path label`: {str(error).splitlines()[0][:200]}"
        ) from error


def file_sizes(file_of: Callable[[int], str | bytes], num_files: int, description: str) -> np.ndarray:
    """Sizes of the files `file_of(0)`, `file_of(1)`, ..., int64 (N,), -1 where there is none; with a progress bar.

    `OSError` for a folder that may not be searched, or on a disk that is gone: its files need not be missing.
    """
    sizes = np.full(num_files, -1, np.int64)

    def measure(start: int) -> int:
        end = min(start + BLOCK, num_files)
        for i in range(start, end):
            try:
                found = os.stat(file_of(i))
            except ValueError:  # a name that no file can have
                continue
            except OSError as error:
                if error.errno in REFUSALS:
                    raise
                continue
            if stat.S_ISREG(found.st_mode):
                sizes[i] = found.st_size
        return end - start

    first_rank = os.environ.get("RANK", "0") == "0"
    with (
        ThreadPoolExecutor(STAT_THREADS) as pool,
        Progress(description, num_files, "files", quiet=not first_rank) as progress,
    ):
        for count in pool.map(measure, range(0, num_files, BLOCK)):
            progress.update(count)
    return sizes
