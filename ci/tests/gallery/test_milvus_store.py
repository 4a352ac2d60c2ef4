"""The store in Milvus against a plain dictionary with NumPy arrays: in a milvus-lite file, and on a real server."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from milvus_server import running_server

from core.errors import UserError
from core.gallery.milvus import connection as milvus_connection
from core.gallery.milvus import state as milvus_state
from core.gallery.milvus.store import MilvusStore
from core.gallery.store import Version

pytest.importorskip("pymilvus", reason="pymilvus is not installed")
pytest.importorskip("milvus_lite", reason="milvus-lite is not installed")

OLD, NEW, MAPPED = Version("0a1b", "old", 8), Version("vendor-v1 ü", "new", 12, "work_dirs/new"), Version("m", "m", 12)
SIZES = {version.key: version for version in (OLD, NEW, MAPPED)}
STEP = 5
"""Kills come before every fifth request; 1 tries all, which takes minutes."""
STRANGE = [
    'a"b',
    "it's",
    "back\\slash\\",
    "nul\0",
    "line\nbreak",
    "ünï€😀",
    "",
    " ",
    "%_",
    "x" * 5000,
    "1",
    "e\u0301",
    "é",
]


class Model:
    """What a store has to hold. Entries in the order of enrolment: label, image and vectors by version."""

    def __init__(self):
        self.versions, self.documents, self.entries = {}, {}, {}

    def enrol(self, ids, vectors, labels=None, images=None):
        for i, text in enumerate(ids):
            self.entries.pop(text, None)
            values = {key: array[i].astype(np.float32) for key, array in vectors.items()}
            self.entries[text] = (labels and labels[i], images and images[i], values)

    def delete(self, ids):
        return sum(self.entries.pop(text, None) is not None for text in dict.fromkeys(ids))

    def drop_version(self, key, documents=None):
        self.versions.pop(key, None)
        for *_, values in self.entries.values():
            values.pop(key, None)
        self.set_documents(documents or {})

    def set_documents(self, documents):
        self.documents |= documents
        self.documents = {name: value for name, value in self.documents.items() if value is not None}

    def search(self, key, queries, k, without=()):
        found = [
            (text, values[key].astype(np.float64))
            for text, (*_, values) in self.entries.items()
            if key in values and not set(without) & set(values)
        ]
        if not found:
            return [[] for _ in queries]
        vectors = np.stack([vector for _, vector in found])
        scores = queries.astype(np.float64) @ (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).T
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return [[(found[i][0], row[i]) for i in best] for row, best in zip(scores, order)]


def snapshot(store):
    """All that a store holds, read through the protocol, in the form of `described`."""
    blocks = list(store.entries(size=50))
    rows = np.concatenate([block.rows for block in blocks]) if blocks else np.empty(0, np.int64)
    assert (np.diff(rows) > 0).all()
    ids, labels, images = (
        [text for block in blocks for text in getattr(block, name)] for name in ("ids", "labels", "images")
    )
    np.testing.assert_array_equal(store.find(ids), rows)
    state = {
        "versions": list(store.versions()),
        "entries": [[*entry] for entry in zip(ids, labels, images)],
        "documents": {name: store.document(name) for name in ("a", "long")},
        "vectors": {},
    }
    assert len(store) == len(ids)
    for key in state["versions"]:
        lacking = {text for block in store.entries(lacking=key, size=64) for text in block.ids}
        have = np.array([text not in lacking for text in ids], dtype=bool)
        vectors = store.vectors(key, rows[have])
        some, found = store.vectors_at(key, np.append(rows, rows.max(initial=0) + 1))  # also of others, and of none
        np.testing.assert_array_equal(some, rows[have])
        np.testing.assert_array_equal(found, vectors)
        assert store.counts()[key] == have.sum()
        state["vectors"][key] = {text: v.tolist() for text, v in zip(np.array(ids, object)[have], vectors)}
    return state


def described(model):
    return {
        "versions": list(model.versions),
        "entries": [[text, label, image] for text, (label, image, _) in model.entries.items()],
        "documents": {name: model.documents.get(name) for name in ("a", "long")},
        "vectors": {
            key: {text: values[key].tolist() for text, (*_, values) in model.entries.items() if key in values}
            for key in model.versions
        },
    }


def check_search(store, model, rng, key, without=(), k=7, index="exact"):
    queries = rng.standard_normal((5, SIZES[key].size)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    hits = store.search(key, queries, k, without, index)
    for scores, ids, expected in zip(hits.scores, hits.ids, model.search(key, queries, k, without)):
        assert list(ids) == [text for text, _ in expected] + [None] * (k - len(expected))
        np.testing.assert_allclose(scores[: len(expected)], [score for _, score in expected], atol=1e-5)
        assert np.isneginf(scores[len(expected) :]).all()


def check_random_calls(store, open_again, steps, seed):
    """The same calls on store and model; what the store holds is compared after each part of them."""
    rng, model, rows_seen, names = np.random.default_rng(seed), Model(), 0, list(STRANGE)
    names += [f"id {i}" for i in range(300)]

    def vectors(key, count):
        return (rng.standard_normal((count, SIZES[key].size)) * 10 ** rng.uniform(-3, 3)).astype(np.float32)

    for version in (OLD, NEW):
        store.add_version(version)
        model.versions[version.key] = version
    for step in range(steps):
        call = ["enrol", "add", "delete", "drop", "documents", "open", "enrol", "add"][step % 8]
        keys = list(model.versions)
        if call == "enrol":
            ids = list(rng.choice(names, 120, replace=False))
            chosen = keys if step % 3 else keys[:1]
            arrays = {key: vectors(key, 120) for key in chosen}
            labels = [f"class {i % 5}" if i % 3 else None for i in range(120)]
            images = None if step % 2 else ["" if i % 4 else None for i in range(120)]
            for holder in (store, model):
                holder.enrol(ids, arrays, labels, images)
            rows = store.find(ids)
            assert rows.min() >= rows_seen
            rows_seen = rows.max() + 1
        elif call == "add":
            key = keys[-1]
            some = list(rng.permutation(list(model.entries))[:80])
            rows = np.append(store.find(some), [rows_seen + 5, rows_seen - 1 if not some else store.find(some)[0]])
            array = vectors(key, len(rows))
            gone = [text for text in some[:5]]
            store.delete(gone), model.delete(gone)
            assert store.add_vectors(key, rows, array) == len(some) - len(gone)
            for text, vector in zip(some[5:], array[5:]):
                model.entries[text][2][key] = vector
        elif call == "delete":
            gone = list(rng.choice(names, 40, replace=False)) + ["not there"]
            assert store.delete(gone) == model.delete(gone)
        elif call == "drop":
            for holder in (store, model):
                holder.drop_version(NEW.key, {"a": step})
            for version in (MAPPED, NEW):
                store.add_version(version)
                model.versions[version.key] = version
        elif call == "documents":
            for holder in (store, model):
                holder.set_documents({"a": {"ü": [step]}, "long": "€x" * 90_000 if step % 16 < 8 else None})
        else:
            store = open_again(store)
        if step % 8 == 7 or step == steps - 1:
            assert snapshot(store) == described(model)
            for key in model.versions:
                check_search(store, model, rng, key)
            check_search(store, model, rng, OLD.key, without=[NEW.key])
            check_search(store, model, rng, OLD.key, without=[key for key in model.versions if key != OLD.key], k=300)
    assert store.verify() == []
    return store


KILLED = """
import json, os, signal, sys
import numpy as np
import pymilvus
from core.gallery.milvus import connection as milvus_connection
from core.gallery.milvus.store import MilvusStore
from test_milvus_store import NEW, OLD, snapshot
uri, name, step = sys.argv[1], sys.argv[2], int(sys.argv[3])

