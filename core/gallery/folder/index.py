"""Search through an index of faiss, HNSW or IVF, which is kept beside the vectors and made anew when it is out of date.

What has come since the index was made is searched beside it, exactly, and what has gone is left out of its answers.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError
from core.evaluation.search import import_faiss, search
from core.gallery.folder.vectors import UnitRows
from core.memory import bounded_memory
from core.outputs import replaced_atomically

__all__ = ["INDEXES", "search_index"]

logger = logging.getLogger(__name__)
LINKS, CONSTRUCTION, CANDIDATES = 32, 100, 128
"""Of HNSW: neighbours of a vector, candidates for them, and the least candidates of a search."""
TRAINING, AT_LEAST = 64, 39
"""Of IVF: vectors a list that its centres are fitted on, and the least that faiss wants."""
LEAST_LISTS, SHARE = 8, 16
"""Of IVF: the least lists that are searched, and the part of all."""
FEWEST = 16
"""Where less than one vector in so many is searched, an exact search of them takes the place of the index."""
ROOM = 1 << 30
"""Bytes that reading an index may take besides four times its own."""
STEP = 1 << 16
"""Vectors that are added at a time."""


def search_index(
    kind: str, queries: np.ndarray, vectors: np.ndarray, live: np.ndarray, slots: np.ndarray, k: int, file: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines (Q, k) float32 and places (Q, k) in `slots`, best first, as an index finds them.

    `vectors`: (S, D); `live`: (M,) ascending, the slots that are in use, which the index is of, whichever of them a
    search leaves out; `slots`: (N,) ascending, those of them that are searched. `file`: where the index is kept; it
    holds another copy of the vectors as float32, on the disk and in memory. A score of -inf, with place 0, where it
    found fewer than k.
    """
    if FEWEST * len(slots) < len(live):
        return search(queries, UnitRows(vectors, slots), k)
    index = _read(file, vectors.shape[1])
    if index is None or _is_stale(index, live):
        index = _make(kind, vectors, live)
        _keep(index, file)
    indexed = _slots(index)
    scores, found = _search(kind, index, queries, k, slots, len(live) / len(slots))
    new = np.setdiff1d(slots, indexed, assume_unique=True)
    if len(new):
        more, places = search(queries, UnitRows(vectors, new), min(k, len(new)))
        scores, found = np.concatenate((scores, more), axis=1), np.concatenate((found, new[places]), axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores, found = np.take_along_axis(scores, order, axis=1), np.take_along_axis(found, order, axis=1)
    places = np.searchsorted(slots, found)
    return np.where(found < 0, -np.inf, scores).astype(np.float32), places


def _is_stale(index: Any, live: np.ndarray) -> bool:
    """Whether more than a quarter of the vectors are not in it, or less than half of those in it are in use."""
    known = np.isin(live, _slots(index)).sum()
    return len(live) - known > len(live) / 4 or known < index.ntotal / 2


def _slots(index: Any) -> np.ndarray:
    return import_faiss().vector_to_array(index.id_map)


def _read(file: Path, size: int) -> Any:
    """The index that is kept, None if there is none, or it is damaged."""
    if not file.is_file():
        return None
    try:
        with bounded_memory(ROOM + 4 * file.stat().st_size):
            index = import_faiss().read_index(str(file))
    except (RuntimeError, MemoryError):
        return None
    return index if index.d == size and index.id_map.size() == index.index.ntotal == index.ntotal else None


def _keep(index: Any, file: Path) -> None:
    try:
        with replaced_atomically(file) as temporary:
            import_faiss().write_index(index, str(temporary))
    except (UserError, RuntimeError) as error:
        logger.warning("the index is not kept, the next search makes it again: %s", error)


def _make(kind: str, vectors: np.ndarray, slots: np.ndarray) -> Any:
    units = UnitRows(vectors, slots)
    logger.info("making the index %s of %d vectors", kind, len(units))
    faiss = import_faiss()
    index = faiss.IndexIDMap(INDEXES[kind].make(units))
    for start in range(0, len(units), STEP):
        part = slice(start, start + STEP)
        index.add_with_ids(units[part], slots[part])
    return index


def _hnsw(units: UnitRows) -> Any:
    faiss = import_faiss()
    index = faiss.IndexHNSWFlat(units.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = CONSTRUCTION
    return index


def _ivf(units: UnitRows) -> Any:
    faiss = import_faiss()
    count, size = units.shape
    lists = max(1, min(int(4 * count**0.5), count // AT_LEAST))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(size), size, lists, faiss.METRIC_INNER_PRODUCT)
    sample = np.random.default_rng(0).choice(count, min(count, TRAINING * lists), replace=False)
    index.cp.min_points_per_centroid = 1  # a small gallery is no reason to warn
    index.train(units[np.sort(sample)])
    return index


def _search(
    kind: str, index: Any, queries: np.ndarray, k: int, slots: np.ndarray, wider: float
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and slots (Q, k) of those in `slots`; -1 where there is none.

    `wider`: how many times as many candidates are looked at, to make up for those that are not in `slots`.
    """
    faiss = import_faiss()
    wanted = np.zeros(max(slots[-1], _slots(index).max()) + 1, bool)
    wanted[slots] = True
    selector = faiss.IDSelectorBitmap(np.packbits(wanted, bitorder="little"))
    queries = np.ascontiguousarray(queries, np.float32)
    return index.search(queries, k, params=INDEXES[kind].parameters(index, k, selector, wider))


def _hnsw_parameters(index: Any, k: int, selector: Any, wider: float) -> Any:
    return import_faiss().SearchParametersHNSW(efSearch=round(wider * max(CANDIDATES, 2 * k)), sel=selector)


def _ivf_parameters(index: Any, k: int, selector: Any, wider: float) -> Any:
    lists = import_faiss().extract_index_ivf(index.index).nlist
    return import_faiss().SearchParametersIVF(nprobe=round(wider * max(LEAST_LISTS, lists // SHARE)), sel=selector)


@dataclass(frozen=True)
class _Kind:
    make: Callable[[UnitRows], Any]
    parameters: Callable[[Any, int, Any, float], Any]


INDEXES = {"hnsw": _Kind(_hnsw, _hnsw_parameters), "ivf": _Kind(_ivf, _ivf_parameters)}
