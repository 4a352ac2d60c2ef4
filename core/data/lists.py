"""A training set in an image list: a text file with a line `path label` for each image, and the images below a folder.

The path ends at the last blank before the label, so it may hold blanks itself; the label is a whole number. Empty lines
are skipped. Paths are relative to a root folder, or absolute.
"""

import hashlib
import logging
import mmap
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import simplejpeg

from core.errors import UserError
from core.files import replaced_atomically, require_file
from core.images.codec import FOUR_COMPONENTS, JPEG_START, decode_image, resize_image
from core.progress import Progress

__all__ = ["ImageList", "ListDataset", "file_sizes", "read_list", "write_list"]

logger = logging.getLogger(__name__)
NEWLINE = ord("\n")
BLANK = np.zeros(256, bool)
BLANK[[ord(" "), ord("\t"), ord("\r")]] = True
MOST_DIGITS = 9
"""Of a label: with more it would not be a class."""
BLOCK = 4096
STAT_THREADS = 16
"""Enough to hide the latency of a network's file system; on a local disk one is as fast."""
FINGERPRINT_FILES = 64
MOST_NAMES = 10


@dataclass(frozen=True)
class ImageList:
    """The N lines of a list: its text, where the path of each line starts and ends in it, and its label.

    `starts`, `ends` and `labels` are int64 (N,): 24 bytes an image beside the text.
    """

    text: bytes
    starts: np.ndarray
    ends: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, row: int) -> bytes:
        """The path of a row as it is written in the list."""
        return self.text[self.starts[row] : self.ends[row]]

    def select(self, rows: np.ndarray) -> "ImageList":
        """The list with these rows only; the text stays whole."""
        return ImageList(self.text, self.starts[rows], self.ends[rows], self.labels[rows])