def in_child(work):
    read, write = os.pipe()
    if not (child := os.fork()):
        os.write(write, json.dumps(work()).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(answer) if os.waitstatus_to_exitcode(status) == 0 else None

def killed_before(request, call):
    def work():
        store = MilvusStore.open(uri, name)
        prepare(store)
        client, left = store._connection._client, [request]
        for method in ("insert", "upsert", "delete", "query", "create_collection", "drop_collection"):
            def counted(*args, _call=getattr(client, method), **options):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return _call(*args, **options)
            setattr(client, method, counted)
        calls[call](store)
        store.close()
        return True
    return in_child(work)

def prepare(store):
    store.add_version(OLD)
    store.drop_version(NEW.key) if call == "create" else store.add_version(NEW)
    store.delete([text for block in store.entries() for text in block.ids])
    store.enrol(ids, {OLD.key: block(4, OLD)})
    store.set_documents({"a": 0, "long": None})

def prepared():
    store = MilvusStore.open(uri, name)
    prepare(store)
    found = snapshot(store)
    store.close()
    return found

def looked_at():
    # what is there after a kill, and after another write nothing else, not even out of sight
    store = MilvusStore.open(uri, name)
    found = snapshot(store)
    assert store.verify() == [], store.verify()
    store.set_documents({})
    assert snapshot(store) == found
    head, client = store._state.head(), store._connection._client
    numbers = {key: number for key, (number, _) in head.versions.items()}

    def count(collection):
        (answer,) = client.query(collection, filter="", output_fields=["count(*)"], consistency_level="Strong")
        return answer["count(*)"]

    raw = {c: count(c) for c in client.list_collections() if c.startswith(name + "__")}
    assert raw == {
        f"{name}__state": sum(parts for _, parts in head.documents.values()) + 1,
        f"{name}__entries": len(found["entries"]),
        **{f"{name}__vectors_{number}": len(found["vectors"][key]) for key, number in numbers.items()},
    }
    if NEW.key in numbers:
        others = client.query(f"{name}__vectors_{numbers[OLD.key]}", filter="", limit=16384,
                              output_fields=["row", "others"], consistency_level="Strong")
        marked = {row["row"] for row in others if numbers[NEW.key] in row["others"]}
        both = [text for text in found["vectors"][NEW.key] if text in found["vectors"][OLD.key]]
        assert marked == set(store.find(both).tolist())
    store.close()
    return found

def block(seed, version, count=30):
    return np.random.default_rng(seed).standard_normal((count, version.size)).astype(np.float32)

ids = [f"id {i}" for i in range(30)]
others = ids[10:] + [f"more {i}" for i in range(10)]
calls = {
    "enrol": lambda store: store.enrol(others, {OLD.key: block(1, OLD), NEW.key: block(2, NEW)}),
    "add": lambda store: store.add_vectors(NEW.key, store.find(ids[:30]), block(3, NEW)),
    "delete": lambda store: store.delete(ids[5:15]),
    "drop": lambda store: store.drop_version(NEW.key, {"a": 1, "long": "x" * 100_000}),
    "create": lambda store: store.add_version(NEW),
}
counts = {}
for call in sys.argv[4].split(","):
    before, after, request, done = in_child(prepared), None, 0, None
    while not done:
        done = killed_before(request, call)
        found = in_child(looked_at)
        assert found, (call, request)
        if found != before:
            after = after or found
            assert found == after, (call, request)
        request += step
    assert after
    counts[call] = request // step - 1
print(json.dumps(counts))
"""


def check_kills(uri, name, step, calls):
    """SIGKILL before every `step`th request of calls: all of the call or nothing, and nothing is left over."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
    answer = subprocess.run(
        [sys.executable, "-c", KILLED, uri, name, str(step), calls], capture_output=True, text=True, env=environment
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    kills = json.loads(answer.stdout)
    print(f"kills: {kills}")
    assert all(kills.values())


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "gallery.db")


@pytest.fixture
def store(path):
    store = MilvusStore.create(path, "faces")
    yield store
    store.close()


def filled(store, count=40):
    """Entries "id 0", ... with old vectors."""
    store.add_version(OLD)
    vectors = np.random.default_rng(5).standard_normal((count, OLD.size)).astype(np.float32)
    store.enrol([f"id {i}" for i in range(count)], {OLD.key: vectors})
    return vectors


def test_random_calls_in_a_file(path):
    def open_again(store):
        store.close()
        return MilvusStore.open(path, "faces")

    check_random_calls(MilvusStore.create(path, "faces"), open_again, 17, seed=1).close()


def test_kills_in_a_file(path):
    MilvusStore.create(path, "faces").close()
    check_kills(path, "faces", STEP, "enrol,add,drop")


@pytest.mark.timeout(600)
def test_on_a_server(tmp_path):
    """One test, so that several test processes start one server."""
    with running_server(tmp_path) as uri:
        store = MilvusStore.create(uri, "faces")
        other = MilvusStore.open(uri, "faces")
        check_random_calls(store, lambda _: other, 9, seed=2)
        filled(two := MilvusStore.create(uri, "two"))
        check_indexes(two, ["hnsw", "exact"])
        check_kills(uri, "faces", 6, "enrol,add")
        check_another_writer(uri, "faces")
    with pytest.raises(UserError, match="does not answer at http://127.0.0.1:.*: start it") as error:
        MilvusStore.open(uri, "faces")
    assert "\n" not in str(error.value)


HOLDS = """
import sys, time
from core.gallery.milvus.store import MilvusStore
store = MilvusStore.open(sys.argv[1], sys.argv[2])
with store._writing():
    print("in", flush=True)
    time.sleep(100)
"""


def check_another_writer(uri, name):
    """Another process has the turn: this one is told and still reads; when that is killed this one goes on at once."""
    store = MilvusStore.open(uri, name)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with (
        pytest.MonkeyPatch.context() as patch,
        subprocess.Popen([sys.executable, "-c", HOLDS, uri, name], stdout=subprocess.PIPE, env=environment) as holder,
    ):
        try:
            assert holder.stdout.read(2) == b"in"
            patch.setattr(milvus_state, "WAIT", 0.5)
            with pytest.raises(UserError, match=f"another process writes to {name} in .*: repeat the command"):
                store.set_documents({"a": 5})
            assert store.document("a") != 5
        finally:
            holder.kill()
        holder.wait()
        store.set_documents({"a": 5})
        assert store.document("a") == 5
    store.close()


def test_a_silent_writer_of_another_machine_counts_as_dead(store, monkeypatch):
    filled(store)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(milvus_state, "_machine", lambda: "elsewhere")
        store._state.write_ticket(-5, 0, {})
    monkeypatch.setattr(milvus_state, "WAIT", 0.3)
    with pytest.raises(UserError, match="another process writes"):
        store.delete(["id 0"])
    monkeypatch.setattr(milvus_state, "LEASE", 0.2)
    assert store.delete(["id 0"]) == 1
    assert len(store._connection.select(store._state.collection, 'kind == "ticket"', ["key"])) == 0


def check_indexes(store, indexes):
    """Other indexes find most, with the right cosines; the exact one finds all again."""
    vectors = filled(store, 1500)
    queries = vectors[:50] / np.linalg.norm(vectors[:50], axis=1, keepdims=True)
    cosines = queries @ (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).T
    best = -np.sort(-cosines, axis=1)[:, :5]
    for index in indexes:
        hits = store.search(OLD.key, queries, 5, index=index)
        rows = np.array([[int(text[3:]) for text in ids] for ids in hits.ids])
        np.testing.assert_allclose(hits.scores, np.take_along_axis(cosines, rows, axis=1), atol=1e-5)
        recall = np.isclose(hits.scores, best, atol=1e-5).mean()
        assert recall > 0.9 and (index != "exact" or recall == 1), (index, recall)
    np.testing.assert_array_equal(store.vectors(OLD.key, np.arange(1500) + store.find(["id 0"])), vectors)


def test_indexes_of_a_file(store):
    check_indexes(store, ["hnsw", "ivf", "exact"])
    with pytest.raises(UserError, match="unknown index 'best': exact, hnsw, ivf"):
        store.search(OLD.key, np.ones((1, OLD.size)), 1, index="best")


def test_equal_cosines_come_in_the_order_of_enrolment(store):
    store.add_version(OLD)
    store.enrol([f"{i}" for i in range(60)], {OLD.key: np.ones((60, OLD.size))})
    store.enrol(["0"], {OLD.key: np.ones((1, OLD.size))})  # now the last
    hits = store.search(OLD.key, np.full((1, OLD.size), OLD.size**-0.5), 4)
    assert list(hits.ids[0]) == ["1", "2", "3", "4"]


def test_an_entry_without_its_mark_is_looked_up(store):
    """As after a kill between the vectors and the marks: more entries than a search has to spare."""
    vectors = filled(store, 200)
    store.add_version(NEW)
    store._mark = lambda *_: None
    store.add_vectors(NEW.key, store.find([f"id {i}" for i in range(150)]), np.ones((150, NEW.size)))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    hits = store.search(OLD.key, unit[:3], 50, without=[NEW.key])
    order = np.argsort(-(unit[:3] @ unit[150:].T), axis=1)
    assert hits.ids.tolist() == [[f"id {150 + i}" for i in row] for row in order]


def test_float16_comes_back_as_the_same_numbers(store):
    store.add_version(OLD)
    vectors = np.random.default_rng(0).standard_normal((3, OLD.size)).astype(np.float16)
    store.enrol(["a", "b", "c"], {OLD.key: vectors})
    np.testing.assert_array_equal(store.vectors(OLD.key, store.find(["c", "a"])), vectors[[2, 0]])


def test_entries_at(store):
    filled(store)
    store.enrol(["id 3"], {}, ["class"], ["a/b.jpg"])
    rows = store.find(["id 7", "id 3", "id 5"])
    found = store.entries_at(np.array([rows[0], 3, rows[1], 99, rows[2], rows[0]]))
    assert (found.ids, found.labels[1], found.images[1]) == (["id 7", "id 3", "id 5", "id 7"], "class", "a/b.jpg")
    np.testing.assert_array_equal(found.rows, rows[[0, 1, 2, 0]])


def test_no_entry_loses_its_only_vector(store):
    """A version is dropped when each of its entries has another vector, marked or just added."""
    filled(store)
    with pytest.raises(UserError, match="40 entries have a vector of 0a1b alone, perhaps enrolled meanwhile: repeat"):
        store.drop_version(OLD.key)
    store.add_version(NEW)
    store.add_vectors(NEW.key, np.arange(40), np.ones((40, NEW.size)))
    store.enrol(["late"], {OLD.key: np.ones((1, OLD.size))})
    with pytest.raises(UserError, match="1 entries have a vector of 0a1b alone"):
        store.drop_version(OLD.key, {"a": 1})
    assert store.counts() == {OLD.key: 41, NEW.key: 40} and store.document("a") is None
    store.delete(["late"])
    store.drop_version(OLD.key, {"a": 1})
    assert store.counts() == {NEW.key: 40} and store.document("a") == 1
    store.enrol(["none"], {})
    (fault,) = store.verify()
    assert "the entry 'none' of faces in" in fault and "has no vector: delete it or insert it again" in fault


def test_verify_tells_what_is_damaged(store):
    filled(store)
    store.set_documents({"a": 1})
    connection, vectors = store._connection, "faces__vectors_0"

    def damaged(collection, row, **changes):
        (found,) = connection.select(collection, f"row == {row}", ["*"])
        columns = {name: [value] for name, value in {**found, **changes}.items() if name != "vector"}
        connection.upsert(collection, {**columns, "vector": np.array([changes.get("vector", found["vector"])])})

    damaged(vectors, 3, vector=[0.5] * OLD.size)
    damaged("faces__entries", 4, label="=other")
    damaged("faces__entries", 5, id="id 6")
    connection.delete("faces__entries", "row", np.array([7]))
    first, _ = store._state.head().documents["a"]
    (chunk,) = connection.select("faces__state", f"key == {first}", ["*"])
    connection.upsert("faces__state", {**{k: [v] for k, v in chunk.items()}, "text": ["2"],
                                       "vector": np.ones((1, 2))})  # fmt: skip
    faults = "\n".join(store.verify())
    for fault in (
        "the document a of faces in .* is damaged",
        "vector of entry 3, version 0a1b, .* is damaged",
        "the entry 4 of .* is damaged",
        "the id 'id 6' is there more than once",
        "has no entry: row 7",
    ):
        assert len(re.findall(fault, faults)) == 1, (fault, faults)
    with pytest.raises(UserError, match="the document a of faces in .* is damaged"):
        store.document("a")


def test_long_ids(store):
    """More text than one request may have."""
    store.add_version(OLD)
    ids = ["€" * 21845 + suffix for suffix in [""]] + [f"{i}" + "x" * 65530 for i in range(300)]
    vectors = np.random.default_rng(0).standard_normal((301, OLD.size)).astype(np.float32)
    store.enrol(ids, {OLD.key: vectors})
    assert [text for block in store.entries() for text in block.ids] == ids
    assert store.search(OLD.key, vectors[:1] / np.linalg.norm(vectors[:1]), 1).ids[0, 0] == ids[0]


def test_answers_that_a_server_finds_too_large_are_asked_in_halves(store, monkeypatch):
    vectors, select = filled(store), milvus_connection.Connection.select

    def limited(self, collection, condition, fields):
        found = select(self, collection, condition, fields)
        if len(found) > 7:
            raise milvus_connection.RequestError("query failed: query results exceed the limit size")
        return found

    monkeypatch.setattr(milvus_connection.Connection, "select", limited)
    np.testing.assert_array_equal(store.vectors(OLD.key, np.arange(40)), vectors)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.enrol(["a", "b", "a"], {}), "the id 'a' comes twice .*: give each once"),
        (lambda s: s.enrol(["a" * 65536], {}), "the id that begins with 'a*' has 65,536 bytes: shorten it"),
        (lambda s: s.enrol(["a"], {}, ["€" * 21845]), "the label .* has 65,535 bytes: shorten it to the 65,534"),
        (lambda s: s.enrol(["\ud800"], {}), "is not UTF-8: correct it"),
        (lambda s: s.enrol(["a"], {}, ["x", "y"]), "1 ids, 2 labels and 1 images do not fit"),
        (lambda s: s.enrol(["a"], {OLD.key: np.ones((1, 9))}), r"are \(1, 8\) for 1 entries, not \(1, 9\)"),
        (lambda s: s.enrol(["a"], {"x": np.ones((1, 9))}), "has no vectors of x; name one that it has: 0a1b"),
        (lambda s: s.add_vectors("x", np.arange(1), np.ones((1, 9))), "has no vectors of x"),
        (lambda s: s.add_version(Version(OLD.key, "old", 9)), "has vectors of 0a1b with 8 numbers, not 9"),
        (lambda s: s.vectors(OLD.key, np.array([3, 77])), "entry 77 of faces in .* has no vector of 0a1b"),
        (lambda s: s.search(OLD.key, np.ones((1, 8)), 16385), "at most 16,384 entries"),
        (lambda s: s.search(OLD.key, np.ones((1, 9)), 1), r"queries \(Q, 8\) are needed"),
        (lambda s: s.search(OLD.key, np.ones((1, 8)), 1, ["x"]), "has no vectors of x"),
    ],
)
def test_mistakes(store, call, message):
    filled(store)
    with pytest.raises(UserError, match=message) as error:
        call(store)
    assert "\n" not in str(error.value)
    assert len(store) == 40 and store.verify() == []


