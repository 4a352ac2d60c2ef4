"""The store in a folder, held against a model of dictionaries and NumPy, and alone where it is broken on purpose."""

import sqlite3

import numpy as np
import pytest

from core.errors import UserError
from core.gallery.folder import database as folder_database
from core.gallery.folder import slots as folder_slots
from core.gallery.folder.store import FolderStore
from core.gallery.store import Version

D = {"old": 6, "new": 9}


def vectors(count, key="old", seed=0, dtype=np.float32):
    """Of any length, as encoders give them."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, D[key])) * rng.uniform(0.5, 3, (count, 1))).astype(dtype)


def unit(array):
    array = np.asarray(array, np.float64)
    return array / np.linalg.norm(array, axis=1, keepdims=True)


@pytest.fixture
def gallery(tmp_path):
    """With the version "old" and "new", without an entry."""
    store = FolderStore.create(tmp_path / "gallery")
    for key, size in D.items():
        store.add_version(Version(key, f"the {key} model", size, model=f"{key}.pt"))
    yield store
    store.close()


class Model:
    """What a store should hold: an entry by its id, in the order of enrolment."""

    def __init__(self):
        self.entries, self.documents, self.next_row = {}, {}, 0

    def enrol(self, ids, given, labels, images):
        for number, name in enumerate(ids):
            self.entries.pop(name, None)
            self.entries[name] = {
                "row": self.next_row + number, "label": labels and labels[number], "image": images and images[number],
                "vectors": {key: array[number] for key, array in given.items()},
            }  # fmt: skip
        self.next_row += len(ids)

    def delete(self, ids):
        return sum(self.entries.pop(name, None) is not None for name in set(ids))

    def by_row(self):
        return {entry["row"]: (name, entry) for name, entry in self.entries.items()}

    def add_vectors(self, key, rows, given):
        there = self.by_row()
        for row, vector in zip(rows.tolist(), given):
            if row in there:
                there[row][1]["vectors"][key] = vector
        return sum(row in there for row in rows.tolist())

    def search(self, key, queries, k, without):
        """Cosines in float64 and ids, sorted."""
        found = [
            (name, entry["vectors"][key]) for name, entry in self.entries.items()
            if key in entry["vectors"] and not any(other in entry["vectors"] for other in without)
        ]  # fmt: skip
        if not found:
            return np.full((len(queries), k), -np.inf), [[None] * k for _ in queries]
        scores = queries.astype(np.float64) @ unit([vector for _, vector in found]).T
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        lacking = k - order.shape[1]
        best = np.pad(np.take_along_axis(scores, order, axis=1), ((0, 0), (0, lacking)), constant_values=-np.inf)
        return best, [[found[place][0] for place in line] + [None] * lacking for line in order]


def assert_same(store, model):
    assert len(store) == len(model.entries) == sum(len(block.rows) for block in store.entries())
    counts = {key: sum(key in entry["vectors"] for entry in model.entries.values()) for key in store.versions()}
    assert store.counts() == counts
    expected = sorted((entry["row"], name, entry["label"], entry["image"]) for name, entry in model.entries.items())
    for lacking in (None, *counts):
        found = [
            line for block in store.entries(lacking, size=7)
            for line in zip(block.rows.tolist(), block.ids, block.labels, block.images)
        ]  # fmt: skip
        assert found == [line for line in expected if lacking not in model.entries[line[1]]["vectors"]]
    for key in counts:
        there = [entry for entry in model.entries.values() if key in entry["vectors"]]
        rows = np.array([entry["row"] for entry in there], np.int64)
        if len(rows):
            np.testing.assert_array_equal(store.vectors(key, rows), [entry["vectors"][key] for entry in there])
            some, found = store.vectors_at(key, np.arange(model.next_row + 2)[::-1])  # also of others, and of none
            np.testing.assert_array_equal(some, sorted(rows)[::-1])
            np.testing.assert_array_equal(found, store.vectors(key, some))
        queries = unit(vectors(3, key, seed=99)).astype(np.float32)
        for without in ((), [other for other in counts if other != key]):
            hits = store.search(key, queries, 5, without)
            scores, ids = model.search(key, queries, 5, without)
            np.testing.assert_allclose(hits.scores, scores, atol=1e-6)
            assert hits.ids.tolist() == ids
    for name, value in model.documents.items():
        assert store.document(name) == value
    assert store.verify() == []


@pytest.mark.parametrize("seed", range(4))
def test_any_sequence_of_calls_does_what_dictionaries_do(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(folder_slots, "ROWS", 16)  # many small blocks
    for module in ("store", "vectors", "check"):
        monkeypatch.setattr(f"core.gallery.folder.{module}.SLOTS", 8)
    monkeypatch.setattr("core.gallery.folder.entries.ROWS", 16)
    rng, model = np.random.default_rng(seed), Model()
    store = FolderStore.create(tmp_path / "gallery")
    for key, size in D.items():
        store.add_version(Version(key, key, size))
    names = [f"person {number}" for number in range(60)]
    files = set()
    for step in range(60):
        some = [str(name) for name in rng.choice(names, rng.integers(0, 25), replace=False)]
        action = rng.choice(["enrol", "enrol", "add", "add", "delete", "drop", "documents", "open"])
        if action == "enrol":
            keys = list(store.versions()) if rng.random() < 0.5 else ["old"]
            given = {key: vectors(len(some), key, seed=step) for key in keys}
            labels, images = ([f"{kind} {name}" for name in some] if rng.random() < 0.5 else None for kind in "ab")
            store.enrol(some, given, labels, images)
            model.enrol(some, given, labels, images)
        elif action == "add":
            rows = rng.permutation(model.next_row + 3)[: rng.integers(0, 30)]
            given = vectors(len(rows), "new", seed=step)
            assert store.add_vectors("new", rows, given) == model.add_vectors("new", rows, given)
        elif action == "delete":
            assert store.delete([*some[:9], "nobody"]) == model.delete(some[:9])
        elif action == "drop":
            store.drop_version("new", {"last": step})
            model.documents["last"] = step
            for entry in model.entries.values():
                entry["vectors"].pop("new", None)
            store.add_version(Version("new", "new", D["new"]))
        elif action == "documents":
            model.documents["note"] = None if rng.random() < 0.3 else {"ü": [step, None]}
            store.set_documents({"note": model.documents["note"]})
        else:
            store.close()
            store = FolderStore.open(tmp_path / "gallery")
        if step % 5 == 4:
            assert_same(store, model)
        files |= {path.name for path in (tmp_path / "gallery").glob("vectors-*")}
    assert_same(store, model)
    assert len(files) > 3  # files were written anew without what was deleted
    assert len(list((tmp_path / "gallery").glob("vectors-*"))) <= 2
    store.close()


def test_ids_are_any_text(gallery):
    ids = ["", "é", "e\u0301", "😀", "a\0b", "a", "a\0c", "'; --", "x" * 1_000_000, "42", "\\u0000", "\n"]
    labels, images = ["", None, "ü", *["l"] * 9], [None, "", "a\0b", *["i"] * 9]
    for start in (0, 3):  # all as columns of ids alone, then with classes and paths
        given = vectors(len(ids) - start)
        gallery.enrol(ids[start:], {"old": given}, *((labels[start:], images[start:]) if start else ()))
    gallery.enrol(ids[:3], {"old": vectors(3)}, labels[:3], images[:3])
    found = gallery.entries_at(gallery.find(ids))
    assert (found.ids, found.labels, found.images) == (ids, labels, images)
    assert gallery.find(["A", "a\0", "42 "]).tolist() == [-1] * 3
    assert gallery.verify() == []
    assert gallery.delete(["a\0b", "a\0b"]) == 1 and gallery.find(["a", "a\0c"]).min() >= 0
    with pytest.raises(UserError, match="not UTF-8"):
        gallery.enrol(["\udcff"], {"old": vectors(1)})
    assert len(gallery) == len(ids) - 1


def test_half_precision_stays_and_the_first_vectors_say_the_type(gallery):
    half, single = vectors(4, dtype=np.float16), vectors(4, seed=1)
    gallery.enrol(list("abcd"), {"old": half, "new": vectors(4, "new")})
    gallery.enrol(list("efgh"), {"old": single, "new": vectors(4, "new", dtype=np.float16)})
    stored = gallery.vectors("old", gallery.find(list("abcdefgh")))
    assert stored.dtype == np.float16
    np.testing.assert_array_equal(stored, np.concatenate([half, single.astype(np.float16)]))
    assert gallery.vectors("new", gallery.find(["e"])).dtype == np.float32
    hits = gallery.search("old", unit(half).astype(np.float32), 1)
    assert hits.ids[:, 0].tolist() == list("abcd")
    np.testing.assert_allclose(hits.scores, 1, atol=1e-6)
    with pytest.raises(UserError, match="row 1 of the vectors of the old model is not finite"):
        gallery.enrol(["i", "j"], {"old": np.array([[1] * 6, [1e5] * 6], np.float32)})  # too large for float16


def test_very_long_and_very_short_vectors_have_a_direction(gallery):
    given = vectors(3) * np.array([[1e30], [1e-30], [1]], np.float32)
    gallery.enrol(list("abc"), {"old": given})
    hits = gallery.search("old", unit(given).astype(np.float32), 1)
    assert hits.ids[:, 0].tolist() == list("abc")
    np.testing.assert_allclose(hits.scores, 1, atol=1e-6)


def bad(change):
    given = vectors(5000)
    change(given)
    return given


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: g.enrol(["b", "c", "b"], {"old": vectors(3)}), "the id 'b' comes twice"),
        (
            lambda g: g.enrol(["b"], {"old": vectors(1, "new")}),
            r"must be float32 or float16 \(1, 6\), not .* \(1, 9",
        ),
        (lambda g: g.enrol(["b"], {"old": vectors(2)}), r"must be float32 or float16 \(1, 6\)"),
        (lambda g: g.enrol(["b"], {"old": vectors(1, dtype=np.float64)}), "not float64"),
        (lambda g: g.enrol(["b"], {"older": vectors(1)}), "has no vectors of older: name one of old, new"),
        (
            lambda g: g.enrol([str(n) for n in range(5000)], {"old": bad(lambda v: v[4999].fill(0))}),
            "row 4999 of the vectors of the old model is zero",
        ),
        (
            lambda g: g.enrol([str(n) for n in range(5000)], {"old": bad(lambda v: v[4200:, 2].fill(np.nan))}),
            "row 4200 of the vectors of the old model is not finite",
        ),
        (lambda g: g.add_vectors("new", g.find(["a"]), np.zeros((1, 9), np.float32)), "row 0 .* is zero"),
        (lambda g: g.add_version(Version("old", "another", 7)), "of size 6, not 7"),
        (lambda g: g.drop_version("older"), "has no vectors of older"),
        (lambda g: g.vectors("new", g.find(["a"])), "has no vector of new for the entry of row 0"),
        (lambda g: g.vectors("old", np.array([77])), "has no vector of old for the entry of row 77"),
        (lambda g: g.search("old", vectors(1, "new"), 1), r"queries of shape \(1, 9\) cannot search"),
        (lambda g: g.search("old", vectors(1), 1, index="lsh"), "no index lsh: name one of exact, hnsw, ivf"),
        (lambda g: g.search("old", vectors(1), 1, without=["older"]), "has no vectors of older"),
    ],
)
def test_a_mistake_is_told_in_one_line_and_changes_nothing(gallery, call, message):
    gallery.enrol(["a"], {"old": vectors(1)})
    with pytest.raises(UserError, match=message) as raised:
        call(gallery)
    assert "\n" not in str(raised.value)
    assert (len(gallery), gallery.counts(), gallery.verify()) == (1, {"old": 1, "new": 0}, [])
    gallery.enrol(["b", "c"], {"old": vectors(2)})
    assert gallery.counts()["old"] == 3 and gallery.verify() == []


def test_no_entry_loses_its_only_vector(gallery):
    """A version is dropped when each of its entries has another vector."""
    gallery.enrol(["both", "again"], {"old": vectors(2), "new": vectors(2, "new")})
    gallery.enrol(["late", "later"], {"old": vectors(2)})
    with pytest.raises(UserError, match="2 entries have a vector of old alone, the first 'late', perhaps enrolled"):
        gallery.drop_version("old", {"note": 1})
    assert gallery.counts() == {"old": 4, "new": 2} and gallery.document("note") is None
    gallery.add_vectors("new", gallery.find(["late", "later"]), vectors(2, "new"))
    gallery.drop_version("old", {"note": 1})
    assert gallery.counts() == {"new": 4} and gallery.document("note") == 1
    gallery.enrol(["none", "nor this one"], {})
    (fault,) = gallery.verify()
    assert "2 entries have no vector, the first 'none': delete them or insert them again" in fault


def test_rows_are_never_given_again(gallery, tmp_path):
    gallery.enrol(["a", "b"], {"old": vectors(2)})
    gallery.delete(["a", "b"])
    gallery.enrol(["b"], {"old": vectors(1)})
    assert gallery.find(["a", "b"]).tolist() == [-1, 2]
    gallery.delete(["b"])
    gallery.close()
    store = FolderStore.open(tmp_path / "gallery")
    store.enrol(["b"], {"old": vectors(1)})
    assert store.find(["b"]).tolist() == [3]
    assert store.add_vectors("new", np.arange(5), vectors(5, "new")) == 1
    assert store.entries_at(np.array([4, 3, 0, 3])).ids == ["b", "b"]
    store.close()


def test_nothing_at_all_is_allowed(gallery):
    assert gallery.versions()["new"] == Version("new", "the new model", 9, "new.pt")
    gallery.enrol([], {"old": vectors(0)})
    assert gallery.delete([]) == gallery.add_vectors("old", np.empty(0, int), vectors(0)) == 0
    assert gallery.vectors("old", np.empty(0, int)).shape == (0, 6)
    hits = gallery.search("old", vectors(2), 3)
    assert np.isneginf(hits.scores).all() and hits.ids.tolist() == [[None] * 3] * 2
    gallery.enrol(["without a vector"], {})
    assert [block.ids for block in gallery.entries(lacking="old")] == [["without a vector"]]
    assert gallery.search("old", np.empty((0, 6), np.float32), 3).ids.shape == (0, 3)
    assert gallery.document("nothing") is None


def test_among_equal_cosines_the_lower_row_comes_first(gallery):
    gallery.enrol(list("abcd"), {"old": vectors(4)})
    same = np.tile(vectors(1, "new"), (4, 1))
    gallery.add_vectors("new", gallery.find(list("dbca")), same)
    assert gallery.search("new", unit(same[:1]).astype(np.float32), 4).ids.tolist() == [list("abcd")]


def test_what_is_no_gallery_is_told(gallery, tmp_path):
    gallery.enrol(["a", "b"], {"old": vectors(2)})
    gallery.close()
    folder = tmp_path / "gallery"

    def refused(path=folder):
        with pytest.raises(UserError) as raised:
            FolderStore.open(path)
        assert "\n" not in str(raised.value) and str(path) in str(raised.value)
        return str(raised.value)

    assert "no gallery found" in refused(tmp_path / "nowhere")
    assert f"it has no {folder_database.FILE}" in refused(tmp_path)
    file = folder / folder_database.FILE
    good = file.read_bytes()
    with sqlite3.connect(file) as db:
        db.execute(f"PRAGMA user_version = {folder_database.FORMAT + 1}")
    db.close()
    assert f"has format {folder_database.FORMAT + 1}" in refused()
    file.write_bytes(good)
    with sqlite3.connect(file) as db:
        db.execute("PRAGMA application_id = 7")
    db.close()
    assert "of another program" in refused()
    file.write_bytes(b"no database" * 1000)
    assert "is damaged" in refused()
    file.write_bytes(good.replace(b"next_row INTEGER NOT NULL,", b"next_row INTEGER NOT NULL\xff"))
    assert "is damaged" in refused() and "not UTF-8" in refused()
    file.write_bytes(good)
    vector_file = folder / "vectors-0.bin"
    whole = vector_file.read_bytes()
    vector_file.write_bytes(whole[:-1])
    assert "47 bytes in place of 48" in refused()
    vector_file.unlink()
    assert "vectors-0.bin is missing" in refused()
    vector_file.write_bytes(whole)
    FolderStore.open(folder).close()


def test_a_gallery_is_created_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "gallery"
    with pytest.raises(RuntimeError), FolderStore.creating(path) as store:
        store.add_version(Version("old", "old", 6))
        store.enrol(["a"], {"old": vectors(1)})
        assert not path.exists()
        with pytest.raises(UserError, match="another work holds .* .creation, process"), FolderStore.creating(path):
            pass
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    FolderStore.create(path).close()
    with pytest.raises(UserError, match="exists already"):
        FolderStore.create(path)
    with pytest.raises(UserError, match="does not exist"):
        FolderStore.create(tmp_path / "no" / "gallery")
    with pytest.raises(UserError, match="exists already"), FolderStore.creating(tmp_path / "other"):
        (tmp_path / "other").write_text("made meanwhile")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gallery", "other"]
