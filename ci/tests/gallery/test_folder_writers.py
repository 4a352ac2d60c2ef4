"""Several processes at one gallery folder: writers, readers meanwhile, kills and a full disk."""

import os
import random
import resource
import shutil
import signal
import sqlite3
import time
from functools import partial
from multiprocessing import get_context

import numpy as np
import pytest

from core.errors import UserError
from core.gallery.folder import database as folder_database
from core.gallery.folder import store as module
from core.gallery.folder.store import FolderStore
from core.gallery.folder.vectors import VectorFile
from core.gallery.store import Version

FORK = get_context("fork")
KILLS = int(os.environ.get("GALLERY_KILLS", "6"))
"""Each of a writer and of a creation; more of them on demand."""


def vectors(count, size=8, seed=0):
    return np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)


def unit(array):
    return array / np.linalg.norm(array, axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So that files have several, and are written anew now and then."""
    for name in ("store", "vectors", "check"):
        monkeypatch.setattr(f"core.gallery.folder.{name}.SLOTS", 16)


@pytest.fixture
def path(tmp_path):
    """Of a gallery with 40 entries of the version "old", and an empty version "new"."""
    with FolderStore.creating(tmp_path / "gallery") as store:
        for key in ("old", "new"):
            store.add_version(Version(key, key, 8))
        store.enrol([f"first {number}" for number in range(40)], {"old": vectors(40)})
    return tmp_path / "gallery"


def in_process(step, *arguments):
    process = FORK.Process(target=step, args=arguments)
    process.start()
    return process


def state(path):
    """All that a gallery holds, and that it has no fault."""
    store = FolderStore.open(path)
    assert store.verify() == []
    found = {}
    for block in store.entries():
        for row, name in zip(block.rows, block.ids):
            found[name] = [int(row)]
    for key in store.versions():
        lacking = {row for block in store.entries(lacking=key) for row in block.rows.tolist()}
        rows = {name: entry[0] for name, entry in found.items() if entry[0] not in lacking}
        for name, vector in zip(rows, store.vectors(key, np.array(list(rows.values()), np.int64))):
            found[name].append((key, vector.tobytes()))
    found["documents"] = store.document("last")
    store.close()
    return found


def enrol_some(path, name, count):
    store = FolderStore.open(path)
    for number in range(count):
        store.enrol([f"{name} {number} {part}" for part in range(3)], {"old": vectors(3, seed=number)})
    store.close()


def test_writers_take_turns(path):
    processes = [in_process(enrol_some, path, name, 15) for name in ("one", "two", "three")]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len(state(path)) - 1 == 40 + 3 * 15 * 3


def test_a_writer_that_waits_too_long_is_told_and_readers_go_on(path, monkeypatch):
    monkeypatch.setattr(folder_database, "PATIENCE", 0.05)
    other = sqlite3.connect(path / folder_database.FILE, isolation_level=None)
    store = FolderStore.open(path)
    other.execute("BEGIN IMMEDIATE")
    for write in (
        lambda: store.enrol(["x"], {"old": vectors(1)}),
        lambda: store.delete(["first 0"]),
        lambda: store.add_vectors("new", np.arange(3), vectors(3)),
        lambda: store.set_documents({"a": 1}),
    ):
        with pytest.raises(UserError, match=f"another process is writing to {path}: repeat") as raised:
            write()
        assert "\n" not in str(raised.value)
    assert len(store) == 40 and store.search("old", unit(vectors(1)), 1).ids.tolist() == [["first 0"]]
    other.execute("ROLLBACK")
    store.enrol(["x"], {"old": vectors(1)})
    assert len(store) == 41
    store.close()
    other.close()


def test_a_search_sees_one_state_whatever_is_written_meanwhile(path, monkeypatch):
    store, writer = FolderStore.open(path), FolderStore.open(path)
    find = module.search

    def search(*arguments):
        writer.delete([f"first {number}" for number in range(40)])
        writer.enrol(["first 0", "another"], {"old": vectors(2, seed=5)})
        return find(*arguments)

    monkeypatch.setattr(module, "search", search)
    assert store.search("old", unit(vectors(40)), 1).ids[:, 0].tolist() == [f"first {number}" for number in range(40)]
    monkeypatch.setattr(module, "search", find)
    assert store.search("old", unit(vectors(2, seed=5)), 3).ids[:, 0].tolist() == ["first 0", "another"]
    store.close()
    writer.close()


def test_a_reader_goes_on_when_the_vector_file_is_replaced(path, monkeypatch):
    store, writer = FolderStore.open(path), FolderStore.open(path)
    look = VectorFile.open

    def open_late(file):
        monkeypatch.setattr(VectorFile, "open", look)
        assert writer.delete([f"first {number}" for number in range(30)]) == 30  # and the file is written anew
        assert not file.path.exists()
        return look(file)

    monkeypatch.setattr(VectorFile, "open", open_late)
    assert store.search("old", unit(vectors(40))[35:], 1).ids[:, 0].tolist() == [f"first {n}" for n in range(35, 40)]
    assert [file.name for file in path.glob("vectors-*")] == ["vectors-2.bin"]
    store.close()
    writer.close()


def change_without_end(path):
    store, number = FolderStore.open(path), 0
    while True:
        store.enrol([f"more {part}" for part in range(10)], {"old": vectors(10, seed=number)})
        store.delete([f"more {part}" for part in range(10)])
        number += 1


def test_searches_beside_a_writer_see_all_of_a_write_or_nothing(path):
    store = FolderStore.open(path)
    process = in_process(change_without_end, path)
    seen, end = set(), time.monotonic() + 30
    while len(seen) < 2 and time.monotonic() < end:
        hits = store.search("old", unit(vectors(1)), 60)
        names = [name for name in hits.ids[0] if name is not None]
        assert len(set(names)) == len(names) == np.isfinite(hits.scores).sum()
        seen.add(len(names))
        assert seen <= {40, 50}
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    store.close()
    assert seen == {40, 50}


def steps(store):
    """Calls of every kind. The first one is of use to a store that was killed right after a version was dropped."""
    for number in range(10**9):
        yield partial(store.add_version, Version("new", "new", 8))
        ids = [f"{number % 7} {part}" for part in range(200)]
        yield partial(store.enrol, ids, {"old": vectors(200, seed=number)})
        yield partial(add_new, store, ids, number)
        yield partial(store.delete, ids[::2])
        yield partial(store.set_documents, {"last": number})
        if number % 3 == 2:
            yield partial(store.drop_version, "new", {"last": f"dropped {number}"})


def add_new(store, ids, number):
    store.add_vectors("new", store.find(ids), vectors(200, seed=number))


def work(path, done):
    store = FolderStore.open(path)
    for step in steps(store):
        step()
        os.write(done, b".")


def test_a_killed_writer_leaves_the_state_before_or_after_a_call(path, tmp_path):
    rng = random.Random(0)
    again = tmp_path / "again"
    for _ in range(KILLS):
        shutil.rmtree(again, ignore_errors=True)
        shutil.copytree(path, again)
        read, write = os.pipe()
        process = in_process(work, path, write)
        os.close(write)
        os.read(read, 1)  # until it has begun
        count = 1
        time.sleep(rng.uniform(0, 0.15))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        while some := os.read(read, 1 << 16):
            count += len(some)
        os.close(read)
        found = state(path)
        store = FolderStore.open(again)
        unbroken = steps(store)
        for _ in range(count):
            next(unbroken)()
        before = state(again)
        next(unbroken)()
        assert found in (before, state(again))
        store.close()


def create(path, begun):
    with FolderStore.creating(path) as store:
        os.write(begun, b".")
        store.add_version(Version("old", "old", 8))
        for number in range(4):
            ids = [f"{number} {part}" for part in range(500)]
            store.enrol(ids, {"old": vectors(500, seed=number)})


def test_a_killed_creation_leaves_no_gallery_and_the_next_clears_it_away(tmp_path):
    rng = random.Random(1)
    for number in range(KILLS):
        path = tmp_path / f"gallery {number}"
        read, write = os.pipe()
        process = in_process(create, path, write)
        os.close(write)
        os.read(read, 1)
        os.close(read)
        time.sleep(rng.uniform(0, 0.06))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        if not path.exists():
            process = in_process(create, path, os.open(os.devnull, os.O_WRONLY))
            process.join()
            assert process.exitcode == 0
        assert len(state(path)) - 1 == 2000
    assert {file.name for file in tmp_path.iterdir()} == {f"gallery {number}" for number in range(KILLS)}


def fill(path, limit, results):
    """Until files may not grow any more; then with room again."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    store, number = FolderStore.open(path), 0
    size = store.versions()["old"].size
    try:
        while True:
            store.enrol([f"{number} {part}" for part in range(100)], {"old": vectors(100, size)})
            number += 1
    except UserError as error:
        found = str(error), number, len(store), store.verify(), sum(file.stat().st_size for file in path.glob("vec*"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    store.enrol(["the last"], {"old": vectors(1, size)})
    results.put((*found, store.verify()))


@pytest.mark.parametrize("size", [500, 2], ids=["vectors", "database"])
def test_a_disk_that_is_full_leaves_the_state_before(tmp_path, size):
    """Which of the files meets the limit first is a matter of the size of the vectors."""
    path = tmp_path / "gallery"
    store = FolderStore.create(path)
    store.add_version(Version("old", "old", size))
    store.close()
    results = FORK.SimpleQueue()
    process = in_process(fill, path, 700_000, results)
    process.join(60)
    assert process.exitcode == 0
    error, number, count, faults, room, faults_after = results.get()
    assert error.startswith(f"cannot write {path}") and ("vectors-0.bin" in error) == (size == 500)
    assert "\n" not in error
    assert (count, faults, faults_after) == (100 * number, [], [])
    assert room == 100 * number * size * 4 and number > 2