@pytest.mark.parametrize(
    ("call", "uri", "name", "message"),
    [
        (MilvusStore.create, "{}/gallery.db", "faces", "there is a gallery faces in .* already: name another"),
        (MilvusStore.create, "{}/gallery.db", "no name", "letters, digits and _"),
        (MilvusStore.create, "{}/missing/gallery.db", "faces", "the folder .*missing of .* does not exist: make it"),
        (
            MilvusStore.open,
            "{}/gallery.db",
            "others",
            "there is no gallery others in .*: correct the name, or create it",
        ),
        (MilvusStore.open, "{}/missing.db", "faces", "there is no gallery .*: the file does not exist; create it"),
        (MilvusStore.open, "http://127.0.0.1:1", "faces", "does not answer at http://127.0.0.1:1: start it"),
        (MilvusStore.open, "htp://x", "faces", "htp://x"),
    ],
)
def test_galleries_that_cannot_be_had(store, tmp_path, call, uri, name, message):
    with pytest.raises(UserError, match=message) as error:
        call(uri.format(tmp_path), name)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "missing.db").exists()


def test_a_file_that_another_process_has_open(store, path):
    line = "import sys; from core.gallery.milvus.store import MilvusStore; MilvusStore.open(sys.argv[1], 'faces')"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    answer = subprocess.run([sys.executable, "-c", line, path], capture_output=True, text=True, env=environment)
    assert "UserError: cannot open the Milvus file" in answer.stderr.splitlines()[-1]


