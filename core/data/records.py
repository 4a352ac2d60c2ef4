"""A training set in a record file: the image rows, their labels and decoded batches."""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from core.data.labels import report_empty_classes, require_classes
from core.data.recordio import FIRST_WORDS, Heads, RecordFile, RecordReader, RecordWriter
from core.errors import UserError
from core.images.codec import decode_image, resize_image

__all__ = ["RecordDataset", "write_image_records"]

logger = logging.getLogger(__name__)
LABEL_BLOCK = 1 << 18
FINGERPRINT_RECORDS = 64
STRETCH = 1 << 20
"""Bytes of the file that are read at once where many records are looked at."""
MOST_IMAGES = 1 << 31
"""And most classes: a larger number in a header or a label is damage."""


class RecordDataset:
    """The image rows of a record file, in the order of its index.

    InsightFace's files have a header record (key 0, no payload, labels (n + 1, x)): the rows are then the records with
    keys 1 to n, and whatever follows (class ranges) is left out. x is the number of classes, or n + 1 + the number of
    class ranges; both are float32, inexact beyond 2^24, and the exact number then comes from the keys. InsightFace's
    tools begin a range wherever the label changes, so there are as many ranges as classes only if the images of a class
    follow one another and no label is left out; elsewhere the number of classes is the largest label + 1, and a log
    line says so. So it is without a header, as `im2rec` writes records: every record is then an image. The label of an
    image is the first of its record.

    Memory: about 24 bytes an image, and 8 more after the first use of `labels()` or `fingerprint`; images stay on disk.
    Picklable, and safe with forked and spawned workers.

    Attributes: `prefix`, `num_images`, `num_classes`. With `image_size` given, images of another size are resized to
    it; otherwise all must have the size of the first, a square. Raises `UserError` naming file and record for damaged
    records, wrong labels and undecodable images.
    """

    def __init__(self, prefix: str | Path, image_size: int | None = None):
        self.prefix = str(prefix)
        self._reader = RecordReader(prefix)
        self._labels: np.ndarray | None = None
        self._check_end()
        self._header_classes: int | None = None
        self._records, promised = self._find_images()
        self.num_images = len(self._records)
        if not self.num_images:
            raise UserError(f"{self.prefix}.rec contains no images")
        if promised is not None:
            self._header_classes = self._count_classes(promised)
        self.num_classes = self._header_classes or int(self.labels().max()) + 1
        require_classes(f"{self.prefix}.rec", self.num_classes, self.num_images)
        self._size = image_size

    def __len__(self) -> int:
        return self.num_images

    def _check_end(self) -> None:
        """Report a truncated file now, not hours into a run, and an index that ends before the file does."""
        left = self._reader.file.size
        if len(self._reader):
            last = int(self._reader.offsets.argmax())
            self._reader.view(last)
            left -= self._reader.end(last)
        if left > 0:
            logger.warning(
                "%s.rec: its last %d bytes are not in %s.idx and are not read; if that index is of an interrupted "
                "build, make it again: python tools/index_records.py %s.rec",
                self.prefix, left, self.prefix, self.prefix,
            )  # fmt: skip

    def _find_images(self) -> tuple[np.ndarray, int | None]:
        """Positions of the image records in the index, and the second label of the header record if there is one."""
        reader = self._reader
        everything = np.arange(len(reader))
        header = np.flatnonzero(reader.keys == 0)[:1]
        if not len(header):
            return everything, None
        labels, payload = reader.view(int(header[0]))
        if len(labels) != 2 or len(payload):
            return everything, None
        if not all(0 <= label <= MOST_IMAGES and label.is_integer() for label in labels):
            raise UserError(
                f"{self.prefix}.rec: its header, record {header[0]}, has {labels[0]:g} and {labels[1]:g}, not the "
                "number of images + 1 and the number of classes; copy or make the files again"
            )
        end = self._end_of_images(labels[0])
        images = everything[(reader.keys > 0) & (reader.keys < end)]
        if len(images) != end - 1:
            raise UserError(
                f"{self.prefix}.rec: its header, record {header[0]}, promises {end - 1} images, but {len(images)} are "
                f"in {self.prefix}.idx; make the index again (python tools/index_records.py {self.prefix}.rec), or "
                "copy both files again"
            )
        return images, int(labels[1])

    def _count_classes(self, promised: int) -> int:
        """The number of classes of a file whose header's second label is `promised`; reads the labels if it must."""
        end = self.num_images + 1
        if promised <= end:
            return promised
        ranges = int(np.count_nonzero(self._reader.keys >= end))
        # One range a class: the last of `ranges` classes ends the file. Else labels are left out, or the images are in
        # another order, and only the labels tell.
        if np.float32(end + ranges) == promised and self._read_labels(self._records[-1:])[0] == ranges - 1:
            return ranges
        labels = self.labels()
        changes = int(np.count_nonzero(labels[1:] != labels[:-1]))
        if not ranges and np.float32(end + changes + 1) != promised:
            return promised  # more classes than images, not ranges that the index lacks
        needed = int(labels.max()) + 1
        if np.float32(end + needed) != promised:
            logger.info(
                "%s.rec: %d class ranges by its header, but %d classes by its labels, which count; a class has several "
                "ranges where its images do not follow one another, and none if its label is left out",
                self.prefix, promised - end, needed,
            )  # fmt: skip
        return needed

    def _end_of_images(self, stored: float) -> int:
        """The key after the last image's: of the keys that float32 rounds to `stored`, the first without an image."""
        slack = int(np.spacing(np.float32(stored)) / 2)
        for end in range(int(stored) - slack, int(stored) + slack + 1):
            record = np.flatnonzero(self._reader.keys == end)[:1]
            if np.float32(end) == stored and not (len(record) and len(self._reader.view(int(record[0]))[1])):
                return end
        return int(stored)

    @cached_property
    def image_size(self) -> int:
        """Side of the decoded images in pixels: the given one, or that of the first image."""
        if self._size is not None:
            return self._size
        record = int(self._records[0])
        height, width = self._decode(record, self.payload(0)).shape[:2]
        if height != width:
            raise UserError(
                f"{self.prefix}.rec: record {record} is an image of {width}x{height}, not a square; "
                "set the size that images are to be resized to"
            )
        return height

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the index, the file's size, all labels and 64 records spread over it, but not of its place."""
        reader = self._reader
        digest = hashlib.sha256(f"{reader.file.size} {len(reader)}".encode())
        for array in (reader.keys, reader.offsets, self.labels()):  # labels may be cleaned in place: no size changes
            digest.update(array.tobytes())
        for i in np.unique(np.linspace(0, len(reader) - 1, FINGERPRINT_RECORDS).astype(np.int64)):
            labels, payload = reader.view(int(i))
            digest.update(np.array(labels, dtype="<f4").tobytes())
            digest.update(payload)
        return digest.hexdigest()

    def labels(self) -> np.ndarray:
        """Labels of all rows, int64 (N,), read from the record headers in blocks."""
        if self._labels is None:
            labels = np.empty(self.num_images, np.int64)
            for start in range(0, self.num_images, LABEL_BLOCK):
                records = self._records[start : start + LABEL_BLOCK]
                labels[start : start + len(records)] = self._checked(self._read_labels(records), records)
            self._labels = labels
            report_empty_classes(f"{self.prefix}.rec", labels, self._header_classes)
        return self._labels

    def _read_labels(self, records: np.ndarray) -> np.ndarray:
        """First labels (float32) of records, read as arrays; those of damaged and split records by the reader."""
        reader, labels = self._reader, np.empty(len(records), np.float32)
        order = np.argsort(reader.offsets[records], kind="stable")
        offsets = reader.offsets[records[order]]
        heads = Heads(_first_words(reader.file, offsets), reader.file.size - offsets)
        labels[order] = heads.labels
        for i in order[~heads.whole].tolist():
            labels[i] = reader.view(int(records[i]))[0][0]
        return labels

    def _checked(self, labels: np.ndarray, records: np.ndarray) -> np.ndarray:
        """Labels as int64; `UserError` with the first record whose label is not a class."""
        end = self._header_classes or MOST_IMAGES
        bad = np.flatnonzero(~((labels >= 0) & (labels < end) & (labels == np.floor(labels))))
        if len(bad):
            raise UserError(
                f"{self.prefix}.rec: record {records[bad[0]]} has the label {labels[bad[0]]:g}; labels must be whole "
                f"numbers from 0 on" + (f", below the header's {end} classes" if self._header_classes else "")
            )
        return labels.astype(np.int64)

    def payload(self, row: int) -> bytes:
        """The encoded image of a row, as stored; `UserError` if the file has changed since the images were opened."""
        payload = self.record(row)[1]
        self._reader.file.require_unchanged()
        return payload

    def record(self, row: int) -> tuple[tuple[float, ...], bytes]:
        """All labels and the encoded image of a row, as stored."""
        return self._reader[int(self._records[row])]

    @property
    def name(self) -> str:
        """`prefix`, under the name that all image sources share."""
        return self.prefix

    def image_name(self, row: int) -> str:
        """The record of a row, for messages."""
        return f"{self.prefix}.rec, record {self._records[row]}"

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """`batch` as arrays by name: `image` and `label`."""
        images, labels = self.batch(rows)
        return {"image": images, "label": labels}

    def batch(self, rows: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decoded images uint8 (B, H, W, 3) RGB and labels int64 (B,) of the given rows."""
        records = self._records[np.asarray(rows, dtype=np.int64)]
        size = self.image_size
        images = np.empty((len(records), size, size, 3), np.uint8)
        labels, payloads = self._reader.views(records)  # before the first is decoded: in between it would take longer
        for record, payload, pixels in zip(records.tolist(), payloads, images):
            image = self._decode(record, payload, pixels)
            if image.shape != pixels.shape:
                pixels[:] = self._resized(record, image)
        self._reader.file.require_unchanged()
        return images, self._checked(labels, records)

    def _decode(self, record: int, payload: bytes | memoryview, out: np.ndarray | None = None) -> np.ndarray:
        try:
            return decode_image(payload, out)
        except ValueError as error:
            self._reader.file.require_unchanged()
            raise UserError(
                f"{self.prefix}.rec: record {record} is not an image that can be decoded ({error}); make the file again"
            ) from None

    def _resized(self, record: int, image: np.ndarray) -> np.ndarray:
        size, (height, width) = self.image_size, image.shape[:2]
        if self._size is None:
            raise UserError(
                f"{self.prefix}.rec: record {record} is an image of {width}x{height}, the first one of {size}x{size}; "
                "set the size that images are to be resized to"
            )
        return resize_image(image, size)


def _first_words(file: RecordFile, offsets: np.ndarray) -> np.ndarray:
    """What the records at ascending offsets (N,) begin with, uint32 (N, 9): frame, header, the first of several labels.

    Zeros, which are no record, where the file ends before. Records near each other are read together.
    """
    words = np.zeros((len(offsets), FIRST_WORDS), "<u4")
    size, buffer, begin = 4 * FIRST_WORDS, np.empty(STRETCH, np.uint8), 0
    end = int(np.searchsorted(offsets, file.size - size, side="right"))
    while begin < end:
        start = offsets[begin]
        stop = min(end, begin + int(np.searchsorted(offsets[begin:], start + STRETCH - size, side="right")))
        file.read_into(buffer[: offsets[stop - 1] + size - start], int(start))
        words[begin:stop] = buffer[(offsets[begin:stop] - start)[:, None] + np.arange(size)].view("<u4")
        begin = stop
    return words


def write_image_records(
    writer: RecordWriter, num_images: int, num_classes: int, images: Iterable[tuple[float | Sequence[float], bytes]]
) -> None:
    """Write images in InsightFace's layout, in a stream: record 0 is the header (n + 1, classes), then records 1 to n.

    `images` yields label or labels, and the encoded image. `ValueError` if it does not yield `num_images` of them.
    """
    writer.write(0, (num_images + 1, num_classes), b"")
    index = 0
    for index, (label, payload) in enumerate(images, start=1):
        writer.write(index, label, payload)
    if index != num_images:
        raise ValueError(f"{index} images for {writer.prefix}.rec, {num_images} announced")
