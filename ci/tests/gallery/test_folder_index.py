"""HNSW and IVF over a gallery folder, held against the exact search of the same gallery."""

import numpy as np
import pytest

from core.gallery.folder.store import FolderStore
from core.gallery.store import Version

COUNT, SIZE, K = 2000, 12, 5


def vectors(count, seed=0):
    return 3 * np.random.default_rng(seed).standard_normal((count, SIZE)).astype(np.float32)


def ids(count, word="first"):
    return [f"{word} {number}" for number in range(count)]


@pytest.fixture
def gallery(tmp_path):
    store = FolderStore.create(tmp_path / "gallery")
    for key in ("old", "new"):
        store.add_version(Version(key, key, SIZE))
    store.enrol(ids(COUNT), {"old": vectors(COUNT)})
    yield store
    store.close()


@pytest.fixture
def queries():
    found = vectors(40, seed=1)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def recall(store, queries, kind, without=()):
    """Share of the exact hits that the index finds; where it finds the same, the cosines are the same."""
    exact, hits = (store.search("old", queries, K, without, index) for index in ("exact", kind))
    same = exact.ids == hits.ids
    np.testing.assert_allclose(hits.scores[same], exact.scores[same], atol=1e-6)
    assert (np.diff(hits.scores, axis=1) <= 0).all()
    return np.mean([len(set(a) & set(b)) / K for a, b in zip(exact.ids.tolist(), hits.ids.tolist())])


def kept(tmp_path, kind):
    (file,) = (tmp_path / "gallery").glob(f"index-{kind}-*.faiss")
    return file, file.stat().st_mtime_ns


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_an_index_follows_what_comes_and_goes(gallery, queries, tmp_path, kind):
    assert recall(gallery, queries, kind) > 0.75
    file, made = kept(tmp_path, kind)
    gallery.enrol(ids(40, "second"), {"old": queries * 2})  # searched beside the index
    assert gallery.search("old", queries, 1, index=kind).ids[:, 0].tolist() == ids(40, "second")
    gallery.delete(ids(40, "second"))
    gallery.delete(ids(500))
    hits = gallery.search("old", queries, K, index=kind)
    assert set(hits.ids.reshape(-1)) <= set(ids(COUNT)[500:])
    rows = gallery.find(ids(COUNT)[500:800])
    gallery.add_vectors("new", rows, vectors(300))
    assert recall(gallery, queries, kind, without=["new"]) > 0.75
    hits = gallery.search("old", queries, K, without=["new"], index=kind)
    assert set(hits.ids.reshape(-1)) <= set(ids(COUNT)[800:])
    assert kept(tmp_path, kind) == (file, made)
    gallery.enrol(ids(600, "third"), {"old": vectors(600, seed=3)})  # more than a quarter: made anew
    assert recall(gallery, queries, kind) > 0.75
    assert kept(tmp_path, kind)[1] != made


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_an_index_serves_a_whole_upgrade(gallery, queries, tmp_path, kind):
    """It is made once, whichever entries a search leaves out, and finds as good a part of those that are left."""
    whole = recall(gallery, queries, kind)
    made = kept(tmp_path, kind)
    for done in (COUNT // 4, COUNT * 7 // 10, COUNT * 9 // 10, COUNT - 20):
        gallery.add_vectors("new", gallery.find(ids(done)), vectors(done))
        assert recall(gallery, queries, kind, without=["new"]) >= whole - 0.02
        hits = gallery.search("old", queries, K, without=["new"], index=kind)
        assert set(hits.ids.reshape(-1)) <= set(ids(COUNT)[done:])
        assert recall(gallery, queries, kind) == whole
        assert kept(tmp_path, kind) == made


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_fewer_entries_than_asked_for(gallery, queries, kind):
    gallery.delete(ids(COUNT)[3:])
    hits = gallery.search("old", queries, K, index=kind)
    assert {frozenset(line) for line in hits.ids.tolist()} == {frozenset([*ids(3), None])}
    assert np.isneginf(hits.scores[:, 3:]).all() and np.isfinite(hits.scores[:, :3]).all()


def test_a_damaged_index_is_made_again(gallery, queries, tmp_path):
    assert recall(gallery, queries, "hnsw") > 0.75
    file, _ = kept(tmp_path, "hnsw")
    file.write_bytes(b"no index")
    assert recall(gallery, queries, "hnsw") > 0.75
    assert file.stat().st_size > 1000


def test_the_index_goes_with_its_version(gallery, queries, tmp_path):
    gallery.add_vectors("new", gallery.find(ids(COUNT)), vectors(COUNT))
    gallery.search("old", queries, K, index="ivf")
    gallery.drop_version("old")
    assert sorted(path.suffix for path in (tmp_path / "gallery").glob("*-*.*")) == [".sqlite-shm", ".sqlite-wal"] or (
        list((tmp_path / "gallery").glob("index-*")) == list((tmp_path / "gallery").glob("vectors-0*")) == []
    )
