"""A training set in WebDataset shards: tar files on a local or shared disk, whose images an index finds by row."""

import hashlib
import io
import os
import tarfile
from collections import OrderedDict
from functools import cached_property
from pathlib import Path

import numpy as np

from core.data.encoded_images import EncodedImages
from core.data.labels import report_empty_classes, require_classes
from core.data.shard_index import BLOCK, read_shard_index
from core.errors import UserError

__all__ = ["ShardDataset"]

FINGERPRINT_IMAGES = 64
MOST_OPEN = 256
"""Shards that a process keeps open: a system usually allows it 1,024 files."""


class ShardDataset(EncodedImages):
    """The images of the shards of an index, in its order, with the interface of `RecordDataset`.

    Any row is read by itself, so that the order of a training, its resume and old embeddings by row are those of
    records. Bad images are dealt with as in `EncodedImages`.

    Memory: 20 bytes an image; images stay on disk. Picklable, and safe with forked and spawned workers: each keeps up
    to 256 shards open.

    Attributes: `prefix` (path of the index), `num_images`, `num_classes` (largest label + 1). `UserError` naming the
    shard that is missing, has another size than the index says, or changes while it is read.
    """

    def __init__(self, index: str | Path, image_size: int | None = None, skip_bad: bool = False):
        super().__init__(image_size, skip_bad)
        self.prefix = str(index)
        self._index = read_shard_index(index)
        self._ends = np.cumsum(self._index.counts)
        self._opened: OrderedDict[int, io.FileIO] = OrderedDict()
        self._stamps = [self._look_up(shard) for shard in range(len(self._ends))]
        self.num_images = len(self._index.offsets)
        self.num_classes = int(self._index.labels.max()) + 1
        require_classes(self.prefix, self.num_classes, self.num_images)
        report_empty_classes(self.prefix, self._index.labels)

    def __len__(self) -> int:
        return self.num_images

    def labels(self) -> np.ndarray:
        """Labels of all rows, int64 (N,)."""
        return self._index.labels

    @property
    def name(self) -> str:
        """`prefix`, under the name that all image sources share."""
        return self.prefix

    def image_name(self, row: int) -> str:
        """The shard of a row and the name of its member, for messages."""
        shard, offset = self._shard(row), int(self._index.offsets[row])
        try:
            header = os.pread(self._file(shard).fileno(), BLOCK, offset - BLOCK)
            member = tarfile.TarInfo.frombuf(header, "utf-8", "replace").name
        except (OSError, UserError, tarfile.TarError):
            member = f"image at byte {offset}"
        return f"{self._index.shards[shard]}, {member}"

    def payload(self, row: int) -> bytes:
        """The encoded image of a row; `UserError` if its shard has changed since the images were opened."""
        shard, length = self._shard(row), int(self._index.lengths[row])
        file = self._file(shard)
        data = os.pread(file.fileno(), length, int(self._index.offsets[row]))
        if len(data) < length or _stamp(os.fstat(file.fileno())) != self._stamps[shard]:
            raise UserError(
                f"{self._index.shards[shard]} has changed since {self.prefix} was opened: start again when nobody "
                "writes to the data"
            )
        return data

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the shards' sizes, all places and labels and 64 images spread over them, not of the names."""
        index = self._index
        digest = hashlib.sha256()
        for array in (index.sizes, index.counts, index.offsets, index.lengths, index.labels):
            digest.update(array.astype("<i8").tobytes())
        for row in np.unique(np.linspace(0, self.num_images - 1, FINGERPRINT_IMAGES).astype(np.int64)).tolist():
            digest.update(self.payload(row))
        return digest.hexdigest()

    def _shard(self, row: int) -> int:
        return int(np.searchsorted(self._ends, row, side="right"))

    def _look_up(self, shard: int) -> tuple[int, int]:
        """The stamp of a shard; `UserError` if it is missing or not the one that was indexed."""
        path = self._index.shards[shard]
        try:
            stamp = _stamp(os.stat(path))
        except FileNotFoundError:
            raise UserError(
                f"shard not found: {path}, which {self.prefix} lists; copy it there, or index those that are there: "
                "python tools/index_shards.py"
            ) from None
        if stamp[0] != self._index.sizes[shard]:
            raise UserError(
                f"{path} has {stamp[0]} bytes, not the {self._index.sizes[shard]} of {self.prefix}: copy it to its "
                "end, or make the index again: python tools/index_shards.py"
            )
        return stamp

    def _file(self, shard: int) -> io.FileIO:
        """A shard, opened; the one that was not used for the longest time is closed for it."""
        file = self._opened.get(shard)
        if file is None:
            if len(self._opened) >= MOST_OPEN:
                self._opened.popitem(last=False)[1].close()
            file = self._opened[shard] = io.FileIO(self._index.shards[shard])
        self._opened.move_to_end(shard)
        return file

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_opened": OrderedDict()}


def _stamp(found: os.stat_result) -> tuple[int, int]:
    """Size in bytes and time of the last change, ns."""
    return found.st_size, found.st_mtime_ns
