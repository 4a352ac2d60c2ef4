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


def objects(items, shape):
    """An array of objects of that shape; the items may be lists."""
    array = np.empty(len(items), object)
    for i, item in enumerate(items):
        array[i] = item
    return array.reshape(shape)


def described(value):
    """A value to compare: arrays in it by type, shape and content."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind, value.shape, described(value.ravel().tolist())
    return [described(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "array",
    [
        objects([1, 2.5, "text", b"bytes", None, (1, [2])], (2, 3)),
        objects([[1, 2], [3, 4]], (2,)),  # two lists, not a matrix
        objects([np.arange(3), np.array(["a"]), objects(["inner"], (1,))], (3, 1)),
        objects(list(range(24)), (2, 3, 4)).transpose(2, 0, 1),
        np.asfortranarray(objects(["a", "b", "c", "d"], (2, 2))),
        objects([], (0, 2)),
        np.array("alone", dtype=object),
    ],
    ids=range(7),
)
def test_arrays_of_plain_objects_are_read(tmp_path, protocol, array):
    got = load_plain_pickle(write(tmp_path, array, protocol))
    assert isinstance(got, np.ndarray) and got.dtype == object and got.shape == array.shape
    assert described(got) == described(array)


def test_structures_and_forged_arrays_of_objects_are_refused(tmp_path):
    structure = np.zeros(2, dtype=[("a", "i4"), ("b", "O")])
    with pytest.raises(UserError, match="not a readable pickle"):
        load_plain_pickle(write(tmp_path, structure, 2))
    whole = pickle.dumps(objects(["a", "b", "c"], (3,)), 2)
    for shape in (b"K\x02\x85", b"K\x40\x85", b"J\xff\xff\xff\xff\x85"):
        (tmp_path / "forged.pkl").write_bytes(whole.replace(b"K\x03\x85", shape, 1))
        if shape[:1] == b"J":  # -1: as many as there are
            assert load_plain_pickle(tmp_path / "forged.pkl").tolist() == ["a", "b", "c"]
            continue
        with pytest.raises(UserError, match="not a readable pickle"):
            load_plain_pickle(tmp_path / "forged.pkl")


@pytest.mark.parametrize(
    "call",
    [
        b"cnumpy.core.multiarray\nscalar\n",  # scalar(dtype('O'), bytes): an address from the file
        b"cnumpy.core.numeric\n_frombuffer\n",
    ],
)
def test_bytes_are_never_taken_for_objects(tmp_path, call):
    object_type = b"cnumpy\ndtype\nX\x02\x00\x00\x00O8K\x00K\x01\x87R"
    data = b"C\x08\x00\x00\x00\x00\x00\x00\x00\x01"
    if b"scalar" in call:
        content = call + object_type + data + b"\x86R."
    else:
        content = call + b"(" + data + object_type + b"K\x01\x85X\x01\x00\x00\x00CtR."
    (tmp_path / "forged.pkl").write_bytes(b"\x80\x03" + content)
    with pytest.raises(UserError, match="without a plain type"):
        load_plain_pickle(tmp_path / "forged.pkl")


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_objects_in_an_array_are_no_way_round(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    for array in (objects([Shell()], (1,)), objects([[objects([Shell()], (1,))]], (1,))):
        with pytest.raises(UserError, match=r"posix\.system"):
            load_plain_pickle(write(tmp_path, array, protocol))
    assert not (tmp_path / "harm.txt").exists()


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
