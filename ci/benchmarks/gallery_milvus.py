"""Time and memory of a gallery in Milvus through half an upgrade and back, beside NumPy's search of the same vectors.

    python ci/benchmarks/gallery_milvus.py --uri http://127.0.0.1:19530     on a server that runs
    python ci/benchmarks/gallery_milvus.py --uri gallery.db                 in a file of milvus-lite

Random vectors, 100,000 x 128: enrolled, half of them given a new vector, 100 queries searched in both halves with their
exact scores compared, and the new version dropped, which leaves what was there. The gallery's collections are removed
at the end. Seconds are wall time; the memory is this process's (for a file the engine runs in it).
"""

import argparse
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from core.gallery.milvus.connection import PART, Connection
from core.gallery.milvus.store import MilvusStore
from core.gallery.store import Version

K = 10


def unit_vectors(count: int, dim: int, seed: int) -> np.ndarray:
    """Random directions, float32 (count, dim)."""
    vectors = np.random.default_rng(seed).standard_normal((count, dim), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@contextmanager
def timed(what: str, count: int) -> Iterator[None]:
    """Print how long the context took, for `count` things."""
    started, used = time.perf_counter(), time.process_time()
    yield
    seconds, used = time.perf_counter() - started, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what:<42}{seconds:8.2f} s {count / seconds:10,.0f}/s {used:8.2f} s of processors, peak {peak:.2f} GiB",
          flush=True)  # fmt: skip


def search_with_numpy(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Best scores (Q, K)."""
    return -np.sort(-np.partition(queries @ vectors.T, -K, axis=1)[:, -K:], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uri", required=True)
    for name, default in (("gallery", 100_000), ("dim", 128), ("queries", 100)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    n, name = args.gallery, f"benchmark_{time.time_ns()}"
    old, new, queries = (unit_vectors(count, args.dim, seed) for seed, count in enumerate((n, n // 2, args.queries)))
    ids = [f"image {i:09}" for i in range(n)]
    chosen = np.random.default_rng(9).permutation(n)[: n // 2]
    with timed("create", 1):
        store = MilvusStore.create(args.uri, name)
        store.add_version(Version("old", "old", args.dim))
    with timed("enrol, 4,096 a call", n):
        for start in range(0, n, PART):
            store.enrol(ids[start : start + PART], {"old": old[start : start + PART]})
    with timed("search of one version, first", args.queries):
        store.search("old", queries, K)
    with timed("search of one version", args.queries):
        hits = store.search("old", queries, K)
    with timed("the same by NumPy", args.queries):
        scores = search_with_numpy(queries, old)
    np.testing.assert_allclose(hits.scores, scores, atol=1e-5)
    store.add_version(Version("new", "new", args.dim))
    with timed("add_vectors to half of them, 4,096 a call", n // 2):
        for start in range(0, n // 2, PART):
            store.add_vectors("new", chosen[start : start + PART], new[start : start + PART])
    left = np.setdiff1d(np.arange(n), chosen)
    for key, without, vectors in (("new", (), new), ("old", ("new",), old[left])):
        for again in ("first", "again"):
            with timed(f"search of the half {key}, {again}", args.queries):
                hits = store.search(key, queries, K, without)
        np.testing.assert_allclose(hits.scores, search_with_numpy(queries, vectors), atol=1e-5)
    with timed("read all entries and old vectors", n):
        for block in store.entries():
            np.testing.assert_array_equal(store.vectors("old", block.rows), old[block.rows])
    with timed("drop_version (rollback)", 1):
        store.drop_version("new")
    assert (len(store), store.counts()) == (n, {"old": n})
    for index in ("hnsw", "ivf"):
        with timed(f"build {index} and search", args.queries):
            store.search("old", queries, K, index=index)
        with timed(f"search with {index}", args.queries):
            found = store.search("old", queries, K, index=index)
        best = search_with_numpy(queries, old)
        recall = (found.scores >= best[:, -1:] - 1e-5).mean()
        print(f"recall@{K} of {index}: {recall:.3f} (random directions are the hardest case)")
    store.close()
    connection = Connection(args.uri)
    for collection in connection.collections():
        if collection.startswith(name + "__"):
            connection.drop(collection)
    connection.close()


if __name__ == "__main__":
    main()
