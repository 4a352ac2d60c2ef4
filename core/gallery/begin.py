"""The start of an upgrade: from now on the new model searches the gallery, though nothing is embedded again yet.

What that takes is kept with the gallery (`core.gallery.documents`), so that the plan's folder may vanish afterwards.
"""

import hashlib
import logging
from pathlib import Path

from core.errors import UserError
from core.files import require_file
from core.gallery.documents import calibrations_to_document, map_from_document, map_to_document, read_upgrade
from core.gallery.planning.plan import FILE, Plan
from core.gallery.store import Store, Version
from core.gallery.upgrade import Upgrade
from core.models.maps import Map
from core.progress import Progress

__all__ = ["BEFORE", "begin"]

logger = logging.getLogger(__name__)
BEFORE = "calibrations_before"
"""Document: the gallery's calibrations before the upgrade, which a rollback restores."""


def begin(store: Store, folder: str | Path | None, road: str | None = None) -> Upgrade:
    """Begin the upgrade that the plan in `folder` describes, or go on where a killed run began it.

    For the road gallery_map all old vectors are mapped first; until that is done the gallery is searched as before.
    `folder`: None to go on with the upgrade under way. `road`: None for the one that the plan advises. `UserError` if
    the plan is for another gallery, if another one is under way, and for a road that cannot be had. Memory: one block.
    """
    upgrade = read_upgrade(store)
    digest = None if folder is None else _digest(Path(folder))
    if upgrade is None:
        if folder is None or digest is None:
            raise UserError(f"{store.place}: no upgrade is under way: name the folder of its plan (--plan)")
        upgrade = _begin(store, Plan.load(folder), digest, road)
    elif digest not in (None, upgrade.plan) or road not in (None, upgrade.road):
        raise UserError(
            f"{store.place}: another upgrade is under way, to {upgrade.new} by the road {upgrade.road}: go on with its "
            "plan, or commit it or roll it back first"
        )
    if upgrade.mapped is not None:  # also what was enrolled while the others were mapped
        _fill_mapped(store, upgrade.old, upgrade.mapped, map_from_document(store.document("gallery_map")))
    return upgrade


def _begin(store: Store, plan: Plan, digest: str, road: str | None) -> Upgrade:
    road = _require_road(plan, road)
    old = _require_gallery(store, plan)
    mapped = None
    if road == "gallery_map":
        assert plan.gallery_map is not None
        name = f"{old.name} mapped to {plan.new.name}"
        mapped = Version(f"{old.key}+{plan.gallery_map.fingerprint}", name, plan.new.size)
    for key in store.versions():
        if key not in (old.key, mapped and mapped.key):  # left by another beginning, which was killed
            store.drop_version(key)
    if mapped is not None:
        assert plan.gallery_map is not None
        store.add_version(mapped)
        _fill_mapped(store, old.key, mapped.key, plan.gallery_map)
    store.add_version(plan.new)
    upgrade = Upgrade(
        old.key, plan.new.key, None if mapped is None else mapped.key, road, plan.order, digest, len(store)
    )
    store.set_documents(
        {
            "upgrade": upgrade.to_json(),
            "calibrations": calibrations_to_document(plan.calibrations),
            "query_map": plan.query_map and map_to_document(plan.query_map),
            "gallery_map": plan.gallery_map and map_to_document(plan.gallery_map),
            BEFORE: store.document("calibrations"),
        }
    )
    logger.info("%s: upgrade from %s to %s begun by the road %s", store.place, old.name, plan.new.name, road)
    return upgrade


def _digest(folder: Path) -> str:
    """SHA-256 (hex) of a plan's file."""
    return hashlib.sha256(require_file(folder / FILE, "plan of an upgrade").read_bytes()).hexdigest()


def _require_road(plan: Plan, road: str | None) -> str:
    """The road, if it is one that an upgrade can take."""
    if road is None and plan.recommendation == "stay":
        raise UserError(
            f"the plan advises to stay with the old model ({plan.reason}): name a road (--road) to upgrade nevertheless"
        )
    road = road or plan.recommendation
    can_be_had = [name for name, value in plan.roads.items() if value is not None and name != "stay"]
    if road not in can_be_had:
        why = f" ({plan.impossible[road]})" if road in plan.impossible else ""
        raise UserError(f"there is no road {road} in this plan{why}: choose one of {', '.join(can_be_had)}")
    return road


def _require_gallery(store: Store, plan: Plan) -> Version:
    """The version that the gallery is searched by, if the plan is an upgrade of it."""
    versions = store.versions()
    if not versions:
        raise UserError(f"{store.place} has no vectors: create the gallery first")
    old = next(iter(versions.values()))
    if plan.old.key != old.key or plan.old.size != old.size:
        raise UserError(
            f"the plan is for a gallery of {plan.old.name} ({plan.old.key[:12]}), and {store.place} holds vectors of "
            f"{old.name} ({old.key[:12]}): plan this gallery's upgrade"
        )
    if plan.new.key == old.key:
        raise UserError(f"{store.place} holds vectors of {plan.new.name} already: there is nothing to upgrade")
    return old


def _fill_mapped(store: Store, old: str, mapped: str, mapping: Map) -> None:
    """Map the old vectors of all entries that have none of the version `mapped` yet, block by block.

    Entries that were enrolled with a new vector alone have nothing to be mapped, and need not be.
    """
    counts = store.counts()
    total, done = counts[old], counts[mapped]
    if done >= total:
        return
    store.require_room(4 * store.versions()[mapped].size * (total - done))
    with Progress("mapping the old vectors", total, "vectors", initial=done) as progress:
        for entries in store.entries(lacking=mapped):
            rows, vectors = store.vectors_at(old, entries.rows)
            if len(rows):
                store.add_vectors(mapped, rows, mapping(vectors))
            progress.update(len(rows))
