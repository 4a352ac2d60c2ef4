"""Vectors and lists from files, and the mistakes in them."""

import codecs

import faiss
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gallery_helpers import vectors

from core.errors import UserError
from core.gallery.vector_files import open_vectors

NAMES = ["Ünï", "two words", "c/d,e", "東京", "0", "f"]


def read(path, ids=None, size=2, **lists):
    """Everything in a file, read in blocks of two."""
    file = open_vectors(path, ids, **lists)
    blocks = list(file.blocks(size))
    assert len(file) == sum(len(block.ids) for block in blocks)
    assert all(len(block.ids) == len(block.vectors) == len(block.labels) == len(block.images) for block in blocks)
    joined = [[each for block in blocks for each in getattr(block, name)] for name in ("ids", "labels", "images")]
    found = np.concatenate([block.vectors for block in blocks]) if blocks else np.empty((0, file.size), np.float32)
    assert found.shape == (len(file), file.size)
    return joined[0], found, joined[1], joined[2]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def saved(path, array):
    np.save(path, array)
    return path


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_of_any_float_comes_as_it_is_or_rounded_to_float32(tmp_path, dtype, order):
    given = np.asarray(vectors(6, 5, dtype=np.float64).astype(dtype), order=order)
    ids, found, labels, images = read(saved(tmp_path / "v.npy", given), write(tmp_path / "ids", "\n".join(NAMES)))
    assert ids == NAMES and labels == images == [None] * 6
    assert found.dtype == (np.float16 if dtype == "<f2" else np.float32)
    np.testing.assert_array_equal(found, given.astype(found.dtype))


@pytest.mark.parametrize(
    "content",
    ["\n".join(NAMES).encode(), "\r\n".join([*NAMES, ""]).encode(), codecs.BOM_UTF8 + "\n".join([*NAMES, ""]).encode(),
     "\r\n".join(NAMES).encode("utf-16")],
)  # fmt: skip
def test_ids_may_be_written_on_windows(tmp_path, content):
    path = saved(tmp_path / "v.npy", vectors(6))
    assert read(path, write(tmp_path / "ids", content))[0] == NAMES


def test_labels_and_images_are_joined(tmp_path):
    path, ids = saved(tmp_path / "v.npy", vectors(6)), write(tmp_path / "ids", "\n".join(NAMES))
    folder = tmp_path / "lists"
    folder.mkdir()
    labels = write(folder / "labels", "Ann\r\n\r\nBob Lee\r\n7\r\nAnn\r\n\r\n")
    images = write(folder / "images", "a b.jpg 0\n/data/my pictures/é.png\ttwo words\n\ns3://b/k f\n../up  c/d,e\n")
    _, _, of_labels, of_images = read(path, ids, labels=labels, images=images)
    assert of_labels == ["Ann", None, "Bob Lee", "7", "Ann", None]
    assert of_images == [
        None, "/data/my pictures/é.png", f"{folder}/../up", None, f"{folder}/a b.jpg", "s3://b/k",
    ]  # fmt: skip


def parquet(path, ids, column, **others):
    pq.write_table(pa.table({"id": ids, "vector": column, **others}), path, row_group_size=4)
    return path


def lists(rows, kind):
    number = {np.float16: pa.float16(), np.float32: pa.float32(), np.float64: pa.float64()}[rows.dtype.type]
    values = pa.array(rows.ravel(), number)
    if kind == "fixed":
        return pa.FixedSizeListArray.from_arrays(values, rows.shape[1])
    whole = pa.array(np.arange(len(rows) + 1) * rows.shape[1], pa.int64() if kind == "large" else pa.int32())
    return (pa.LargeListArray if kind == "large" else pa.ListArray).from_arrays(whole, values)


