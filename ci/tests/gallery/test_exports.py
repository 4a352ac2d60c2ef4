"""What a gallery writes, read again."""

import errno

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest
from gallery_helpers import MemoryStore, unit, vectors

from core.errors import UserError
from core.gallery import exports
from core.gallery.exports import export
from core.gallery.store import Version
from core.gallery.upgrade import Upgrade
from core.gallery.vector_files import open_vectors

NAMES = [f"id {row}" for row in range(10)]
LABELS = ["a", "b c", None, "é", *["d"] * 6]
IMAGES = [None, "/pictures/x y.jpg", *[f"/{row}.png" for row in range(8)]]
OLD = vectors(10, 8, seed=1)
NEW = vectors(10, 5, seed=2)
REFRESHED = np.array([1, 4, 5])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(exports, "BLOCK", 3)


def one_model(dtype=np.float32, labels=LABELS, images=IMAGES, names=NAMES):
    store = MemoryStore()
    store.add_version(Version("old", "old model", 8))
    store.enrol(names, {"old": OLD[: len(names)].astype(dtype)}, labels, images)
    return store


def upgraded(mapped=False):
    store = one_model()
    store.add_version(Version("new", "new model", 5))
    store.add_vectors("new", REFRESHED, NEW[REFRESHED])
    if mapped:
        store.add_version(Version("mapped", "old, mapped", 5))
        store.add_vectors("mapped", np.arange(10), vectors(10, 5, seed=3))
    road = "gallery_map" if mapped else "direct"
    upgrade = Upgrade("old", "new", "mapped" if mapped else None, road, "random", "0" * 64, 10)
    store.set_documents({"upgrade": upgrade.to_json()})
    return store


def read_again(out, format):
    if format == "parquet":
        return open_vectors(out)
    texts = {name: out / f"{name}.txt" for name in ("labels", "images") if (out / f"{name}.txt").exists()}
    return open_vectors(out / ("vectors.npy" if format == "npy" else "vectors.faiss"), out / "ids.txt", **texts)


def content(file):
    blocks = list(file.blocks(4))
    texts = [[each for block in blocks for each in getattr(block, name)] for name in ("ids", "labels", "images")]
    return texts, np.concatenate([block.vectors for block in blocks])


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("format", ["npy", "parquet"])
def test_what_is_written_comes_back_bit_for_bit(tmp_path, format, dtype):
    assert export(one_model(dtype), tmp_path / "out", format) == 10
    texts, found = content(read_again(tmp_path / "out", format))
    assert texts == [NAMES, LABELS, IMAGES]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, OLD.astype(dtype))


def test_faiss_has_unit_vectors_whose_products_are_cosines(tmp_path):
    export(one_model(), tmp_path / "out", "faiss")
    texts, found = content(read_again(tmp_path / "out", "faiss"))
    assert texts == [NAMES, LABELS, IMAGES]
    np.testing.assert_allclose(found, unit(OLD), atol=1e-7)
    index = faiss.read_index(str(tmp_path / "out" / "vectors.faiss"))
    scores, numbers = index.search(unit(vectors(4)).astype(np.float32), 3)
    products = unit(vectors(4)) @ unit(OLD).T
    np.testing.assert_array_equal(numbers, np.argsort(-products, axis=1)[:, :3])
    np.testing.assert_allclose(scores, -np.sort(-products, axis=1)[:, :3], atol=1e-6)
    assert type(faiss.downcast_index(index)) is faiss.IndexIDMap2


@pytest.mark.parametrize("format", ["npy", "faiss"])
def test_lists_in_which_nothing_is_are_not_written(tmp_path, format):
    export(one_model(labels=None, images=None), tmp_path / "out", format)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(["ids.txt", f"vectors.{format}"])


@pytest.mark.parametrize("format", ["npy", "parquet", "faiss"])
def test_an_empty_gallery(tmp_path, format):
    assert export(one_model(names=[], labels=[], images=[]), tmp_path / "out", format) == 0
    file = read_again(tmp_path / "out", format)
    assert len(file) == 0 and file.size == 8 and list(file.blocks()) == []


@pytest.mark.parametrize("format", ["npy", "parquet", "faiss"])
def test_one_version_of_an_upgrade(tmp_path, caplog, format):
    assert export(upgraded(), tmp_path / "out", format, "new") == 3
    texts, found = content(read_again(tmp_path / "out", format))
    assert texts == [[column[row] for row in REFRESHED] for column in (NAMES, LABELS, IMAGES)]
    expected = unit(NEW[REFRESHED]) if format == "faiss" else NEW[REFRESHED]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7 if format == "faiss" else 0)
    assert "7 entries have no vector of new and are left out" in caplog.text