class ListDataset:
    """The images of a list, in its order, as `RecordDataset` gives those of a record file.

    All files are looked for when the list is opened. Missing ones are an error that names the first ten and counts all;
    with `skip_bad` that is logged, and their rows are left out. Files that cannot be read or decoded are found when
    they are needed: an error with the file's name, or with `skip_bad` a warning with its name and a count, and the
    image of the same class that is nearest in the list takes the place (a black one if the class has no other), in
    every run the same, so that rows stay joined to stored features. A class without images is allowed.

    Holds the text of the list and 24 bytes an image, 110 MB for the 1.58 million of GLDv2-clean; images stay on disk.
    Picklable, and safe with forked and spawned workers; forked ones share their knowledge of bad files, so that each
    file is reported once.

    Attributes: `prefix` (path of the list), `root` (by default the list's folder), `num_images`, `num_classes` (largest
    label in the list + 1), `fingerprint` (hex SHA-256 of the list's text, of which rows are left out, of the sizes of
    all files and the content of 64 spread over them: not of the place of the list and the images).

    With `image_size` given, images are squashed to that square: JPEGs at least twice as large are shrunk while they are
    decoded, the rest is done by averaging over areas. Otherwise, as with records, all must be as the first one, a
    square. Rotations that a file's metadata ask for are not applied. Raises `UserError` as said above, and naming file
    and line for a line that is not `path label`.
    """

    def __init__(
        self,
        path: str | Path,
        root: str | Path | None = None,
        image_size: int | None = None,
        skip_bad: bool = False,
    ):
        self.prefix, self.skip_bad = str(path), skip_bad
        self.root = Path(path).parent if root is None else Path(root)
        self._list = read_list(path)
        self.num_classes = int(self._list.labels.max()) + 1
        sizes = file_sizes(self._file, len(self._list), f"looking for the files of {Path(path).name}")
        present = np.flatnonzero(sizes >= 0)
        if len(present) < len(sizes):
            self._report_missing(np.flatnonzero(sizes < 0))
            self._list, sizes = self._list.select(present), sizes[present]
        self.num_images = len(self._list)
        self.fingerprint = self._fingerprint(sizes)
        self._bad = np.frombuffer(mmap.mmap(-1, self.num_images), np.uint8)  # zeros that forked workers share
        self._size = image_size

    def __len__(self) -> int:
        return self.num_images

    def labels(self) -> np.ndarray:
        """Labels of all rows, int64 (N,)."""
        return self._list.labels

    @cached_property
    def image_size(self) -> int:
        """Side of the decoded images in pixels: the given one, or that of the first image."""
        if self._size is not None:
            return self._size
        try:
            height, width = decode_image(self._read(0)).shape[:2]
        except (OSError, ValueError) as error:
            raise self._undecodable(0, error) from None
        if height != width:
            raise UserError(
                f"{self._name(0)} is an image of {width}x{height}, not a square; give the size that images shall be "
                "resized to (image_size)"
            )
        return height

    @property
    def name(self) -> str:
        """`prefix`, under the name that all image sources have for it."""
        return self.prefix

    def image_name(self, row: int) -> str:
        """The file that holds the image of a row, for messages."""
        return self._name(row)

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """`batch` as arrays by name: `image` and `label`."""
        images, labels = self.batch(rows)
        return {"image": images, "label": labels}

    def batch(self, rows: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decoded images uint8 (B, H, W, 3) RGB and labels int64 (B,) of the given rows."""
        rows = np.asarray(rows, dtype=np.int64)
        size = self.image_size
        images = np.empty((len(rows), size, size, 3), np.uint8)
        for row, image in zip(rows.tolist(), images):
            if self.skip_bad:
                self._decode_or_replace(row, image)
                continue
            try:
                self._decode(row, image)
            except UserError:
                raise
            except (OSError, ValueError) as error:
                raise self._undecodable(row, error) from None
        return images, self._list.labels[rows]

    def _file(self, row: int) -> bytes:
        return os.path.join(os.fsencode(self.root), self._list.path(row))

    def _name(self, row: int) -> str:
        return os.fsdecode(self._file(row))

    def _read(self, row: int) -> bytes:
        with open(self._file(row), "rb") as file:
            return file.read()

    def _decode(self, row: int, out: np.ndarray) -> None:
        """Fill `out` (size, size, 3) with the image of a row; `OSError` or `ValueError` if that is impossible."""
        data, size = self._read(row), len(out)
        if self._size is not None and data[:2] == JPEG_START:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if min(height, width) >= 2 * size and colours not in FOUR_COMPONENTS:
                out[:] = resize_image(simplejpeg.decode_jpeg(data, "RGB", min_height=size, min_width=size), size)
                return
        image = decode_image(data, out)
        if image.shape == out.shape:
            return
        if self._size is None:
            height, width = image.shape[:2]
            raise UserError(
                f"{self._name(row)} is an image of {width}x{height}, the first one of {size}x{size}; give the size "
                "that images shall be resized to (image_size)"
            )
        out[:] = resize_image(image, size)

    def _decode_or_replace(self, row: int, out: np.ndarray) -> None:
        for candidate in self._row_and_its_likes(row):
            if self._bad[candidate]:
                continue
            try:
                return self._decode(candidate, out)
            except UserError:
                raise
            except (OSError, ValueError) as error:
                self._bad[candidate] = 1
                logger.warning(
                    "%s cannot be decoded (%s); an image of its class takes its place (%d such files so far)",
                    self._name(candidate), error, int(self._bad.sum()),
                )  # fmt: skip
        out[:] = 0

    def _row_and_its_likes(self, row: int) -> Iterator[int]:
        """The row, then the others of its class, the nearest first."""
        yield row
        likes = np.flatnonzero(self._list.labels == self._list.labels[row])
        yield from likes[np.argsort(np.abs(likes - row), kind="stable")][1:].tolist()

    def _undecodable(self, row: int, error: Exception) -> UserError:
        return UserError(
            f"{self._name(row)} is not an image that can be decoded ({error}); replace it, or let another take its "
            "place (bad_images skip)"
        )

    def _report_missing(self, rows: np.ndarray) -> None:
        names = ", ".join(os.fsdecode(self._list.path(row)) for row in rows[:MOST_NAMES].tolist())
        more = " and others" if len(rows) > MOST_NAMES else ""
        text = f"{self.prefix}: {len(rows)} of its {len(self._list)} files are missing below {self.root}: {names}{more}"
        if not self.skip_bad or len(rows) == len(self._list):
            raise UserError(f"{text}; name the folder of the images (image_root), or leave these out (bad_images skip)")
        logger.info("%s; their lines are left out", text)

    def _fingerprint(self, sizes: np.ndarray) -> str:
        digest = hashlib.sha256(self._list.text)
        for array in (self._list.starts, sizes):
            digest.update(array.astype("<i8").tobytes())
        for row in np.unique(np.linspace(0, len(sizes) - 1, FINGERPRINT_FILES).astype(np.int64)).tolist():
            try:
                digest.update(self._read(row))
            except OSError as error:
                if not self.skip_bad:
                    raise self._undecodable(row, error) from None
        return digest.hexdigest()


def read_list(path: str | Path) -> ImageList:
    """Parse a list by array code; `UserError` naming file and line for a line that is not `path label`.

    Memory at the peak: the text twice and some 70 bytes a line.
    """
    text = require_file(path, "image list").read_bytes()
    data = np.frombuffer(text, np.uint8)
    ends = np.append(np.flatnonzero(data == NEWLINE), len(data))
    starts = np.concatenate(([0], ends[:-1] + 1))
    ends = _without_blanks(data, starts, ends)
    lines = np.flatnonzero(ends > starts)
    if not len(lines):
        raise UserError(f"image list {path} holds no images")
    starts, ends = starts[lines], ends[lines]
    labels, before = _trailing_numbers(data, starts, ends)
    path_ends = _without_blanks(data, starts, before)
    bad = np.flatnonzero((before == ends) | (path_ends == before) | (path_ends == starts))
    if len(bad):
        shown = text[starts[bad[0]] : ends[bad[0]]].decode(errors="replace")
        raise UserError(
            f"{path}, line {lines[bad[0]] + 1}: {shown[:100]!r} is not a path, a blank and a label; labels are whole "
            f"numbers from 0 on of at most {MOST_DIGITS} digits"
        )
    return ImageList(text, starts, path_ends, labels)


def write_list(path: str | Path, images: ImageList, rows: np.ndarray, labels: np.ndarray) -> None:
    """Write the paths of `rows` (K,) with new `labels` (K,), in a stream; `path` appears when it is whole."""
    with replaced_atomically(path) as temporary, open(temporary, "wb") as file:
        for start in range(0, len(rows), BLOCK):
            block = zip(rows[start : start + BLOCK].tolist(), labels[start : start + BLOCK].tolist())
            file.writelines(b"%s %d\n" % (images.path(row), label) for row, label in block)


def file_sizes(file_of: Callable[[int], str | bytes], num_files: int, description: str) -> np.ndarray:
    """Sizes of the files `file_of(0)`, `file_of(1)` …, int64 (N,), -1 where there is no file; with a progress bar."""
    sizes = np.full(num_files, -1, np.int64)

    def measure(start: int) -> int:
        end = min(start + BLOCK, num_files)
        for i in range(start, end):
            try:
                found = os.stat(file_of(i))
            except (OSError, ValueError):  # ValueError: a name that no file can have
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


def _without_blanks(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Ends of the pieces `data[start:end]` (L,) when the blanks at their ends are cut off."""
    ends, active = ends.copy(), np.arange(len(ends))
    while len(active):
        active = active[ends[active] > starts[active]]
        active = active[BLANK[data[ends[active] - 1]]]
        ends[active] -= 1
    return ends


def _trailing_numbers(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers that the last digits of `data[start:end]` write, up to 9 of them, and where they begin, (L,) each."""
    numbers, begins, active = np.zeros(len(ends), np.int64), ends.copy(), np.arange(len(ends))
    for place in range(MOST_DIGITS):
        active = active[begins[active] > starts[active]]
        digits = data[begins[active] - 1].astype(np.int64) - ord("0")
        valid = (digits >= 0) & (digits <= 9)
        active = active[valid]
        numbers[active] += digits[valid] * 10**place
        begins[active] -= 1
    return numbers, begins