@pytest.mark.parametrize("kind", ["fixed", "list", "large"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_parquet_with_any_lists(tmp_path, kind, dtype):
    given = vectors(6, 3, dtype=dtype)
    path = parquet(
        tmp_path / "v.parquet", NAMES, lists(given, kind),
        label=["a", None, "", "b", "c", "d"], image=["x.jpg", None, "/y z.jpg", "", "w", "w"],
    )  # fmt: skip
    ids, found, labels, images = read(path, size=5)
    assert ids == NAMES and labels == ["a", None, None, "b", "c", "d"]
    assert images == [f"{tmp_path}/x.jpg", None, "/y z.jpg", None, f"{tmp_path}/w", f"{tmp_path}/w"]
    assert found.dtype == (np.float16 if dtype == np.float16 else np.float32)
    np.testing.assert_array_equal(found, given.astype(found.dtype))


def test_parquet_of_polars_and_numbers_as_ids(tmp_path):
    frame = pl.DataFrame({"vector": vectors(5).tolist(), "id": [10, -2, 3, 7, 5], "label": [1, 1, 2, 2, None]})
    frame.write_parquet(tmp_path / "v.parquet")
    ids, found, labels, _ = read(tmp_path / "v.parquet")
    assert ids == ["10", "-2", "3", "7", "5"] and labels == ["1", "1", "2", "2", None]
    np.testing.assert_array_equal(found, vectors(5))


def test_parquet_says_which_model_its_vectors_are_of(tmp_path):
    one = parquet(tmp_path / "one", NAMES, lists(vectors(6), "list"), version=["m"] * 6)
    assert open_vectors(one).version == "m"
    two = parquet(tmp_path / "two", NAMES, lists(vectors(6), "list"), version=["m", "n"] * 3)
    with pytest.raises(UserError, match=r"two has vectors of 2 models \(m, n\)"):
        open_vectors(two)


def faiss_file(path, index, given, numbers=None):
    if not index.is_trained:
        index.train(given)
    index.add(given) if numbers is None else index.add_with_ids(given, numbers)
    faiss.write_index(index, str(path))
    return path


QUANTIZERS = [faiss.IndexFlatL2(8), faiss.IndexFlatIP(8)]
"""Indexes refer to theirs without keeping it."""


def make_index(kind):
    if kind == "ivf":
        return faiss.IndexIVFFlat(QUANTIZERS[0], 8, 3, faiss.METRIC_L2)
    if kind == "ivf inner product":
        return faiss.IndexIVFFlat(QUANTIZERS[1], 8, 3, faiss.METRIC_INNER_PRODUCT)
    return {"flat": faiss.IndexFlatL2, "flat inner product": faiss.IndexFlatIP}[kind](8)


KINDS = ["flat", "flat inner product", "ivf", "ivf inner product"]
NUMBERS = np.array([5, 1 << 40, 7, -3, 0, 12, 90, 4, 33, 6], np.int64)


def assert_by_id(found, expected):
    """Both lists of ids and vectors, in any order."""
    ids, rows = found[:2]
    assert sorted(ids) == sorted(expected)
    np.testing.assert_array_equal(rows, np.stack([expected[name] for name in ids]))


@pytest.mark.parametrize("kind", KINDS)
def test_faiss_with_its_own_numbers_or_a_list(tmp_path, kind):
    given = vectors(10)
    path = faiss_file(tmp_path / "index", make_index(kind), given)
    assert_by_id(read(path, size=3), {str(row): given[row] for row in range(10)})
    names = [f"n {row}" for row in range(10)]
    assert_by_id(read(path, write(tmp_path / "ids", "\n".join(names)), size=4), dict(zip(names, given)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrapper", [faiss.IndexIDMap, faiss.IndexIDMap2])
def test_faiss_with_numbers_of_the_user(tmp_path, kind, wrapper):
    given, inner = vectors(10), make_index(kind)
    path = faiss_file(tmp_path / "index", wrapper(inner), given, NUMBERS)
    assert_by_id(read(path, size=3), dict(zip(map(str, NUMBERS), given)))
    names = [f"n {row}" for row in range(10)]
    assert_by_id(read(path, write(tmp_path / "ids", "\n".join(names)), size=4), dict(zip(names, given)))


def test_ivf_with_numbers_of_the_user(tmp_path):
    given = vectors(10)
    path = faiss_file(tmp_path / "index", make_index("ivf"), given, NUMBERS)
    assert_by_id(read(path), dict(zip(map(str, NUMBERS), given)))
    with pytest.raises(UserError, match="the numbers of the vectors in .* are not those of its lines"):
        open_vectors(path, write(tmp_path / "ids", "\n".join(map(str, range(10)))))


def test_a_faiss_index_that_ranked_by_length_is_told(tmp_path, caplog):
    open_vectors(faiss_file(tmp_path / "long", make_index("flat inner product"), vectors(10)))
    assert "not all vectors have length 1" in caplog.text
    caplog.clear()
    given = vectors(10)
    given /= np.linalg.norm(given, axis=1, keepdims=True)
    open_vectors(faiss_file(tmp_path / "unit", make_index("flat"), given))
    assert not caplog.text


def test_empty_files(tmp_path):
    empty = write(tmp_path / "ids", "")
    assert read(saved(tmp_path / "v.npy", vectors(0)), empty)[1].shape == (0, 8)
    nobody = pa.array([], pa.string())
    assert read(parquet(tmp_path / "v.parquet", nobody, lists(vectors(0), "fixed")))[1].shape == (0, 8)
    assert read(faiss_file(tmp_path / "v.faiss", make_index("flat"), vectors(0)))[1].shape == (0, 8)
    with pytest.raises(UserError, match="has no rows, and so its vectors have no size"):
        open_vectors(parquet(tmp_path / "l.parquet", nobody, lists(vectors(0), "list")))


@pytest.mark.parametrize(
    ("row", "value", "message"),
    [
        (3, np.nan, r"row 3 \(counted from 0, id 'id 3'\) is not finite"),
        (4, np.inf, r"row 4 \(counted from 0, id 'id 4'\) is not finite"),
        (2, 0.0, r"row 2 \(counted from 0, id 'id 2'\) is zero"),
        (1, 1e300, r"row 1 \(counted from 0, id 'id 1'\) is too long or too short for float32"),
        (5, 1e-300, r"row 5 \(counted from 0, id 'id 5'\) is too long or too short for float32"),
    ],
)
@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_a_vector_without_a_direction_is_named(tmp_path, kind, row, value, message):
    given, names = vectors(6, dtype=np.float64), [f"id {row}" for row in range(6)]
    given[row] = [value] + [0.0] * 7
    if kind == "npy":
        file = open_vectors(saved(tmp_path / "v.npy", given), write(tmp_path / "ids", "\n".join(names)))
    else:
        file = open_vectors(parquet(tmp_path / "v.parquet", names, lists(given, "list")))
    with pytest.raises(UserError, match=message) as caught:
        list(file.blocks(2))
    assert str(file.path) in str(caught.value) and "\n" not in str(caught.value)


def test_very_long_and_very_short_vectors_are_none_without_direction(tmp_path):
    given = vectors(4)
    given[1] *= np.float32(1e30)
    given[2] *= np.float32(1e-30)
    ids = write(tmp_path / "ids", "a\nb\nc\nd")
    np.testing.assert_array_equal(read(saved(tmp_path / "v.npy", given), ids)[1], given)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ("a\nb\na\n", "line 3: the id 'a' is that of .*ids, line 1 too"),
        ("a\n\nb\n", "line 2 is empty"),
        ("a\nb\n", r"ids has 2 lines, but .*v.npy 3 vectors"),
        (b"a\nb\n\xff\n", "line 3 is not UTF-8"),
        (None, r"v.npy has no ids: give a text file"),
    ],
)
def test_mistakes_in_ids_are_told(tmp_path, ids, message):
    path = saved(tmp_path / "v.npy", vectors(3))
    with pytest.raises(UserError, match=message):
        open_vectors(path, None if ids is None else write(tmp_path / "ids", ids))


@pytest.mark.parametrize(
    ("labels", "images", "message"),
    [
        ("x\n", None, "labels has 1 lines, but .* 3 vectors"),
        (None, "x.jpg a\ny.jpg q\n", "line 2: there is no vector with the id 'q'.*put a tab"),
        (None, "x.jpg a\ny.jpg a\n", "line 2: the id 'a' is that of .*images, line 1 too"),
        (None, "x.jpg a\n\nword\n", "line 3: 'word' is not a path, a blank and an id"),
        (None, "x.jpg \n", "line 1: 'x.jpg ' is not a path, a blank and an id"),
    ],
)
def test_mistakes_in_lists_are_told(tmp_path, labels, images, message):
    path, ids = saved(tmp_path / "v.npy", vectors(3)), write(tmp_path / "ids", "a\nb\nc")
    lists_of = {name: write(tmp_path / name, text) for name, text in (("labels", labels), ("images", images)) if text}
    with pytest.raises(UserError, match=message):
        open_vectors(path, ids, **lists_of)


def test_mistakes_in_npy_are_told(tmp_path):
    ids = write(tmp_path / "ids", "a\nb\nc")
    for array, message in (
        (vectors(3)[0], "no .npy file of vectors"),
        (np.ones((3, 2), np.int8), "numbers of the kind int8"),
        (np.array([[{}]], object), "it holds Python objects"),
    ):
        with pytest.raises(UserError, match=message):
            open_vectors(saved(tmp_path / "v.npy", array), ids)
    whole = saved(tmp_path / "v.npy", vectors(3)).read_bytes()
    with pytest.raises(UserError, match="its header says float32"):
        open_vectors(write(tmp_path / "v.npy", whole[:-9]), ids)
    with pytest.raises(UserError, match="file of vectors not found"):
        open_vectors(tmp_path / "none.npy", ids)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["a"]}, "has no column vector: its columns are id"),
        ({"id": ["a", "a"], "vector": [[1.0], [2.0]]}, r"row 1 \(counted from 0\): the id 'a' is that of .* row 0"),
        ({"id": ["a", None], "vector": [[1.0], [2.0]]}, r"row 1 \(counted from 0\) has no id"),
        ({"id": ["a", ""], "vector": [[1.0], [2.0]]}, r"row 1 \(counted from 0\) has no id"),
        ({"id": [1.5], "vector": [[1.0]]}, "its column id is Float64, not text"),
        ({"id": ["a"], "vector": [1.0]}, "its column vector is double: write lists"),
        ({"id": ["a"], "vector": [["x"]]}, "numbers of the kind string"),
        ({"id": ["a", "b"], "vector": [[1.0, 2.0], [3.0]]}, r"row 1 .*id 'b'\) has 1 numbers, not 2"),
        ({"id": ["a", "b"], "vector": [[1.0, 2.0], None]}, r"row 1 .*id 'b'\) has 0 numbers, not 2"),
        ({"id": ["a", "b"], "vector": [None, [1.0]]}, "row 0 has no vector"),
        ({"id": ["a", "b", "c"], "vector": [[1.0, 2.0], [3.0, 4.0], [5.0, None]]}, r"row 2 .*id 'c'\) has a missing"),
    ],
)
def test_mistakes_in_parquet_are_told(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "v")
    with pytest.raises(UserError, match=message) as caught:
        list(open_vectors(tmp_path / "v").blocks(2))
    assert "\n" not in str(caught.value)


def test_damaged_and_foreign_files_are_told(tmp_path):
    whole = parquet(tmp_path / "v", NAMES, lists(vectors(6), "list")).read_bytes()
    with pytest.raises(UserError, match="cannot be read as parquet"):
        open_vectors(write(tmp_path / "v", whole[:-20]))
    with pytest.raises(UserError, match="leave .*ids out"):
        open_vectors(parquet(tmp_path / "v", NAMES, lists(vectors(6), "list")), write(tmp_path / "ids", "a"))
    with pytest.raises(UserError, match="none of the files of vectors that are known"):
        open_vectors(write(tmp_path / "v", b"not an index"))
    with pytest.raises(UserError, match="a faiss index of the kind IxPq, which is none that keeps whole vectors"):
        open_vectors(faiss_file(tmp_path / "v", faiss.IndexPQ(8, 2, 4), vectors(300)))