@pytest.mark.parametrize("mapped", [False, True])
def test_parquet_of_a_mixture_has_the_vector_that_serves_each_entry(tmp_path, mapped):
    assert export(upgraded(mapped), tmp_path / "out", "parquet") == 10
    table = pq.read_table(tmp_path / "out").to_pydict()
    assert sorted(table["id"]) == NAMES
    stored, key = (vectors(10, 5, seed=3), "mapped") if mapped else (OLD, "old")
    for name, vector, version in zip(table["id"], table["vector"], table["version"]):
        row = NAMES.index(name)
        expected = (NEW[row], "new") if row in REFRESHED else (stored[row], key)
        assert (vector, version) == (expected[0].tolist(), expected[1])
    with pytest.raises(UserError, match="has vectors of 2 models"):
        open_vectors(tmp_path / "out")


@pytest.mark.parametrize("format", ["npy", "faiss"])
def test_a_mixture_is_not_written_where_the_models_are_not_told(tmp_path, format):
    with pytest.raises(UserError, match="name the version to export, old or new, or write parquet"):
        export(upgraded(), tmp_path / "out", format)
    assert not list(tmp_path.iterdir())


def test_mapped_vectors_without_an_upgrade_are_not_the_gallery(tmp_path):
    store = one_model()
    store.add_version(Version("mapped", "old, mapped", 5))
    assert export(store, tmp_path / "out", "npy") == 10
    np.testing.assert_array_equal(content(read_again(tmp_path / "out", "npy"))[1], OLD)


class Shrinking(MemoryStore):
    """A store of which an entry is deleted, and another enrolled anew, while it is written."""

    def vectors(self, key, rows):
        if len(rows) and rows[0] == 3 and "id 4" in self._rows:
            self.delete(["id 4", "id 9"])
            self.enrol(["id 0"], {"old": vectors(1)})
        return super().vectors(key, rows)


@pytest.mark.parametrize("format", ["npy", "parquet", "faiss"])
def test_entries_that_go_meanwhile_are_left_out(tmp_path, format):
    store = one_model()
    store.__class__ = Shrinking
    assert export(store, tmp_path / "out", format) == 8
    texts, found = content(read_again(tmp_path / "out", format))
    left = [0, 1, 2, 3, 5, 6, 7, 8]
    assert texts[0] == [NAMES[row] for row in left]
    np.testing.assert_allclose(unit(found), unit(OLD[left]), atol=1e-7)


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "a\tb", "\ufeffa"])
@pytest.mark.parametrize("place", ["id", "label", "image"])
def test_texts_that_no_list_can_hold_go_to_parquet_alone(tmp_path, text, place):
    store = MemoryStore()
    store.add_version(Version("old", "old model", 8))
    values = {name: "x" for name in ("id", "label", "image")} | {place: text}
    store.enrol([values["id"]], {"old": OLD[:1]}, [values["label"]], ["/" + values["image"]])
    if (text[0], place) != ("\ufeff", "image"):
        with pytest.raises(UserError, match="cannot be a line of .*txt: export parquet"):
            export(store, tmp_path / "out", "npy")
    assert not list(tmp_path.iterdir())
    export(store, tmp_path / "out", "parquet")
    assert content(open_vectors(tmp_path / "out"))[0] == [[values["id"]], [values["label"]], ["/" + values["image"]]]


def test_an_export_replaces_another_and_nothing_else(tmp_path):
    export(upgraded(), tmp_path / "out", "npy", "old")
    export(upgraded(), tmp_path / "out", "npy", "new")
    assert len(read_again(tmp_path / "out", "npy")) == 3
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds thesis.tex, which would be lost"):
        export(upgraded(), tmp_path / "out", "npy", "old")
    with pytest.raises(UserError, match="is a folder: name a file"):
        export(upgraded(), tmp_path / "out", "parquet")
    assert (tmp_path / "out" / "thesis.tex").exists() and len(read_again(tmp_path / "out", "npy")) == 3


@pytest.mark.parametrize("format", ["npy", "parquet", "faiss"])
def test_a_failed_export_leaves_nothing(tmp_path, format):
    class Failing(MemoryStore):
        def vectors(self, key, rows):
            if rows[0] == 6:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().vectors(key, rows)

    store = one_model()
    store.__class__ = Failing
    with pytest.raises(UserError, match="cannot write .*out: it needs .*No space left"):
        export(store, tmp_path / "out", format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("store", "format", "version", "message"),
    [
        (one_model(), "csv", None, "choose one of npy, parquet, faiss"),
        (one_model(), "npy", "new", "memory has no vectors of new, only of old"),
        (MemoryStore(), "npy", None, "memory has no vectors"),
    ],
)
def test_mistakes_are_told(tmp_path, store, format, version, message):
    with pytest.raises(UserError, match=message):
        export(store, tmp_path / "out", format, version)
