"""Arrays in files: read as NumPy reads them, refused in a line where the header is not to be trusted."""

import os
import struct
import warnings

import numpy as np
import pytest
from limited_child import line_of

from core.arrays import open_array, open_vector_array, read_array
from core.errors import UserError

RNG = np.random.default_rng(0)
GOOD = [
    RNG.normal(size=(5, 3)).astype(kind) for kind in ("<f2", "<f4", "<f8", ">f2", ">f4", ">f8")
] + [
    np.asfortranarray(RNG.normal(size=(4, 6))), np.arange(7, dtype=">i2"), np.array(2.5), np.zeros((0, 4), np.float32),
    np.array([True, False]), np.arange(8, dtype=np.uint8).reshape(2, 2, 2), np.zeros((3, 0), np.int64),
]  # fmt: skip


def saved(path, array, version=None):
    with open(path, "wb") as file:
        np.lib.format.write_array(file, array, version)
    return path


def planted(path, header, data=b"", version=1):
    """A file with a header of one's own."""
    text = header.encode("latin-1") + b"\n"
    size = struct.pack("<H" if version == 1 else "<I", len(text))
    path.write_bytes(b"\x93NUMPY" + bytes((version, 0)) + size + text + data)
    return path


def header(descr="'<f4'", order="False", shape="(2, 3)"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("array", GOOD, ids=lambda array: f"{array.dtype.str}{array.shape}")
def test_arrays_are_read_as_numpy_reads_them(tmp_path, array, version):
    path = saved(tmp_path / "a.npy", array, version)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.load(path)
    found, mapped = read_array(path), open_array(path)
    for got in (found, np.asarray(mapped)):
        np.testing.assert_array_equal(got, expected)
        assert got.flags.f_contiguous == expected.flags.f_contiguous
    assert mapped.dtype == expected.dtype and found.dtype == expected.dtype.newbyteorder("=")


def test_headers_of_other_writers_are_understood(tmp_path):
    data = np.arange(6, dtype="<f4").tobytes()
    for text in (
        '{"shape":(2,3),"descr":"<f4","fortran_order":False}',
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 3L)}",
        "  {'fortran_order':False,\n 'shape': ( 2 , 3 ,) , 'descr' : '<f4'}   ",
    ):
        np.testing.assert_array_equal(read_array(planted(tmp_path / "a.npy", text, data)), np.arange(6.0).reshape(2, 3))


