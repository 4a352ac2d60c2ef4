"""Arrays of numbers in `.npy` files, read without trust in their headers.

A header is matched, never evaluated, and must promise just the numbers that the file holds, so that no file can ask for
more memory than its own size. Booleans, whole numbers and real numbers of up to 64 bits are read, in any byte order;
objects, text, complex numbers and structures are refused.
"""

import logging
import math
import mmap
import os
import re
import struct
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np

from core.errors import UserError
from core.files import reading, require_file

__all__ = ["MappedArray", "open_array", "open_vector_array", "read_array"]

logger = logging.getLogger(__name__)
MAGIC = b"\x93NUMPY"
ARCHIVE = b"PK\x03\x04"
MOST_HEADER = 10_000
"""Bytes, as NumPy has it."""
AXES = r"\((?:\d{1,18}L?(?:,\d{1,18}L?)*,?)?\)"
FIELD = rf"""['"](descr|fortran_order|shape)['"]:(['"][^'"]*['"]|True|False|{AXES})"""
HEADER = re.compile(rf"\{{{FIELD},{FIELD},{FIELD},?\}}")
"""Without blanks; the fields may come in any order."""
DTYPE = re.compile(r"([<>=|]?)(?:b1|[iu][1248]|f[248])")
LARGEST_AXIS = 1 << 40
"""Of an empty array, whose file does not bound the others."""


class MappedArray(np.memmap):
    """An array in a file that is read when its items are. `UserError` if the file has become shorter meanwhile.

    A process that reads behind the end of a mapped file is killed: the length is looked up each time items are taken.
    """

    def __getitem__(self, items: Any, /) -> Any:
        self.require_whole()
        return super().__getitem__(items)

    def release(self) -> None:
        """Let the system have the memory of what was read: it counts as the process's own until then.

        What is asked for again is read again.
        """
        mapping: mmap.mmap | None = self._mmap  # pyrefly: ignore[missing-attribute]  # in the stub
        if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):  # not on all systems
            mapping.madvise(mmap.MADV_DONTNEED)

    def require_whole(self) -> None:
        """`UserError` if the file is shorter than it was when it was opened."""
        mapping: mmap.mmap | None = self._mmap  # pyrefly: ignore[missing-attribute]  # in the stub
        if mapping is not None and (left := mapping.size()) < len(mapping):
            raise UserError(
                f"{self.filename} has changed while it was used: {left} bytes are left of {len(mapping)}; restore it "
                "or make it again, then repeat the command"
            )


def open_array(
    path: str | Path,
    what: str = "array",
    remedy: str = "write it again with numpy.save",
    mode: Literal["r", "r+"] = "r",
) -> MappedArray:
    """The array in a `.npy` file, memory-mapped, in the type that it is stored in.

    `UserError` that says `what` it is and ends in the `remedy` if there is none, or if its header does not say what the
    file holds.
    """
    dtype, shape, order, offset = _read_header(Path(path), what, remedy)
    with reading(path, f".npy file ({what})", remedy):
        return cast(MappedArray, MappedArray(path, dtype, mode, offset, shape, order))


def read_array(path: str | Path, what: str = "array", remedy: str = "write it again with numpy.save") -> np.ndarray:
    """The array in a `.npy` file, in memory, in the machine's byte order. Errors as of `open_array`."""
    mapped = open_array(path, what, remedy)
    return np.array(mapped[...], mapped.dtype.newbyteorder("="))


def open_vector_array(path: str | Path, what: str = "file of vectors") -> MappedArray:
    """The vectors (N, D), one a row, in a `.npy` file that a user gives: of any real or whole numbers, memory-mapped.

    A line of the log says it where they are to be rounded to float32. `UserError` for anything else.
    """
    remedy = "write the vectors (N, D), one a row, with numpy.save"
    vectors = open_array(path, what, remedy)
    if vectors.ndim != 2 or vectors.shape[1] == 0 or vectors.dtype.kind == "b":
        raise UserError(
            f"{path} is no .npy file of vectors (N, D), one a row: it holds {vectors.dtype} {vectors.shape}; {remedy}"
        )
    if vectors.dtype not in (np.float16, np.float32):
        logger.info("%s: its numbers, %s, are read as float32", path, _name(vectors.dtype))
    return vectors


def _read_header(path: Path, what: str, remedy: str) -> tuple[np.dtype, tuple[int, ...], Literal["C", "F"], int]:
    """Type, shape, order, and where the numbers begin."""
    path = require_file(path, what)
    problem = f"{path} is not a readable .npy file ({what})"
    with reading(path, f".npy file ({what})", remedy), open(path, "rb") as file:
        text, offset = _header_text(file, problem, remedy)
        size = os.fstat(file.fileno()).st_size
    fields = "".join(text.split())
    matched = HEADER.fullmatch(fields)
    values = dict(zip(matched.groups()[::2], matched.groups()[1::2])) if matched else {}
    descr, is_fortran, axes = (values.get(name, "") for name in ("descr", "fortran_order", "shape"))
    if (descr[:1], is_fortran[:1], axes[:1]) not in [(quote, truth, "(") for quote in "'\"" for truth in "TF"]:
        raise UserError(f"{problem}: its header is damaged, or of no plain numbers ({text[:100].strip()!r}); {remedy}")
    if not DTYPE.fullmatch(descr[1:-1]):
        raise UserError(f"{problem}: it holds {_described(descr[1:-1])}, not plain numbers of up to 64 bits; {remedy}")
    dtype = np.dtype(descr[1:-1])
    shape = tuple(int(axis) for axis in re.findall(r"\d+", axes))
    promised, held = math.prod(shape) * dtype.itemsize, size - offset
    if promised != held:
        raise UserError(f"{problem}: its header says {dtype} {shape}, {promised} bytes, but it holds {held}; {remedy}")
    if len(shape) > 32 or max(shape, default=0) > LARGEST_AXIS:
        raise UserError(f"{problem}: no array has the shape that its header says; {remedy}")
    return dtype, shape, "F" if is_fortran == "True" else "C", offset


def _header_text(file: BinaryIO, problem: str, remedy: str) -> tuple[str, int]:
    """The header, and where it ends."""
    start = file.read(len(MAGIC) + 2)
    if start.startswith(ARCHIVE):
        raise UserError(f"{problem}: it is an archive of arrays (.npz); save the array alone with numpy.save")
    if not start.startswith(MAGIC):
        raise UserError(f"{problem}: it does not begin as one; {remedy}")
    kind = {1: "<H", 2: "<I", 3: "<I"}.get(start[-2]) if len(start) == len(MAGIC) + 2 else None
    if kind is None:
        raise UserError(f"{problem}: its version is not known; {remedy}")
    packed = file.read(struct.calcsize(kind))
    length = struct.unpack(kind, packed)[0] if len(packed) == struct.calcsize(kind) else MOST_HEADER + 1
    text = file.read(min(length, MOST_HEADER))
    if length > MOST_HEADER or len(text) < length:
        raise UserError(f"{problem}: its header is cut off, or longer than {MOST_HEADER} bytes; {remedy}")
    return text.decode("latin-1"), file.tell()


def _described(descr: str) -> str:
    kinds = {"c": "complex numbers", "U": "text", "S": "text", "a": "text", "O": "Python objects", "V": "raw memory"}
    kind = descr.lstrip("<>=|")[:1]
    return f"{kinds.get(kind, 'numbers of another kind')} ({descr[:40]})"


def _name(dtype: np.dtype) -> str:
    """Such as float64, or big-endian float32."""
    return ("" if dtype.isnative else "big-endian ") + dtype.newbyteorder("=").name
