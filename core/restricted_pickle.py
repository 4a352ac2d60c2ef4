"""Reading pickled annotations from untrusted sources: plain containers, numbers, bytes, strings and NumPy arrays only.

A pickle names functions that the reader is to call. Here the few names that plain data needs are mapped to harmless
stand-ins and every other name is refused, so that a file can neither run code nor forge an array's memory layout. Its
opcodes are checked first (`core/pickle_stream.py`), so that it can take neither the process nor the machine down.
"""

import io
import math
import pickle
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from core.errors import UserError
from core.files import reading, require_file
from core.pickle_stream import AT_LEAST, CHOSEN_KEYS, SHARED, check_pickle

__all__ = ["load_plain_pickle"]

ARRAY_KINDS = "biufcSUO"
"""NumPy kinds of plain values: booleans, numbers, bytes, strings; objects, which are plain data themselves since only
such data are built. No structures.
"""
MAX_LEVELS = 100
"""Of containers in containers."""
MAX_AXES = 8
"""Of an array: an array of few bytes and many axes of length 1 becomes many lists where it is made a list."""
TYPE = re.compile("[a-zA-Z?][0-9]*")
"""What NumPy writes for a type, but none of the types that it reads from longer texts."""


def load_plain_pickle(path: str | Path, encoding: str = "bytes") -> Any:
    """The content of the pickle at `path`, if it is plain data.

    `encoding` is for the 8-bit strings of Python 2 pickles: "bytes" keeps them, "ASCII" makes them strings. Arrays come
    as (a subclass of) `numpy.ndarray`. What comes is a tree, at most 100 levels deep: containers that are shared are
    so often only that a walk over them ends soon, and none holds itself. `UserError` naming the file if it is missing,
    is not a pickle, holds no such tree, or asks for anything but dict, list, tuple, set, numbers, bytes, strings and
    arrays of these, which it names. Memory: the file, besides the content.
    """
    path = require_file(path, "annotation file")
    with reading(path, "pickle"):
        data = path.read_bytes()
        check_pickle(data, depth=MAX_LEVELS)
        # the buffer spares the machine a call for each opcode
        return _PlainUnpickler(io.BufferedReader(io.BytesIO(data)), encoding, path, len(data)).load()


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, file: Any, encoding: str, path: Path, size: int):
        super().__init__(file, encoding=encoding)
        self.path, self.stand_ins = path, _StandIns(size)

    def find_class(self, module: str, name: str) -> Any:
        try:
            return getattr(self.stand_ins, _NAMES[module, name])
        except KeyError:
            raise UserError(
                f"{self.path} asks to build {module}.{name}: only plain containers, numbers, bytes, strings and NumPy "
                "arrays are read from a pickle"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise UserError(f"{self.path} refers to objects outside the file: only plain pickles are read")


class _Dtype:
    """What the stand-in of `numpy.dtype` gives: a type's letter, size and byte order, and nothing else of its state."""

    __slots__ = ("value",)

    def __init__(self, value: np.dtype):
        self.value = value

    def __setstate__(self, state: tuple) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order in ("<", ">"):
            self.value = self.value.newbyteorder(order)


class _Array(np.ndarray):
    """An array whose memory comes from bytes of exactly the right length, or of objects from a list of that length."""

    stand_ins: "_StandIns"

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, data = state
        if isinstance(dtype, _Dtype) and dtype.value.kind == "O":
            plain = self.stand_ins.from_objects(data, shape)
            content, is_fortran = plain.ravel().tolist(), False
        else:
            plain = self.stand_ins.from_bytes(data, dtype, shape, "F" if is_fortran else "C")
            content = plain.tobytes("A")
        del self.stand_ins
        # the stub wants NumPy's own bool, the method Python's
        super().__setstate__((1, plain.shape, plain.dtype, bool(is_fortran), content))  # pyrefly: ignore[bad-argument-type]


class _StandIns:
    """What a file may call, in place of the functions that it names.

    Made anew for each file, which gets to hold bound methods alone: nothing that it could change outlives it.
    """

    ndarray = "numpy.ndarray"

    def __init__(self, size: int):
        self.left = SHARED * size + AT_LEAST
        """Bytes that the functions may make, from strings of the file that may be used again and again."""
        self.rows_left = size
        """Rows of arrays without content, each of which becomes a list where the array is made a list."""

    def spend(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            raise ValueError("its arrays hold more than the file")

    def make_dtype(self, code: str | bytes, *options: Any) -> _Dtype:
        code = code.decode("ascii") if isinstance(code, bytes) else code
        if not TYPE.fullmatch(code) or np.dtype(code).kind not in ARRAY_KINDS:
            raise ValueError(f"arrays of type {code[:100]} are not read")
        return _Dtype(np.dtype(code))

    def empty_array(self, *kind: Any) -> np.ndarray:
        """What `numpy`'s `_reconstruct` makes before the array's state is set."""
        array = _Array((0,), dtype=np.uint8)
        array.stand_ins = self
        return array

    def array_in_buffer(
        self,
        data: bytes,
        dtype: _Dtype,
        shape: tuple[int, ...],
        order: Literal["C", "F"],
        axes: tuple[int, ...] | None = None,
    ) -> np.ndarray:
        """The form of protocol 5. With `axes` (order "K") the bytes fill `shape`, whose axes are then permuted."""
        if axes is None:
            return self.from_bytes(data, dtype, shape, order)
        return self.from_bytes(data, dtype, shape).transpose(axes)

    def scalar(self, dtype: _Dtype, data: bytes) -> Any:
        return self.from_bytes(data, dtype, ())[()]

    def from_bytes(
        self, data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: Literal["C", "F"] = "C"
    ) -> np.ndarray:
        if not isinstance(dtype, _Dtype) or dtype.value.kind == "O" or not isinstance(data, bytes | bytearray):
            raise ValueError("an array without a plain type or without its bytes")
        self.spend(len(data))
        self.check_shape(shape)
        if dtype.value.kind == "U":  # which NumPy does not check, and cannot make a string of
            letters = np.frombuffer(data, np.dtype("u4").newbyteorder(dtype.value.byteorder))
            if letters.max(initial=0) > sys.maxunicode:
                raise ValueError("an array of text with letters that are none")
        return np.frombuffer(bytes(data), dtype.value).reshape(shape, order=order).copy(order)

    def from_objects(self, objects: list, shape: tuple[int, ...]) -> np.ndarray:
        if not isinstance(objects, list):
            raise ValueError("an array of objects without their list")
        self.check_shape(shape)
        array = np.empty(len(objects), object)
        for i, item in enumerate(objects):  # one at a time: NumPy would take nested lists for further axes
            array[i] = item
        return array.reshape(shape)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        if not isinstance(shape, tuple) or len(shape) > MAX_AXES:
            raise ValueError(f"an array whose shape is no tuple of at most {MAX_AXES} lengths")
        if 0 in shape:
            self.rows_left -= math.prod(shape[: shape.index(0)])
            if self.rows_left < 0:
                raise ValueError("its arrays without content have more rows than the file has bytes")

    def encode(self, text: str, codec: str) -> bytes:
        """How Python 3 writes bytes in the old pickle protocols: as text in Latin-1."""
        if codec not in ("latin1", "latin-1"):
            raise ValueError(f"bytes written in {codec[:100]} are not read")
        self.spend(len(text))
        return text.encode("latin-1")

    def make_bytes(self, *content: bytes) -> bytes:
        """`bytes()` and `bytes(b"...")`, but not `bytes(10 ** 12)`."""
        self.spend(sum(map(len, content)))
        return b"".join(content)

    def make_bytearray(self, content: bytes | str = b"", codec: str = "latin-1") -> bytearray:
        return bytearray(self.encode(content, codec) if isinstance(content, str) else self.make_bytes(content))

    def make_complex(self, real: float, imag: float = 0.0) -> complex:
        return complex(float(real), float(imag))

    def make_set(self, members: Iterable = ()) -> set:
        return self.collect(set, members)

    def make_frozenset(self, members: Iterable = ()) -> frozenset:
        return self.collect(frozenset, members)

    def collect(self, kind: Callable[[Iterable], Any], members: Iterable) -> Any:
        """The members in a set; `ValueError` where the writer of the file could choose the hashes of too many."""
        if not isinstance(members, list | tuple):
            raise ValueError("a set of what is no list")
        if sum(map(_has_chosen_hash, members)) > CHOSEN_KEYS:
            raise ValueError(f"more than {CHOSEN_KEYS} members of a set are neither text nor small numbers")
        return kind(members)


def _has_chosen_hash(value: Any) -> bool:
    small = isinstance(value, int) and abs(value) < 2**60
    return not (small or value is None or isinstance(value, str | bytes | float))


_NAMES = {
    ("numpy", "dtype"): "make_dtype",
    ("numpy", "ndarray"): "ndarray",
    ("_codecs", "encode"): "encode",
    **{
        (module, name): f"make_{name}"
        for module in ("builtins", "__builtin__")
        for name in ("set", "frozenset", "complex", "bytes", "bytearray")
    },
    **{
        (f"numpy.{package}.{module}", name): stand_in
        for package in ("core", "_core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", "empty_array"), ("multiarray", "scalar", "scalar"),
            ("numeric", "_frombuffer", "array_in_buffer"),
        )
    },
}  # fmt: skip
"""The functions that plain data needs, by module and name, and their stand-ins."""
