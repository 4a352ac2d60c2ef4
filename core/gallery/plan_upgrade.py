"""The plan of the upgrade of a gallery that is there: what it holds, and which model its vectors are of."""

import numpy as np

from core.errors import UserError
from core.gallery.cost import Holdings
from core.gallery.documents import read_upgrade
from core.gallery.store import Store, Version

__all__ = ["holdings", "searched_version"]


def searched_version(store: Store) -> Version:
    """The model that an upgrade of the gallery starts from; `UserError` if one is under way, or it has no vectors."""
    upgrade, versions = read_upgrade(store), store.versions()
    if upgrade is not None:
        raise UserError(
            f"{store.place}: an upgrade to {versions[upgrade.new].name} is under way: commit it or roll it back before "
            "another one is planned"
        )
    if not versions:
        raise UserError(f"{store.place} has no vectors: create the gallery first")
    return next(iter(versions.values()))  # others are left by a beginning that was killed


def holdings(store: Store) -> Holdings:
    """What a plan must know of a gallery. Memory: its classes."""
    key = searched_version(store).key
    images, labelled, classes, item = 0, 0, set(), 4
    for entries in store.entries():
        images += sum(image is not None for image in entries.images)
        known = [label for label in entries.labels if label is not None]
        labelled += len(known)
        classes.update(known)
    first = next(store.entries(size=1), None)
    if first is not None:
        item = store.vectors(key, first.rows).dtype.itemsize
    size = store.versions()[key].size
    return Holdings(len(store), images, store.counts()[key] * size * item, 0 < len(classes) < labelled)
