"""MXNet's indexed RecordIO, read and written without MXNet, byte for byte in both directions.

`PREFIX.idx` has a line `key<TAB>offset` for each record. `PREFIX.rec` has at each offset `magic u32 | lrec u32 | data`,
little endian, padded with zeros to a multiple of 4 bytes; `lrec` is a flag in the upper 3 bits and the length of `data`
in the lower 29. Where the magic word occurs in `data` at a multiple of 4 the record is split there, without the word,
into parts with the flags 1 (first), 2 (middle) and 3 (last); flag 0 is a whole record. `data` is an `IRHeader` (flag
u32, label f32, id u64, id2 u64), then `flag` float32 labels if flag > 0, then the payload, usually an encoded image.
"""

import io
import os
import re
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
import polars as pl

from core.errors import UserError
from core.files import require_file
from core.outputs import replaced_together

__all__ = ["FIRST_WORDS", "MAGIC", "Heads", "RecordFile", "RecordReader", "RecordWriter", "pack", "unpack"]

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
LENGTH_BITS = 29
LENGTH_MASK = (1 << LENGTH_BITS) - 1
WHOLE, FIRST, MIDDLE, LAST = range(4)
FRAME = struct.Struct("<II")
HEADER = struct.Struct("<IfQQ")
FIRST_WORDS = 9
"""Of 4 bytes: a record's frame, its header, and the first label behind that."""
MOST_LABELS = 1 << 20
"""Of a record: a larger number is damage."""
LIKELY_SIZE, MOST_AT_ONCE = 1 << 14, 1 << 20
"""Bytes that are read where the size of a record is not known, and until its header says that it is larger."""


def pack(index: int, label: float | Sequence[float], payload: bytes) -> bytes:
    """The data of an image record: IRHeader with id `index` and id2 0, the labels, the payload.

    One label is stored in the header (flag 0), several follow it as float32 (flag: their number, header label 0).
    """
    labels = np.atleast_1d(np.asarray(label, dtype="<f4"))
    if labels.ndim != 1 or not labels.size:
        raise ValueError(f"a record needs one label or a flat sequence of labels, got {label!r}")
    if labels.size == 1:
        return HEADER.pack(0, labels[0], index, 0) + payload
    return HEADER.pack(labels.size, 0.0, index, 0) + labels.tobytes() + payload


def unpack(data: bytes | memoryview) -> tuple[tuple[float, ...], bytes | memoryview]:
    """Labels and payload of an image record's data (the payload is a slice of `data`); `ValueError` if truncated."""
    if len(data) < HEADER.size:
        raise ValueError(f"{len(data)} bytes are too few for an image record, whose header alone has {HEADER.size}")
    flag, label, _, _ = HEADER.unpack_from(data)
    if flag == 0:
        return (label,), data[HEADER.size :]
    if flag > MOST_LABELS:
        raise ValueError(f"its header promises {flag} labels")
    end = HEADER.size + 4 * flag
    if end > len(data):
        raise ValueError(f"its header promises {flag} labels, but it ends after {len(data)} bytes")
    return struct.unpack_from(f"<{flag}f", data, HEADER.size), data[end:]


class Heads:
    """What N records say of themselves, from their first words uint32 (N, 9) and the bytes (N,) from each one's begin.

    `whole` (N,): an image record in one part, undamaged as far as the words tell; only of such ones the other arrays
    hold: first `labels` float32 (N,), and the byte of the record at which the payload begins and ends.
    """

    def __init__(self, words: np.ndarray, room: np.ndarray):
        magic, lrec, flag, single = words[:, :4].T
        labels_end = FRAME.size + HEADER.size + 4 * flag.astype(np.int64)
        self.begin, self.end = labels_end, FRAME.size + (lrec & LENGTH_MASK).astype(np.int64)
        self.whole = (magic == MAGIC) & (lrec >> LENGTH_BITS == WHOLE) & (self.end <= room)
        self.whole &= (flag <= MOST_LABELS) & (labels_end <= self.end)
        self.labels = np.where(flag > 0, words[:, 8], single).view("<f4")


