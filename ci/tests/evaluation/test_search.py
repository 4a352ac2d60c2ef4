import builtins

import numpy as np
import pytest

from core.errors import UserError
from core.evaluation import search as module
from core.evaluation.search import search


def vectors(count, dim=12, seed=0):
    found = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def by_sorting(queries, gallery, k):
    """All products in float64, rounded to float32; the lower row first among equal ones."""
    scores = (queries.astype(np.float64) @ gallery.T.astype(np.float64)).astype(np.float32)
    rows = np.array([sorted(range(len(gallery)), key=lambda row: (-line[row], row))[:k] for line in scores])
    return np.take_along_axis(scores, rows.reshape(len(queries), k), axis=1), rows.reshape(len(queries), k)


def assert_same(found, expected):
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-7)
    assert found[0].dtype == np.float32 and found[1].dtype == np.int64


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 21 gallery rows, of 3 queries, of a few candidates: every loop goes round several times."""
    monkeypatch.setattr(module, "GALLERY_BLOCK", 21 * 4 * 12)
    monkeypatch.setattr(module, "QUERY_BLOCK", 3)
    monkeypatch.setattr(module, "RESCORE_BLOCK", 500)
    monkeypatch.setattr(module, "SCORE_BLOCK", 500)


@pytest.mark.parametrize("k", [1, 10, 30, 190, 200])
@pytest.mark.usefixtures("small_blocks")
def test_finds_what_sorting_all_products_finds(k):
    queries, gallery = vectors(7, seed=1), vectors(200)
    assert_same(search(queries, gallery, k), by_sorting(queries, gallery, k))


def test_gallery_may_be_a_memory_map_of_half_precision(tmp_path):
    gallery = np.lib.format.open_memmap(tmp_path / "g.npy", mode="w+", dtype=np.float16, shape=(300, 12))
    gallery[:] = vectors(300)
    queries = vectors(5, seed=1)
    assert_same(search(queries, gallery, 20), by_sorting(queries, np.array(gallery, np.float32), 20))


@pytest.mark.usefixtures("small_blocks")
def test_equal_products_come_in_the_order_of_the_rows_also_where_they_cross_the_end():
    gallery = np.repeat(vectors(4), 60, axis=0)[np.random.default_rng(0).permutation(240)]
    queries = vectors(8, seed=1)
    assert_same(search(queries, gallery, 10), by_sorting(queries, gallery, 10))
    collapsed = np.tile(vectors(1), (100, 1))
    assert search(queries, collapsed, 5)[1].tolist() == [[0, 1, 2, 3, 4]] * 8


@pytest.mark.usefixtures("small_blocks")
def test_neighbours_closer_than_float32_rounding_are_ranked_by_their_exact_products():
    queries = vectors(4, seed=1)
    gallery = np.concatenate([queries[0] + 1e-7 * vectors(90, seed=2), vectors(90, seed=3)])
    assert_same(search(queries, gallery, 12), by_sorting(queries, gallery, 12))


@pytest.fixture
def asked_gpus(monkeypatch):
    """As if faiss saw two GPUs: how many each search asked for, the work being done on the CPU."""
    search(vectors(1), vectors(50), 1)  # loads faiss
    import faiss
    from faiss.contrib import exhaustive_search

    asked, find = [], exhaustive_search.knn_ground_truth

    def knn_ground_truth(*arguments, shard, ngpu):
        asked.append((ngpu, shard))
        return find(*arguments, ngpu=0)

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
    monkeypatch.setattr(exhaustive_search, "knn_ground_truth", knn_ground_truth)
    return asked


def test_gallery_is_sharded_over_all_gpus_unless_the_cpu_is_asked_for(asked_gpus):
    queries, gallery = vectors(3, seed=1), vectors(200)
    assert_same(search(queries, gallery, 10), by_sorting(queries, gallery, 10))
    assert_same(search(queries, gallery, 10, use_gpu=False), by_sorting(queries, gallery, 10))
    assert asked_gpus == [(2, True), (0, True)]


def test_more_results_than_a_gpu_gives_are_searched_on_the_cpu(asked_gpus):
    queries, gallery = vectors(2, seed=1), vectors(2200)
    assert_same(search(queries, gallery, 2040), by_sorting(queries, gallery, 2040))
    assert asked_gpus == [(0, True)]


def test_shapes_and_k_must_fit():
    for queries, gallery, k in (
        (vectors(2), vectors(9, 5), 1),
        (vectors(2), vectors(9), 10),
        (vectors(2), vectors(9), 0),
    ):
        with pytest.raises(ValueError):
            search(queries, gallery, k)


def test_no_queries_give_an_empty_result():
    scores, rows = search(vectors(0), vectors(50), 3)
    assert scores.shape == rows.shape == (0, 3)


def test_missing_faiss_is_reported_with_the_packages_that_have_it(monkeypatch):
    import_it = builtins.__import__

    def refuse(name, *arguments, **keywords):
        if name == "faiss":
            raise ImportError("No module named 'faiss'")
        return import_it(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match="pip install faiss-gpu .* faiss-cpu"):
        search(vectors(2), vectors(100), 3)
