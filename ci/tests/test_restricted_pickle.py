import base64
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest

from core.errors import UserError
from core.restricted_pickle import load_plain_pickle

PLAIN = {
    "list": [1, -2.5, True, None, "text", b"bytes", 1 + 2j, 2**80],
    "tuple": ((), (1,), {3, 4}, frozenset([5]), bytearray(b"\x00\xff"), b""),
    "bytes": b"\x00\x80\xff",
}
ARRAYS = [
    np.arange(12, dtype=np.int64).reshape(3, 4),
    np.arange(12.0, dtype=">f4").reshape(3, 4).T,
    np.array([True, False]),
    np.zeros((0, 3)),
    np.array(3.5),
    np.array(["ab", "c"]),
    np.array([b"x", b"yz"]),
    np.arange(24, dtype=np.uint8).reshape(2, 3, 4).transpose(1, 0, 2),
]


def write(tmp_path, content, protocol):
    path = tmp_path / "data.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_and_arrays_are_read_from_every_protocol(tmp_path, protocol):
    assert load_plain_pickle(write(tmp_path, PLAIN, protocol)) == PLAIN
    loaded = load_plain_pickle(write(tmp_path, [*ARRAYS, np.float32(1.5), np.bool_(True), np.int16(-3)], protocol))
    for got, expected in zip(loaded, ARRAYS):
        assert got.dtype.newbyteorder("=") == expected.dtype.newbyteorder("=") and got.shape == expected.shape
        np.testing.assert_array_equal(np.asarray(got), expected)
    assert loaded[-3:] == [1.5, True, -3] and loaded[-3].dtype == np.float32


def test_python_2_pickle_of_strings_and_arrays_is_read(tmp_path):
    # written by hand in the form of Python 2's protocol 2: ([str], [bool], numpy.array([1, 2], dtype='<i4'))
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85"
        b"cnumpy\ndtype\nU\x02i4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x08\x01\x00\x00\x00\x02\x00\x00\x00tb"
    )
    path = tmp_path / "python2.pkl"
    path.write_bytes(b"\x80\x02]U\x03\xff\xd8\x00a]\x88a" + array + b"\x87.")
    strings, flags, numbers = load_plain_pickle(path)
    assert strings == [b"\xff\xd8\x00"] and flags == [True]
    np.testing.assert_array_equal(np.asarray(numbers), [1, 2])


class Shell:
    def __reduce__(self):
        return os.system, ("echo harm > harm.txt",)


@pytest.mark.parametrize(
    ("content", "refused"),
    [
        (Shell(), "posix.system"),
        (OrderedDict(a=1), "collections.OrderedDict"),
        (np.random.default_rng(0), "numpy.random"),
        (print, "builtins.print"),
    ],
)
def test_anything_else_is_refused_by_name_and_not_run(tmp_path, monkeypatch, content, refused):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, [content], 4)
    with pytest.raises(UserError, match=refused) as caught:
        load_plain_pickle(path)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "harm.txt").exists()


def test_arrays_of_objects_and_structures_are_refused(tmp_path):
    for array in (np.array([{}, []], dtype=object), np.zeros(2, dtype=[("a", "i4"), ("b", "O")])):
        with pytest.raises(UserError, match="not a readable pickle"):
            load_plain_pickle(write(tmp_path, array, 2))


def test_forged_shape_and_damaged_pickles_are_refused_with_the_file_named(tmp_path):
    whole = pickle.dumps(np.arange(4, dtype=np.uint8), 2)
    forged = whole.replace(b"K\x04\x85", b"K\x40\x85")
    assert forged != whole
    for content in (forged, whole[:-20], b"", b"no pickle at all", base64.b64encode(whole)):
        path = tmp_path / "damaged.bin"
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged.bin"):
            load_plain_pickle(path)
    with pytest.raises(UserError, match="not found"):
        load_plain_pickle(tmp_path / "missing.bin")
