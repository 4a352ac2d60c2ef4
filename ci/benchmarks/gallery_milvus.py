"""A gallery in Milvus through half an upgrade and back, beside NumPy's search of the same vectors.

    python -m ci.benchmarks gallery_milvus --uri http://127.0.0.1:19530     on a server that runs
    python -m ci.benchmarks gallery_milvus --uri gallery.db                 in a file of milvus-lite

Random vectors, 100,000 x 128: enrolled, half of them given a new vector, 100 queries searched in both halves with their
exact scores compared, and the new version dropped, which leaves what was there. What changes the gallery is done once.
The gallery's collections are removed at the end. CPU seconds and memory are this process's (for a file the engine runs
in it).
"""

import time
from collections.abc import Callable

import numpy as np

from ci.benchmarks.harness.bench import Bench, SetUpError, digits, measure
from ci.benchmarks.harness.vectors import unit_vectors
from core.gallery.milvus.connection import PART, Connection
from core.gallery.milvus.store import MilvusStore
from core.gallery.store import Version

QUICK = {"gallery": 200, "dim": 8, "queries": 5}
K = 10


def search_with_numpy(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Best scores (Q, K)."""
    return -np.sort(-np.partition(queries @ vectors.T, -K, axis=1)[:, -K:], axis=1)


def run(bench: Bench, *, uri: str = "", gallery: int = 100_000, dim: int = 128, queries: int = 100) -> None:
    if not uri:
        raise SetUpError("gallery_milvus needs the --uri of a Milvus server, or of a file whose name ends in .db")
    old, new, asked = (unit_vectors(count, dim, seed) for seed, count in enumerate((gallery, gallery // 2, queries)))
    name, chosen = f"benchmark_{time.time_ns()}", np.random.default_rng(9).permutation(gallery)[: gallery // 2]
    store, steps = MilvusStore.create(uri, name), []

    def once(step: str, count: int, work: Callable[[], object]) -> object:
        """Do it, and add its line to `steps`."""
        result, sample = measure(work)
        numbers = sample.seconds, count / sample.seconds, sample.cpu_seconds
        steps.append([step, *map(digits, numbers), f"{sample.peak_gib:.2f}"])
        return result

    def search(what: str, key: str, vectors: np.ndarray, without: tuple[str, ...] = ()) -> None:
        ways = {
            "Milvus": lambda: store.search(key, asked, K, without).scores,
            "NumPy": lambda: search_with_numpy(asked, vectors),
        }
        np.testing.assert_allclose(*bench.compare(what, ways, queries, "queries").values(), atol=1e-5)

    store.add_version(Version("old", "old", dim))
    once("enrol", gallery, lambda: enrol(store, old))
    search("search of one version", "old", old)
    store.add_version(Version("new", "new", dim))
    once("add_vectors to half of them", gallery // 2, lambda: add_vectors(store, chosen, new))
    search("search of the new half", "new", new)
    search("search of the old half", "old", np.delete(old, chosen, axis=0), ("new",))
    once("read all entries and old vectors", gallery, lambda: read(store, old))
    once("drop_version (rollback)", 1, lambda: store.drop_version("new"))
    assert (len(store), store.counts()) == (gallery, {"old": gallery})
    for index in ("hnsw", "ivf"):
        once(f"build {index} and search", queries, lambda: store.search("old", asked, K, index=index))  # noqa: B023
        found = once(f"search with {index}", queries, lambda: store.search("old", asked, K, index=index))  # noqa: B023
        recall = (found.scores >= search_with_numpy(asked, old)[:, -1:] - 1e-5).mean()
        bench.note(f"recall@{K} of {index}: {recall:.3f} (random directions are the hardest case)")
    bench.table(f"Once, in parts of {PART:,}", ["step", "seconds", "a second", "CPU s", "GiB"], steps)
    store.close()
    connection = Connection(uri)
    for collection in connection.collections():
        if collection.startswith(name + "__"):
            connection.drop(collection)
    connection.close()


def enrol(store: MilvusStore, vectors: np.ndarray) -> None:
    ids = [f"image {i:09}" for i in range(len(vectors))]
    for start in range(0, len(vectors), PART):
        store.enrol(ids[start : start + PART], {"old": vectors[start : start + PART]})


def add_vectors(store: MilvusStore, rows: np.ndarray, vectors: np.ndarray) -> None:
    for start in range(0, len(rows), PART):
        store.add_vectors("new", rows[start : start + PART], vectors[start : start + PART])


def read(store: MilvusStore, vectors: np.ndarray) -> None:
    for block in store.entries():
        np.testing.assert_array_equal(store.vectors("old", block.rows), vectors[block.rows])
