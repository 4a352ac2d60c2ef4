"""Time and memory of the exact search beside plain NumPy, on random unit vectors; the results are compared.

    python ci/benchmarks/search.py                     1,000 queries, a gallery of 1,000,000 x 256, the 100 best
    python ci/benchmarks/search.py --gallery 50000     a smaller gallery

The search is measured first, so that the peak of memory is its own.
"""

import argparse
import resource
import time

import numpy as np
import torch

from core.evaluation.search import search

BLOCK = 50_000


def unit_vectors(count: int, dim: int, seed: int) -> np.ndarray:
    """Random directions, float32 (count, dim)."""
    vectors = np.random.default_rng(seed).standard_normal((count, dim), dtype=np.float32)
    vectors /= np.sqrt(np.einsum("nd,nd->n", vectors, vectors))[:, None]
    return vectors


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


def peak_gib() -> float:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("queries", 1_000), ("gallery", 1_000_000), ("dim", 256), ("k", 100)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    gallery, queries = unit_vectors(args.gallery, args.dim, 0), unit_vectors(args.queries, args.dim, 1)
    search(queries[:2], gallery[: args.k + 100], args.k)  # loads faiss
    print(f"{args.queries:,} queries, gallery {args.gallery:,} x {args.dim}, k = {args.k}, {torch.get_num_threads()} "
          f"threads; {peak_gib():.2f} GiB with the vectors of {gallery.nbytes / 2**30:.2f} GiB")  # fmt: skip
    found = {}
    for name, step in (("core.evaluation.search", search), ("NumPy", search_with_numpy)):
        started, used = time.perf_counter(), time.process_time()
        found[name] = step(queries, gallery, args.k)
        seconds, used = time.perf_counter() - started, time.process_time() - used
        print(f"{name:<24}{seconds:8.2f} s, {used:8.2f} s of processors, peak so far {peak_gib():.2f} GiB", flush=True)
    (scores, rows), (plain_scores, plain_rows) = found.values()
    np.testing.assert_allclose(scores, plain_scores, atol=1e-6)
    own = np.einsum("qd,qkd->qk", queries, gallery[plain_rows])
    np.testing.assert_allclose(scores, own, atol=1e-6)  # where rows differ in order their scores are the same
    print(f"same results ({(rows == plain_rows).mean():.4%} of the rows in the same place, the others tie in float32)")


if __name__ == "__main__":
    main()
