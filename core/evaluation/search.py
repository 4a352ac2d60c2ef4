"""Exact search by inner product through faiss, on all GPUs or on the CPU, in blocks of the gallery.

faiss proposes candidates; the products that rank them are computed in float64 and rounded to float32, and among equal
ones the lower row comes first. Protocols count ties, so the result must not depend on the machine or on the blocks.
"""

import os
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import torch

from core.errors import UserError
from core.models.mapped import Rows

__all__ = ["import_faiss", "search"]

GALLERY_BLOCK, QUERY_BLOCK = 1 << 28, 1 << 14
"""Bytes of the gallery, as float32, and number of queries that are compared at a time."""
SCORE_BLOCK, RESCORE_BLOCK = 1 << 26, 1 << 24
"""Numbers at a time: scores where whole rows are sorted, components of candidates that are compared again."""
SPARE = 16
"""Candidates beyond the k that faiss is asked for, so that its rounding hardly ever decides who is among the k."""
GPU_MAX_RESULTS = 2048
OPENBLAS_CORES = {"AVX2": "Haswell", "AVX512": "SkylakeX"}


def search(queries: Rows, gallery: Rows, k: int, use_gpu: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of `gallery` (N, D) with the largest inner products with each of `queries` (Q, D).

    Returns scores float32 (Q, k) and rows int64 (Q, k), best first. faiss proposes k + 16 candidates in float32, with
    `use_gpu` on all GPUs that it sees, and their products are computed again in float64. Where a row that was not
    proposed could still belong to the k, within the error of float32 sums, and where all rows are wanted, all products
    of the query are computed in float64 and sorted. The gallery is read block by block. Memory beside vectors and
    result: under 2 GB for a million rows of 512. `ValueError` for shapes that do not fit or k not in [1, N],
    `UserError` if faiss is not installed.
    """
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"queries (Q, D) and gallery (N, D) are needed, got {queries.shape} and {gallery.shape}")
    if not 1 <= k <= len(gallery):
        raise ValueError(f"k = {k} of {len(gallery)} rows cannot be found")
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    scores = np.empty((len(queries), k), dtype=np.float32)
    rows = np.empty((len(queries), k), dtype=np.int64)
    open_queries = np.ones(len(queries), dtype=bool)
    if k + SPARE < len(gallery):
        for start in range(0, len(queries), QUERY_BLOCK):
            block = slice(start, start + QUERY_BLOCK)
            scores[block], rows[block], open_queries[block] = _search_candidates(queries[block], gallery, k, use_gpu)
    left = np.flatnonzero(open_queries)
    step = max(1, SCORE_BLOCK // len(gallery))
    for start in range(0, len(left), step):
        block = left[start : start + step]
        scores[block], rows[block] = _search_all(queries[block], gallery, k)
    return scores, rows


def _search_all(queries: np.ndarray, gallery: Rows, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = np.empty((len(queries), len(gallery)), dtype=np.float32)
    queries = queries.astype(np.float64)
    for start, vectors in _blocks(gallery):
        scores[:, start : start + len(vectors)] = queries @ vectors.T.astype(np.float64)
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, axis=1), rows


def _search_candidates(
    queries: np.ndarray, gallery: Rows, k: int, use_gpu: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores (Q, k), rows (Q, k), and (Q,) whether a row that faiss did not propose may belong to them."""
    proposed, rows, longest = _propose(queries, gallery, k + SPARE, use_gpu)
    scores = np.empty_like(proposed)
    step = max(1, RESCORE_BLOCK // (rows.shape[1] * queries.shape[1]))
    for start in range(0, len(queries), step):
        block = slice(start, start + step)
        candidates = gallery[rows[block]].astype(np.float64)
        scores[block] = (candidates @ queries[block, :, None].astype(np.float64))[..., 0]
    order = np.lexsort((rows, -scores))[:, :k]
    scores, rows = (np.take_along_axis(array, order, axis=1) for array in (scores, rows))
    lengths = np.linalg.norm(queries, axis=1)
    rounding = queries.shape[1] * np.finfo(np.float32).eps * lengths * longest  # no sum of D products errs by more
    return scores, rows, scores[:, -1] <= proposed.min(axis=1) + rounding


def _propose(queries: np.ndarray, gallery: Rows, count: int, use_gpu: bool) -> tuple[np.ndarray, np.ndarray, float]:
    """The `count` best that faiss finds: scores (Q, count), rows; and the length of the longest vector.

    faiss searches block by block and merges; with `use_gpu` each block is cut into shards for all GPUs that it sees.
    """
    faiss = import_faiss()
    from faiss.contrib.exhaustive_search import knn_ground_truth

    longest = 0.0

    def blocks() -> Iterator[np.ndarray]:
        nonlocal longest
        for _, vectors in _blocks(gallery):
            longest = max(longest, float(np.einsum("nd,nd->n", vectors, vectors).max()) ** 0.5)
            yield vectors

    num_gpus = faiss.get_num_gpus() if use_gpu and count <= GPU_MAX_RESULTS else 0
    scores, rows = knn_ground_truth(queries, blocks(), count, faiss.METRIC_INNER_PRODUCT, shard=True, ngpu=num_gpus)
    return scores, rows, longest


def _blocks(gallery: Rows) -> Iterator[tuple[int, np.ndarray]]:
    """Starts and float32 vectors of the gallery's blocks."""
    size = max(1, GALLERY_BLOCK // (4 * gallery.shape[1]))
    for start in range(0, len(gallery), size):
        yield start, np.ascontiguousarray(gallery[start : start + size], dtype=np.float32)


def import_faiss() -> ModuleType:
    """The package, imported where it is used, with its fast kernels.

    The OpenBLAS in its wheels takes kernels of 2004 on processors that are newer than itself (measured: a fifth of the
    speed); the right kernel is named while it is loaded, unless a user has set one. For few queries faiss computes one
    sum after another in place of matrix products (measured: a fifteenth of the speed); the threshold forbids that.
    """
    core = OPENBLAS_CORES.get(torch.backends.cpu.get_cpu_capability())
    unset = core is not None and "OPENBLAS_CORETYPE" not in os.environ
    if unset:
        os.environ["OPENBLAS_CORETYPE"] = core
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            f"the search needs faiss ({error}): pip install faiss-gpu on Linux with an x86-64 processor, else faiss-cpu"
        ) from error
    finally:
        if unset:
            del os.environ["OPENBLAS_CORETYPE"]
    faiss.cvar.distance_compute_blas_threshold = 1
    return faiss