class RecordFile:
    """A .rec file, read through its descriptor: one that is cut short meanwhile would kill the readers of a memory map.

    Opened at once, and again where a process that it is pickled to first reads from it; forked ones share the
    descriptor, which has no position. `size` in bytes is that of the first opening. `UserError` if the file is missing
    or, in a later process, not the one that was opened first.
    """

    def __init__(self, path: str | Path):
        self.path = require_file(path, "record file")
        self._opened: io.FileIO | None = io.FileIO(self.path)
        self._closed = False
        self._stamp = self._present_stamp()
        self.size = self._stamp[0]

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from `offset` on, fewer than `length` where the file ends."""
        return os.pread((self._opened or self._open_again()).fileno(), length, offset)

    def read_into(self, buffer: np.ndarray, offset: int) -> None:
        """Fill `buffer` from `offset` on; `UserError` if the file ends before."""
        if os.preadv((self._opened or self._open_again()).fileno(), [buffer.data], offset) < buffer.nbytes:
            self.require_unchanged()
            raise UserError(f"{self.path} cannot be read to its end: check its disk")

    def record(self, offset: int, likely_size: int = LIKELY_SIZE) -> tuple[memoryview, int]:
        """The data of the record at `offset`, parts joined by the magic words that split it, and where the next record
        begins; `ValueError` if it is damaged.

        `likely_size`: in bytes; one call of the system is enough if the record is not larger.
        """
        flag, data, offset = self._part(offset, likely_size)
        if flag == WHOLE:
            return data, offset
        if flag != FIRST:
            raise ValueError(f"it begins with a part of kind {flag}, not 0 or 1")
        joined, count = bytearray(data), 1
        while flag != LAST:
            flag, data, offset = self._part(offset, LIKELY_SIZE)
            if flag not in (MIDDLE, LAST):
                raise ValueError(f"its part {count} is of kind {flag}, not 2 or 3")
            joined += MAGIC_BYTES
            joined += data
            count += 1
            if len(joined) > LENGTH_MASK:
                raise ValueError(f"its {count} parts have more bytes together than the {LENGTH_MASK} of any record")
        return memoryview(joined), offset

    def _part(self, offset: int, likely_size: int) -> tuple[int, memoryview, int]:
        """Kind and data of the part at `offset`, and where the next one begins."""
        begin = offset + FRAME.size
        if begin > self.size:
            raise ValueError(f"it begins at byte {offset}, but the file ends at {self.size}")
        block = self.read(offset, max(likely_size, FRAME.size))
        if len(block) < FRAME.size:
            raise ValueError(f"it begins at byte {offset}, where the file ends now")
        magic, lrec = FRAME.unpack_from(block)
        if magic != MAGIC:
            raise ValueError(f"no magic word at byte {offset}")
        length = lrec & LENGTH_MASK
        end = begin + length
        if end > self.size:
            raise ValueError(f"it reaches to byte {end}, but the file ends at {self.size}")
        if len(block) < FRAME.size + length:
            block += self.read(offset + len(block), FRAME.size + length - len(block))
            if len(block) < FRAME.size + length:
                raise ValueError(f"it reaches to byte {end}, but the file ends before that now")
        data = memoryview(block)[FRAME.size : FRAME.size + length]
        return lrec >> LENGTH_BITS, data, (end + 3) // 4 * 4

    def require_unchanged(self) -> None:
        """`UserError` if the file has been written to since it was opened first."""
        stamp = self._present_stamp()
        if stamp != self._stamp:
            raise UserError(
                f"{self.path} has changed while it was read ({self._stamp[0]} bytes before, {stamp[0]} now): start "
                "again when it is whole, and do not write to records that a program reads"
            )

    def close(self) -> None:
        """Let go of the file."""
        self._opened, self._closed = None, True

    def _open_again(self) -> io.FileIO:
        if self._closed:
            raise ValueError(f"{self.path}: this file is closed")
        self._opened = io.FileIO(require_file(self.path, "record file"))
        self.require_unchanged()
        return self._opened

    def _present_stamp(self) -> tuple[int, int]:
        """Size in bytes and time of the last change, ns."""
        found = os.fstat((self._opened or self._open_again()).fileno())
        return found.st_size, found.st_mtime_ns

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_opened": None}


class RecordReader:
    """Random access to the records of `prefix`.rec in the order of the lines of `prefix`.idx.

    `reader[i]` is `(labels, payload)` of record i, whatever its key is: a tuple of floats and bytes. A reader may be
    pickled, forked and spawned (see `RecordFile`); memory is 16 bytes a record. A missing file, a malformed index and a
    damaged record raise `UserError` that names the file and the record's number i (the line of the index, from 0).
    """

    def __init__(self, prefix: str | Path):
        self.prefix = str(prefix)
        self.file = RecordFile(f"{prefix}.rec")
        index = Path(f"{prefix}.idx")
        if not index.exists():
            raise UserError(f"index of the record file not found: {index}; {_make_again(index)}")
        self.keys, self.offsets = _read_index(require_file(index, "index of the record file"))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, i: int) -> tuple[tuple[float, ...], bytes]:
        labels, payload = self.view(i)
        return labels, bytes(payload)

    def view(self, i: int) -> tuple[tuple[float, ...], bytes | memoryview]:
        """As `reader[i]`, but the payload is not copied again."""
        data = self._read(i)[0]
        try:
            return unpack(data)
        except ValueError as error:
            raise self.damaged(i, str(error)) from None

    def views(self, records: np.ndarray) -> tuple[np.ndarray, list[bytes | memoryview]]:
        """First labels float32 (B,) and payloads of `records` int64 (B,), as of `view`, in half its time."""
        offsets = self.offsets[records]
        ends = self.offsets[np.minimum(records + 1, len(self.offsets) - 1)]
        sizes = np.where((ends > offsets) & (ends - offsets <= MOST_AT_ONCE), ends - offsets, LIKELY_SIZE)
        blocks = [self.file.read(offset, size) for offset, size in zip(offsets.tolist(), sizes.tolist())]
        starts = b"".join([block[: 4 * FIRST_WORDS].ljust(4 * FIRST_WORDS, b"\0") for block in blocks])
        heads = Heads(np.frombuffer(starts, "<u4").reshape(-1, FIRST_WORDS), np.array([len(block) for block in blocks]))
        parts = zip(blocks, heads.begin.tolist(), heads.end.tolist())
        payloads: list[bytes | memoryview] = [memoryview(block)[begin:end] for block, begin, end in parts]
        for i in np.flatnonzero(~heads.whole).tolist():  # larger than looked for, in several parts, or damaged
            labels, payloads[i] = self.view(int(records[i]))
            heads.labels[i] = labels[0]
        return heads.labels, payloads

    def end(self, i: int) -> int:
        """The byte of the file at which record i ends and the next one begins."""
        return self._read(i)[1]

    def _read(self, i: int) -> tuple[memoryview, int]:
        if not 0 <= i < len(self.keys):
            raise IndexError(f"record {i} of {self.prefix}.rec, which has {len(self.keys)}")
        offset = int(self.offsets[i])
        size = int(self.offsets[i + 1]) - offset if i + 1 < len(self.offsets) else LIKELY_SIZE
        try:
            return self.file.record(offset, size if 0 < size <= MOST_AT_ONCE else LIKELY_SIZE)
        except ValueError as error:
            raise self.damaged(i, str(error)) from None

    def damaged(self, i: int, what: str) -> UserError:
        """The error for record i, with the file, its number and, where that differs, its key.

        Another one if the file has changed.
        """
        self.file.require_unchanged()
        key = f" (key {self.keys[i]})" if self.keys[i] != i else ""
        return UserError(f"{self.file.path}: record {i}{key} is damaged: {what}; copy or make the file again")

    def close(self) -> None:
        """Let go of the file."""
        self.file.close()

    def __enter__(self) -> "RecordReader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _read_index(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Keys and offsets (int64, each (records,)) of an .idx file; `UserError` with file and record of a bad line."""
    if not path.stat().st_size:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    try:
        table = pl.read_csv(
            path.read_bytes(),
            has_header=False,
            separator="\t",
            quote_char=None,
            schema={"key": pl.Int64, "offset": pl.Int64},
        )
    except pl.exceptions.PolarsError:
        raise _malformed(path) from None
    if sum(table.null_count().row(0)) or (table.min_horizontal() < 0).any():
        raise _malformed(path)
    return table["key"].to_numpy(), table["offset"].to_numpy()


