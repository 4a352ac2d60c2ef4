"""Reading pickled annotations from untrusted sources: plain containers, numbers, bytes, strings and NumPy arrays only.

A pickle names functions that the reader is to call. Here the few names that plain data needs are mapped to harmless
stand-ins and every other name is refused, so that a file can neither run code nor forge an array's memory layout.
"""

import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np

from core.errors import UserError
from core.files import require_file

__all__ = ["load_plain_pickle"]

ARRAY_KINDS = "biufcSUO"
"""NumPy kinds of plain values: booleans, numbers, bytes, strings; objects, which are plain data themselves since only
such data are built. No structures.
"""


def load_plain_pickle(path: str | Path, encoding: str = "bytes") -> Any:
    """The content of the pickle at `path`, if it is plain data.

    `encoding` is for the 8-bit strings of Python 2 pickles: "bytes" keeps them, "ASCII" makes them strings. Arrays come
    as (a subclass of) `numpy.ndarray`. `UserError` naming the file if it is missing, is not a pickle, or asks for
    anything but dict, list, tuple, set, numbers, bytes, strings and arrays of these, which it names.
    """
    path = require_file(path, "annotation file")
    with open(path, "rb") as file:
        try:
            return _PlainUnpickler(file, encoding, path).load()
        except UserError:
            raise
        except Exception as error:  # a damaged pickle can fail in any of its opcodes, with any type of exception
            raise UserError(
                f"{path} is not a readable pickle: {type(error).__name__}: {error}; get the file again"
            ) from error


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, file: Any, encoding: str, path: Path):
        super().__init__(file, encoding=encoding)
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise UserError(
                f"{self.path} asks to build {module}.{name}: only plain containers, numbers, bytes, strings and NumPy "
                "arrays are read from a pickle"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise UserError(f"{self.path} refers to objects outside the file: only plain pickles are read")


class _Dtype:
    """Stands in for `numpy.dtype`: takes a type's letter, size and byte order, and nothing else of its state."""

    def __init__(self, code: str | bytes, *options: Any):
        self.value = np.dtype(code.decode("ascii") if isinstance(code, bytes) else str(code))
        if self.value.kind not in ARRAY_KINDS:
            raise ValueError(f"arrays of type {self.value} are not read")

    def __setstate__(self, state: tuple) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order in ("<", ">"):
            self.value = self.value.newbyteorder(order)


class _Array(np.ndarray):
    """An array whose memory comes from bytes of exactly the right length, or of objects from a list of that length."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, data = state
        if isinstance(dtype, _Dtype) and dtype.value.kind == "O":
            plain = _from_objects(data, shape)
            content, is_fortran = plain.ravel().tolist(), False
        else:
            plain = _from_bytes(data, dtype, shape, "F" if is_fortran else "C")
            content = plain.tobytes("A")
        # the stub wants NumPy's own bool, the method Python's
        super().__setstate__((1, plain.shape, plain.dtype, bool(is_fortran), content))  # pyrefly: ignore[bad-argument-type]


def _from_bytes(data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: Literal["C", "F"] = "C") -> np.ndarray:
    if not isinstance(dtype, _Dtype) or dtype.value.kind == "O" or not isinstance(data, bytes | bytearray):
        raise ValueError("an array without a plain type or without its bytes")
    return np.frombuffer(bytes(data), dtype.value).reshape(shape, order=order).copy(order)


def _from_objects(objects: list, shape: tuple[int, ...]) -> np.ndarray:
    if not isinstance(objects, list):
        raise ValueError("an array of objects without their list")
    array = np.empty(len(objects), object)
    for i, item in enumerate(objects):  # one at a time: NumPy would take nested lists for further axes
        array[i] = item
    return array.reshape(shape)


def _empty_array(*kind: Any) -> np.ndarray:
    """What `numpy`'s `_reconstruct` makes before the array's state is set."""
    return _Array((0,), dtype=np.uint8)


def _array_in_buffer(
    data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: Literal["C", "F"], axes: tuple[int, ...] | None = None
) -> np.ndarray:
    """The form of protocol 5. With `axes` (order "K") the bytes fill `shape`, whose axes are then permuted."""
    if axes is None:
        return _from_bytes(data, dtype, shape, order)
    return _from_bytes(data, dtype, shape).transpose(axes)


def _scalar(dtype: _Dtype, data: bytes) -> Any:
    return _from_bytes(data, dtype, ())[()]


def _encode(text: str, codec: str) -> bytes:
    """How Python 3 writes bytes in the old pickle protocols: as text in Latin-1."""
    if codec not in ("latin1", "latin-1"):
        raise ValueError(f"bytes written in {codec} are not read")
    return text.encode("latin-1")


def _bytes(*content: bytes) -> bytes:
    """`bytes()` and `bytes(b"...")`, but not `bytes(10 ** 12)`."""
    return b"".join(content)


def _bytearray(content: bytes | str = b"", codec: str = "latin-1") -> bytearray:
    return bytearray(_encode(content, codec) if isinstance(content, str) else _bytes(content))


_STAND_INS = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): "numpy.ndarray",
    ("_codecs", "encode"): _encode,
    **{
        (module, name): stand_in
        for module in ("builtins", "__builtin__")
        for name, stand_in in {
            "set": set, "frozenset": frozenset, "complex": complex, "bytes": _bytes, "bytearray": _bytearray,
        }.items()
    },
    **{
        (f"numpy.{package}.{module}", name): stand_in
        for package in ("core", "_core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _empty_array), ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _array_in_buffer),
        )
    },
}  # fmt: skip
