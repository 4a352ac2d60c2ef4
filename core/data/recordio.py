"""MXNet's indexed RecordIO, read and written without MXNet, byte for byte in both directions.

`PREFIX.idx` has a line `key<TAB>offset` for each record. `PREFIX.rec` has at each offset `magic u32 | lrec u32 | data`,
little endian, padded with zeros to a multiple of 4 bytes; `lrec` is a flag in the upper 3 bits and the length of `data`
in the lower 29. Where the magic word occurs in `data` at a multiple of 4 the record is split there, without the word,
into parts with the flags 1 (first), 2 (middle) and 3 (last); flag 0 is a whole record. `data` is an `IRHeader` (flag
u32, label f32, id u64, id2 u64), then `flag` float32 labels if flag > 0, then the payload, usually an encoded image.
"""

import mmap
import re
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
import polars as pl

from core.errors import UserError
from core.files import replaced_together, require_file

__all__ = ["MAGIC", "RecordReader", "RecordWriter", "pack", "read_data", "unpack"]

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
LENGTH_BITS = 29
LENGTH_MASK = (1 << LENGTH_BITS) - 1
WHOLE, FIRST, MIDDLE, LAST = range(4)
FRAME = struct.Struct("<II")
HEADER = struct.Struct("<IfQQ")


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
    end = HEADER.size + 4 * flag
    if end > len(data):
        raise ValueError(f"its header promises {flag} labels, but it ends after {len(data)} bytes")
    return struct.unpack_from(f"<{flag}f", data, HEADER.size), data[end:]


class RecordReader:
    """Random access to the records of `prefix`.rec in the order of the lines of `prefix`.idx.

    `reader[i]` is `(labels, payload)` of record i, whatever its key is: a tuple of floats and bytes. The file is mapped
    into memory when a process first reads from it, so a reader may be pickled, forked and spawned; memory besides the
    mapping is 16 bytes a record. A missing file, a malformed index and a damaged record raise `UserError` that
    names the file and the record's number i (the line of the index, from 0).
    """

    def __init__(self, prefix: str | Path):
        self.prefix = str(prefix)
        self.rec_path = require_file(f"{prefix}.rec", "record file")
        index = Path(f"{prefix}.idx")
        if not index.exists():
            raise UserError(f"index of the record file not found: {index}; {_make_again(index)}")
        self.keys, self.offsets = _read_index(require_file(index, "index of the record file"))
        self._view: memoryview | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, i: int) -> tuple[tuple[float, ...], bytes]:
        labels, payload = self.view(i)
        return labels, bytes(payload)

    def view(self, i: int) -> tuple[tuple[float, ...], bytes | memoryview]:
        """As `reader[i]`, but the payload is not copied: it lies in the mapped file unless the record is split."""
        data = self._read(i)[0]
        try:
            return unpack(data)
        except ValueError as error:
            raise self.damaged(i, str(error)) from None

    def end(self, i: int) -> int:
        """The byte of the file at which record i ends and the next one begins."""
        return self._read(i)[1]

    def _read(self, i: int) -> tuple[memoryview | bytes, int]:
        if not 0 <= i < len(self.keys):
            raise IndexError(f"record {i} of {self.prefix}.rec, which has {len(self.keys)}")
        file = self.file
        try:
            return read_data(file, int(self.offsets[i]))
        except ValueError as error:
            raise self.damaged(i, str(error)) from None

    def damaged(self, i: int, what: str) -> UserError:
        """The error for record i, with the file, its number and, where that differs, its key."""
        key = f" (key {self.keys[i]})" if self.keys[i] != i else ""
        return UserError(f"{self.rec_path}: record {i}{key} is damaged: {what}; copy or make the file again")

    @property
    def file(self) -> memoryview:
        """The whole mapped .rec file, read only."""
        if self._closed:
            raise ValueError(f"{self.prefix}.rec: this reader is closed")
        if self._view is None:
            with open(self.rec_path, "rb") as handle:
                empty = not handle.seek(0, 2)
                self._view = memoryview(b"" if empty else mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ))
        return self._view

    def close(self) -> None:
        """Release the mapping; payload views returned before stay valid."""
        self._view, self._closed = None, True

    def __enter__(self) -> "RecordReader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_view": None}


def read_data(file: memoryview, offset: int) -> tuple[memoryview | bytes, int]:
    """The data of the record at `offset`, parts joined by the magic words that split it, and where the next record
    begins; `ValueError` if it is damaged.
    """
    flag, data, offset = _read_part(file, offset)
    if flag == WHOLE:
        return data, offset
    if flag != FIRST:
        raise ValueError(f"it begins with a part of kind {flag}, not 0 or 1")
    parts = [data]
    while flag != LAST:
        flag, data, offset = _read_part(file, offset)
        if flag not in (MIDDLE, LAST):
            raise ValueError(f"its part {len(parts)} is of kind {flag}, not 2 or 3")
        parts.append(data)
    return MAGIC_BYTES.join(parts), offset


def _read_part(file: memoryview, offset: int) -> tuple[int, memoryview, int]:
    """Kind and data of the part at `offset`, and where the next one begins."""
    begin = offset + FRAME.size
    if begin > len(file):
        raise ValueError(f"it begins at byte {offset}, but the file ends at {len(file)}")
    magic, lrec = FRAME.unpack_from(file, offset)
    if magic != MAGIC:
        raise ValueError(f"no magic word at byte {offset}")
    end = begin + (lrec & LENGTH_MASK)
    if end > len(file):
        raise ValueError(f"it reaches to byte {end}, but the file ends at {len(file)}")
    return lrec >> LENGTH_BITS, file[begin:end], (end + 3) // 4 * 4


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