def _malformed(path: Path) -> UserError:
    """The error for the first line of an index that is not two numbers."""
    lines = path.read_bytes().splitlines()
    number = next((n for n, line in enumerate(lines) if not re.fullmatch(rb"[0-9]{1,18}\t[0-9]{1,18}", line)), 0)
    return UserError(
        f"{path}: the line of record {number} is {lines[number][:60].decode('ascii', 'replace')!r}, not "
        f"key<TAB>offset; copy the file again, or {_make_again(path)}"
    )


def _make_again(index: Path) -> str:
    return f"make it from the .rec file: python tools/index_records.py {index.with_suffix('.rec')}"


class RecordWriter:
    """Writes `prefix`.rec and `prefix`.idx record by record, exactly the bytes that MXNet would.

    Both files are written under temporary names and renamed by `close()` (or at the end of a `with` block); when the
    block raises, both are removed and older files of these names stay. The parent folder must exist (`UserError`).
    """

    def __init__(self, prefix: str | Path):
        self.prefix = str(prefix)
        self._offset = 0
        with ExitStack() as stack:
            rec, idx = stack.enter_context(replaced_together(f"{prefix}.rec", f"{prefix}.idx"))
            self._rec = stack.enter_context(open(rec, "wb", buffering=1 << 20))
            self._idx = stack.enter_context(open(idx, "w", encoding="ascii", newline="\n"))
            self._files = stack.pop_all()

    def write(self, index: int, label: float | Sequence[float], payload: bytes) -> None:
        """Append a record with key and id `index`, one or more labels (float32) and the payload."""
        data = pack(index, label, payload)
        if len(data) > LENGTH_MASK:
            raise ValueError(
                f"record {index} of {self.prefix}.rec has {len(data)} bytes; RecordIO allows {LENGTH_MASK}"
            )
        self._idx.write(f"{index}\t{self._offset}\n")
        begin, flag = 0, WHOLE
        place = data.find(MAGIC_BYTES)
        while place >= 0:
            if place % 4:
                place = data.find(MAGIC_BYTES, place + 1)
                continue
            flag = FIRST if begin == 0 else MIDDLE
            self._write_part(flag, data[begin:place])
            begin = place + 4
            place = data.find(MAGIC_BYTES, begin)
        self._write_part(WHOLE if flag == WHOLE else LAST, data[begin:])

    def _write_part(self, flag: int, data: bytes) -> None:
        padding = -len(data) % 4
        self._rec.write(FRAME.pack(MAGIC, flag << LENGTH_BITS | len(data)) + data + bytes(padding))
        self._offset += FRAME.size + len(data) + padding

    def flush(self) -> None:
        """Hand to the system what is still in memory: a full disk is reported now."""
        self._rec.flush()
        self._idx.flush()

    def close(self) -> None:
        """Finish both files and rename them. At no time is there an index beside the records of another file."""
        with self._files:
            if not self._rec.closed:
                self._rec.close()
                self._idx.close()

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._files.__exit__(kind, error, trace)
