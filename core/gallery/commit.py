"""The end of an upgrade: the new vectors alone stay, or the old ones alone as if nothing had been.

Each step is done as a whole or not at all, so both can be repeated where they were killed.
"""

import logging
from dataclasses import dataclass, replace
from itertools import islice

from core.errors import UserError
from core.gallery.backfill import FAILED
from core.gallery.begin import BEFORE
from core.gallery.documents import read_upgrade
from core.gallery.store import Store

__all__ = ["Ended", "commit", "rollback"]

logger = logging.getLogger(__name__)
MOST_NAMES = 5
ENDED = dict.fromkeys(("upgrade", "query_map", "gallery_map", FAILED, BEFORE))
"""Documents that go with an upgrade."""


@dataclass(frozen=True)
class Ended:
    """What an upgrade has ended with."""

    version: str
    """Key of the only one that is left."""
    total: int
    """Entries."""
    deleted: int = 0
    """Entries without a vector of this version."""


def commit(store: Store, delete_missing: bool = False) -> Ended:
    """Free the old and the mapped vectors: the gallery is the new model's alone.

    First the whole store is verified. `UserError` for faults, if there is no upgrade, and if entries have no new vector
    yet, unless they are to be deleted (`delete_missing`).
    """
    with store.claimed("commit"):
        upgrade = read_upgrade(store)
        if upgrade is None:
            raise UserError(f"{store.place}: no upgrade is under way, so there is nothing to commit")
        faults = store.verify()
        if faults:
            raise UserError(f"{store.place}: {len(faults)} faults, nothing is freed: {faults[0]}; roll back")
        deleted = _delete_missing(store, upgrade.new, delete_missing)
        calibrations = store.document("calibrations") or {}
        if upgrade.mapped is not None:
            store.drop_version(upgrade.mapped, {"upgrade": replace(upgrade, mapped=None).to_json()})
        kept = {"old/old": calibrations["new/new"]} if "new/new" in calibrations else None
        store.drop_version(upgrade.old, {**ENDED, "calibrations": kept})
        return Ended(upgrade.new, len(store), deleted)


def rollback(store: Store) -> Ended:
    """Free the new and the mapped vectors: the old ones alone are searched, as before the upgrade began.

    `UserError` if there is no upgrade, and if entries have no old vector: enrolments during an upgrade give both.
    """
    with store.claimed("rollback"):
        upgrade = read_upgrade(store)
        first, *others = store.versions()
        if upgrade is not None:
            lacking = len(store) - store.counts()[upgrade.old]
            if lacking:
                raise UserError(
                    f"{store.place}: {lacking} entries have no vector of {upgrade.old} ({_named(store, upgrade.old)}): "
                    "enrol them with one, or delete them"
                )
            store.drop_version(upgrade.new, {**ENDED, "calibrations": store.document(BEFORE)})
            first, *others = store.versions()
        elif not others:
            raise UserError(f"{store.place}: no upgrade is under way, so there is nothing to take back")
        for key in others:  # mapped vectors, and what a beginning left that was killed
            store.drop_version(key)
        return Ended(first, len(store))


def _delete_missing(store: Store, key: str, delete: bool) -> int:
    """Delete the entries without a vector of a version, or refuse to go on with them; returns how many there were."""
    missing = len(store) - store.counts()[key]
    if missing and not delete:
        raise UserError(
            f"{store.place}: {missing} of {len(store)} entries have no vector of {key} yet ({_named(store, key)}): go "
            "on with the backfill, or have them deleted (--delete-missing)"
        )
    return sum(store.delete(entries.ids) for entries in store.entries(lacking=key)) if missing else 0


def _named(store: Store, lacking: str) -> str:
    """The first ids that lack a version."""
    entries = next(store.entries(lacking=lacking, size=MOST_NAMES + 1), None)
    ids = [] if entries is None else entries.ids
    return ", ".join(islice(ids, MOST_NAMES)) + (" and others" if len(ids) > MOST_NAMES else "")
