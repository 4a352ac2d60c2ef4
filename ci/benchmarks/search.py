"""The exact search beside plain NumPy, on random unit vectors; the results are compared.

python -m ci.benchmarks search                     1,000 queries, a gallery of 1,000,000 x 256, the 100 best
python -m ci.benchmarks search --gallery 50000     a smaller gallery
"""

import numpy as np

from ci.benchmarks.harness.bench import Bench
from ci.benchmarks.harness.vectors import unit_vectors
from core.evaluation.search import search

QUICK = {"queries": 40, "gallery": 3_000, "dim": 32}
BLOCK = 50_000


def search_with_numpy(queries: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Matrix products by blocks of the gallery, argpartition, and a sort of what is left."""
    scores, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for start in range(0, len(gallery), BLOCK):
        products = queries @ gallery[start : start + BLOCK].T
        best = np.argpartition(-products, min(k, products.shape[1]) - 1, axis=1)[:, :k]
        scores = np.concatenate((scores, np.take_along_axis(products, best, axis=1)), axis=1)
        rows = np.concatenate((rows, best + start), axis=1)
    order = np.argsort(-scores, axis=1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def run(bench: Bench, *, queries: int = 1_000, gallery: int = 1_000_000, dim: int = 256, k: int = 100) -> None:
    entries, asked = unit_vectors(gallery, dim, 0), unit_vectors(queries, dim, 1)
    search(asked[:2], entries[: k + 100], k)  # loads faiss
    steps = {"core.evaluation.search": search, "NumPy": search_with_numpy}
    found = bench.compare(
        f"{k} best of {gallery:,} x {dim}",
        {name: lambda step=step: step(asked, entries, k) for name, step in steps.items()},
        queries,
        "queries",
    )
    (scores, rows), (plain_scores, plain_rows) = found.values()
    np.testing.assert_allclose(scores, plain_scores, atol=1e-6)
    own = np.einsum("qd,qkd->qk", asked, entries[plain_rows])
    np.testing.assert_allclose(scores, own, atol=1e-6)  # where rows differ in order their scores are the same
    bench.note(f"same results ({(rows == plain_rows).mean():.4%} of the rows in the same place, the others tie)")