def test_without_pymilvus(path, monkeypatch):
    monkeypatch.setattr(milvus_connection, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs pymilvus: pip install pymilvus milvus-lite"):
        MilvusStore.create(path, "faces")


def test_a_password_is_not_shown(monkeypatch):
    with pytest.raises(UserError, match="does not answer") as error:
        MilvusStore.open("http://root:secret@127.0.0.1:1", "faces")
    assert "secret" not in str(error.value)


def test_one_long_work_at_a_time(store):
    """A claim keeps out another one but no writer, and ends with its context."""
    with store.claimed("backfill"):
        with pytest.raises(UserError, match="another work holds .*backfill, process"), store.claimed("commit"):
            pass
        store.set_documents({"a": 1})
    with store.claimed("commit"):
        pass


@pytest.mark.parametrize("beats", [True, False])
def test_claims_of_another_machine(store, monkeypatch, beats):
    """One that is renewed is respected; one that is silent for the time of a lease was left by a killed process."""
    monkeypatch.setattr(milvus_state, "BEAT", 0.1)
    monkeypatch.setattr(milvus_state, "LEASE", 0.6)
    select, number = store._connection.select, 0

    def renew(*arguments):
        nonlocal number
        number += beats
        with monkeypatch.context() as patch:
            patch.setattr(milvus_state, "_machine", lambda: "elsewhere")
            store._state.write_ticket(-7, number, "backfill", "claim")
        return select(*arguments)

    monkeypatch.setattr(store._connection, "select", renew)
    if beats:
        with pytest.raises(UserError, match=r"backfill, process \d+ on elsewhere"), store.claimed("commit"):
            pass
    else:
        with store.claimed("commit"):
            assert [row["key"] for row in select(store._state.collection, 'kind == "claim"', ["key"])] != [-7]


def test_claim_of_a_killed_process(store):
    """Of this machine: its number tells at once."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getpid", lambda: ended.pid)
        store._state.write_ticket(-7, 0, "backfill", "claim")
    with store.claimed("commit"):
        pass