BAD = {
    "more than the file": (header(shape="(2, 4)"), "its header says float32 .2, 4., 32 bytes, but it holds 24"),
    "less than the file": (header(shape="(2, 2)"), "16 bytes, but it holds 24"),
    "absurd": (header(shape="(999999999999, 512)"), "but it holds 24"),
    "beyond 64 bits": (header(shape="(9999999999, 9999999999, 9999999999)"), "but it holds 24"),
    "number of 5,000 digits": (header(shape=f"({'9' * 5000},)"), "header is damaged"),
    "negative": (header(shape="(-2, -3)"), "header is damaged"),
    "no tuple": (header(shape="6"), "header is damaged"),
    "call": (header(shape="(2, __import__('os'))"), "header is damaged"),
    "complex": (header("'<c8'", shape="(3,)"), "complex numbers"),
    "text": (header("'<U3'", shape="(2,)"), "text"),
    "objects": (header("'|O'", shape="(3,)"), "Python objects"),
    "structure": (header("[('x', '<f4')]"), "of no plain numbers"),
    "128 bits": (header("'<f16'"), "numbers of another kind"),
    "dates": (header("'<M8[s]'"), "numbers of another kind"),
    "no kind": (header("'hello'"), "numbers of another kind"),
    "two shapes": ("{'descr': '<f4', 'shape': (2, 3), 'shape': (2, 3)}", "header is damaged"),
    "missing": ("{'descr': '<f4', 'shape': (2, 3)}", "header is damaged"),
    "swapped": (header("False", "'<f4'"), "header is damaged"),
    "nested": ("(" * 9000, "header is damaged"),
    "minus": ("-" * 9000 + "1", "header is damaged"),
    "blanks": (" " * 9900, "header is damaged"),
    "long": (header() + " " * 20_000, "longer than 10000 bytes"),
    "unfinished": ("{'descr': '<f4', 'fortran_order': Fal", "header is damaged"),
    "null": ("\0" * 64, "header is damaged"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_header_that_is_not_to_be_trusted_is_a_line(tmp_path, name):
    text, message = BAD[name]
    path = planted(tmp_path / "a.npy", text, bytes(24))
    for read in (read_array, open_array):
        with pytest.raises(UserError, match=message) as caught:
            read(path, "features", "extract again")
        assert str(caught.value).startswith(f"{path} is not a readable .npy file (features): ")
        assert str(caught.value).endswith("; extract again") and len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "content",
    [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff", b"\x93NUMPY\x09\x00\x10\x00", b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
     b"nonsense", b"PK\x03\x04" + bytes(100)],
)  # fmt: skip
def test_files_without_a_header_are_a_line(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(UserError, match="is not a readable .npy file .array.: "):
        read_array(tmp_path / "a.npy")


def test_an_archive_of_arrays_is_told_and_never_unpacked(tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros(1 << 26))  # half a GB from 500 KB
    said = line_of(lambda: read_array(tmp_path / "bomb.npz"), extra=1 << 26)
    assert said.endswith("it is an archive of arrays (.npz); save the array alone with numpy.save")


def test_what_is_no_file_is_told(tmp_path):
    with pytest.raises(UserError, match="statistic not found: "):
        read_array(tmp_path / "none.npy", "statistic")
    with pytest.raises(UserError, match="is a folder"):
        read_array(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "it is a device or a pipe" in line_of(lambda: read_array(tmp_path / "pipe"))


def test_absurd_headers_take_no_memory_and_no_time(tmp_path):
    def read_all():
        for number, (text, _) in enumerate(BAD.values()):
            with pytest.raises(UserError):
                read_array(planted(tmp_path / f"{number}.npy", text, bytes(24)))
        raise UserError("all read")

    assert line_of(read_all, extra=1 << 26) == "all read"


def test_a_file_that_becomes_shorter_is_a_line_and_kills_no_process(tmp_path):
    path = saved(tmp_path / "a.npy", RNG.normal(size=(4096, 64)).astype(np.float32))
    for take in (lambda a: a[4000:4090], lambda a: a[np.array([4095, 1])], lambda a: a[...], lambda a: a[4095]):
        mapped = open_array(path)
        rows = mapped[:10]
        assert np.array_equal(rows, read_array(path)[:10])
        content = path.read_bytes()
        os.truncate(path, 128)
        said = line_of(lambda take=take, mapped=mapped: np.array(take(mapped)).sum())
        assert said == (
            f"{path} has changed while it was used: 128 bytes are left of {len(content)}; restore it or make it again, "
            "then repeat the command"
        )
        with open(path, "r+b") as file:
            file.write(content)
        assert np.array_equal(mapped[:], read_array(path))


def test_vectors_of_users_are_told_where_they_are_rounded(tmp_path, caplog):
    caplog.set_level("INFO")
    for kind, said in ((">f4", "big-endian float32"), ("<f8", "float64"), ("|i1", "int8")):
        caplog.clear()
        given = (RNG.normal(size=(3, 2)) * 9).astype(kind)
        found = open_vector_array(saved(tmp_path / "v.npy", given))
        np.testing.assert_array_equal(found, given)
        assert caplog.messages == [f"{tmp_path}/v.npy: its numbers, {said}, are read as float32"]
    caplog.clear()
    for kind in ("<f2", "<f4"):
        open_vector_array(saved(tmp_path / "v.npy", np.ones((3, 2), kind)))
    assert not caplog.messages
    for bad in (np.ones(3), np.ones((2, 2, 2)), np.ones((2, 0)), np.ones((2, 2), bool)):
        with pytest.raises(UserError, match=r"is no .npy file of vectors \(N, D\), one a row: it holds "):
            open_vector_array(saved(tmp_path / "v.npy", bad))


def test_what_was_read_of_an_array_no_longer_counts_as_memory_once_it_is_released(tmp_path):
    def resident():
        """Of files that this process has mapped, in bytes."""
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssFile"))

    array = np.random.default_rng(0).standard_normal((1 << 13, 512)).astype(np.float32)
    mapped = open_array(saved(tmp_path / "a.npy", array))
    assert mapped[:].sum() == array.sum()
    before = resident()
    mapped.release()
    assert before - resident() > array.nbytes // 2
    np.testing.assert_array_equal(mapped[:], array)
