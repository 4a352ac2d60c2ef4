"""In which order the entries of a gallery are embedded again.

It is computed from their old vectors, which stay until the end, so that nothing has to be kept: a run that goes on
where another was killed finds the same order.
"""

from collections.abc import Callable

import numpy as np

from core.errors import UserError
from core.gallery.documents import map_from_document
from core.gallery.orders import OF_MAP, map_priorities
from core.gallery.store import Entries, Store
from core.gallery.upgrade import Upgrade
from core.models.maps.vectors import unit_rows
from core.progress import Progress

__all__ = ["rows_in_order"]


def rows_in_order(store: Store, upgrade: Upgrade) -> np.ndarray:
    """The entries without a new vector, int64 (N,), in the order of the upgrade: what gains most comes first.

    The memory is 24 bytes an entry, and for the order class_distance the classes' means as well. `UserError` for an
    order that the gallery's maps and classes do not allow.
    """
    left = len(store) - store.counts()[upgrade.new]
    priorities_of = _priorities(store, upgrade)
    rows, priorities = [np.empty(0, np.int64)], [np.empty(0)]
    with Progress("finding the order", left, "vectors") as progress:
        for entries in store.entries(lacking=upgrade.new):
            rows.append(entries.rows)
            priorities.append(priorities_of(entries))
            progress.update(len(entries.rows))
    best_first = np.argsort(-np.concatenate(priorities), kind="stable")
    return np.concatenate(rows)[best_first]


def _priorities(store: Store, upgrade: Upgrade) -> Callable[[Entries], np.ndarray]:
    """A function from a block of entries to their priorities (B,), float64, the largest first."""
    if upgrade.order == "random":
        seed = np.uint64(int(upgrade.plan[:16], 16))
        return lambda entries: _mixed(entries.rows, seed)
    if upgrade.order in OF_MAP:
        document = store.document("gallery_map")
        if document is None:
            raise UserError(
                f"{store.place}: the order {upgrade.order} needs a map of the gallery, and the plan has none"
            )
        mapping = map_from_document(document)

        def by_map(rows: np.ndarray, vectors: np.ndarray) -> np.ndarray:
            values = map_priorities(upgrade.order, mapping, vectors)
            if values is None:
                raise UserError(f"{store.place}: the plan's map of the gallery cannot tell the order {upgrade.order}")
            return values

        return lambda entries: _of_vectors(store, upgrade.old, entries.rows, by_map)
    assert upgrade.order == "class_distance", upgrade.order
    means, classes = _class_means(store, upgrade.old)

    def by_distance(entries: Entries) -> np.ndarray:
        known = dict(zip(entries.rows.tolist(), (classes.get(label, -1) for label in entries.labels)))

        def distances(rows: np.ndarray, vectors: np.ndarray) -> np.ndarray:
            own = np.array([known[row] for row in rows.tolist()], np.int64)
            return np.where(own < 0, 0, np.linalg.norm(_unit(vectors) - means[own], axis=1))

        return _of_vectors(store, upgrade.old, entries.rows, distances)

    return by_distance


def _mixed(rows: np.ndarray, seed: np.uint64) -> np.ndarray:
    """A number in [0, 1) for each row that depends on row and seed alone (the finaliser of SplitMix64)."""
    mixed = rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + seed
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return (mixed ^ (mixed >> np.uint64(31))) / 2.0**64


def _of_vectors(
    store: Store, old: str, rows: np.ndarray, compute: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """`compute(rows, old vectors)` at the rows (B,) that still exist and have an old vector, 0 for others."""
    there, vectors = store.vectors_at(old, rows)
    values = np.zeros(len(rows))
    if len(there):
        values[np.isin(rows, there)] = compute(there, vectors)
    return values


def _class_means(store: Store, old: str) -> tuple[np.ndarray, dict[str | None, int]]:
    """The mean old unit vector (C, D) of each class, and its row by label."""
    classes: dict[str | None, int] = {}
    sums, sizes = np.zeros((0, store.versions()[old].size), np.float32), np.zeros(0)
    for entries in store.entries():
        labels = dict(zip(entries.rows.tolist(), entries.labels))
        rows, vectors = store.vectors_at(old, entries.rows)
        labelled = np.array([labels[row] is not None for row in rows.tolist()], bool)
        if not labelled.any():
            continue
        own = [classes.setdefault(labels[row], len(classes)) for row in rows[labelled].tolist()]
        grown = len(classes) - len(sums)
        sums = np.concatenate([sums, np.zeros((grown, sums.shape[1]), np.float32)])
        sizes = np.concatenate([sizes, np.zeros(grown)])
        np.add.at(sums, own, _unit(vectors[labelled]))
        np.add.at(sizes, own, 1)
    if not classes:
        raise UserError(f"{store.place}: the order class_distance needs classes, and no entry has one (--labels)")
    return sums / sizes[:, None].astype(np.float32), classes


def _unit(vectors: np.ndarray) -> np.ndarray:
    return unit_rows(vectors, slice(0, len(vectors)), "vectors", np.empty(vectors.shape, np.float32))
