"""A live gallery, wherever its vectors lie: what `tools/gallery.py` does, as methods."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.errors import UserError
from core.gallery.backfill import Backfilled, BackfillOptions, backfill
from core.gallery.commit import Ended, commit, rollback
from core.gallery.documents import map_from_document, read_upgrade
from core.gallery.enrolment import embed_for
from core.gallery.exports import export
from core.gallery.model_versions import NAMED, key_of, version_of
from core.gallery.places import creating_store, open_store
from core.gallery.planning.plan import Plan
from core.gallery.planning.plan_upgrade import plan_from_images, plan_from_pairs
from core.gallery.search import Found, search
from core.gallery.store import BLOCK, Store
from core.gallery.upgrade import Upgrade
from core.gallery.vector_files import as_stored, open_vectors
from core.models.encoder import Encoder, load_encoder
from core.parallel.ranks import Ranks
from core.progress import Progress

__all__ = ["Gallery"]

logger = logging.getLogger(__name__)
CREATE_BLOCK = 1 << 24
"""Numbers that are put into a new gallery at a time: a write of few entries costs a store nearly as much."""


class Gallery:
    """Vectors with their ids, each stamped with the model that made it.

    A model is named by its model argument, by name:TEXT if it is not at hand, or by its key (`info`). Mistakes are
    `UserError`s.
    """

    def __init__(self, store: Store):
        self.store = store

    @classmethod
    def create(
        cls,
        place: str | Path,
        vectors: str | Path,
        model: str | Path,
        ids: str | Path | None = None,
        labels: str | Path | None = None,
        images: str | Path | None = None,
        network: str | None = None,
    ) -> "Gallery":
        """A new gallery of the vectors in a file, made by `model`, a .pt state dict with its `network`.

        `place` as of `core.gallery.places`, files as of `core.gallery.vector_files`.

        It is there when it is whole: a killed or failed creation leaves none. Memory: 64 MB, and the lists' text.
        """
        file = open_vectors(vectors, ids, labels, images)
        version = version_of(model, file.size, network)
        if file.version not in (None, version.key):
            raise UserError(
                f"{file.path} says that its vectors are of {file.version}, not of {version.key}: name that model, or "
                "remove the column version if it means something else"
            )
        with creating_store(place) as store, Progress("creating the gallery", len(file), "vectors") as progress:
            store.add_version(version)
            left = len(file)
            for block in file.blocks(max(1, CREATE_BLOCK // file.size // BLOCK) * BLOCK):
                store.require_room(left * block.vectors[0].nbytes)
                store.enrol(block.ids, {version.key: block.vectors}, block.labels, block.images)
                left -= len(block.ids)
                progress.update(len(block.ids))
        return cls.open(place)

    @classmethod
    def open(cls, place: str | Path) -> "Gallery":
        """One that is there; `place` as of `core.gallery.places`."""
        return cls(open_store(place))

    def close(self) -> None:
        """Free what is open."""
        self.store.close()

    def __enter__(self) -> "Gallery":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def info(self) -> dict[str, Any]:
        """The state of the gallery, as plain values.

        `vectors` (entries), `versions` (entries with a vector of each, by key), `names` of their models, `size` of the
        first one's vectors; `upgrade`: None, or `done` (entries with a new vector) of `total`, `order`, `road`, `old`,
        `new`, and `failed` (entries whose images could not be read).
        """
        versions, counts, upgrade = self.store.versions(), self.store.counts(), read_upgrade(self.store)
        return {
            "vectors": len(self.store),
            "versions": counts,
            "names": {key: version.name for key, version in versions.items()},
            "size": next((version.size for version in versions.values()), None),
            "upgrade": None if upgrade is None else {
                "done": counts.get(upgrade.new, 0),
                "total": len(self.store),
                **{name: getattr(upgrade, name) for name in ("order", "road", "old", "new", "failed")},
            },
        }  # fmt: skip

    def enrol(
        self,
        ids: Sequence[str],
        vectors: Mapping[str, np.ndarray],
        labels: Sequence[str | None] | None = None,
        images: Sequence[str | None] | None = None,
    ) -> None:
        """Add entries, or put them in the place of those with the same ids; `vectors` (B, D) by model.

        During an upgrade they are given by the old and by the new model. Without new ones the backfill embeds the
        images. Without old ones an upgrade cannot be rolled back, which is refused if the old model is at hand.
        """
        given = {key_of(self.store, model): block for model, block in vectors.items()}
        upgrade = read_upgrade(self.store)
        self._require_models(given, upgrade)
        checked = {
            key: as_stored(block, lambda row, key=key: f"the vector of {key} for the id {ids[row]!r}")
            for key, block in given.items()
        }
        if upgrade is not None and upgrade.mapped is not None and upgrade.new not in checked and len(ids):
            checked[upgrade.mapped] = map_from_document(self.store.document("gallery_map"))(checked[upgrade.old])
        self.store.enrol(ids, checked, labels, images)

    def enrol_images(
        self,
        ids: Sequence[str],
        images: Sequence[str | None],
        labels: Sequence[str | None] | None = None,
        *,
        encoders: Sequence[Encoder] = (),
        options: BackfillOptions | None = None,
        device: str = "cpu",
    ) -> dict[str, str]:
        """Embed images, and enrol what can be embedded; why the others cannot, by id.

        As of `core.gallery.enrolment.embed_for`: by the gallery's model, during an upgrade by the old and the new one.
        """
        reasons: dict[str, str] = {}
        for block in embed_for(self.store, ids, images, labels, encoders, options or BackfillOptions(), device):
            self.enrol(block.ids, block.vectors, block.labels, block.images)
            reasons |= block.reasons
        return reasons

    def _require_models(self, keys: Mapping[str, object], upgrade: Upgrade | None) -> None:
        """`UserError` unless entries with vectors of these models are searched in this gallery."""
        versions = self.store.versions()
        known = list(versions)[:1] if upgrade is None else [upgrade.old, upgrade.new]
        unknown = [key for key in keys if key not in known]
        if unknown or not keys:
            raise UserError(
                f"entries are enrolled in {self.store.place} with vectors of {' and '.join(known) or 'no model'}, not "
                f"of {unknown[0] if unknown else 'none'}: embed their images by that model"
            )
        if upgrade is not None and upgrade.old not in keys:
            if versions[upgrade.old].model is not None:
                raise UserError(
                    f"{self.store.place}: its upgrade may still be rolled back: give each a vector of {upgrade.old} too"
                )
            logger.warning("entries without a vector of %s stand in the way of a rollback", upgrade.old)

    def delete(self, ids: Sequence[str]) -> int:
        """Remove entries with all their vectors; returns how many there were."""
        return self.store.delete(ids)

    def search(
        self,
        queries: np.ndarray,
        model: str | Path,
        k: int = 10,
        *,
        old_queries: np.ndarray | None = None,
        max_far: float | None = None,
        index: str = "exact",
        network: str | None = None,
    ) -> Found:
        """The k best entries for each query (Q, D) by `model`, as of `core.gallery.search.search`."""
        key = key_of(self.store, model, network)
        return search(self.store, queries, key, k, old_queries=old_queries, max_far=max_far, index=index)

    def export(self, out: str | Path, format: str, version: str | Path | None = None) -> int:
        """Write the gallery to files, as of `core.gallery.exports.export`; returns how many entries."""
        return export(self.store, out, format, None if version is None else key_of(self.store, version))

    def verify(self) -> list[str]:
        """Check every checksum, and that every id is there once; the faults found."""
        return self.store.verify()

    def plan(
        self,
        new: str | Path,
        out: str | Path,
        sample: str | Path | None = None,
        *,
        pairs: tuple[str | Path, str | Path] | None = None,
        labels: str | Path | None = None,
        device: str = "cpu",
        **options: Any,
    ) -> Plan:
        """Measure every road to the model `new` on a sample, and write the plan's folder `out` with its report.

        `sample` is images with identities, as of `plan_from_images`; or `pairs` are files of vectors of the same images
        by the old and the new model, and `labels` one of their identities, as of `plan_from_pairs`; `options` are
        theirs.
        """
        encoder = None if str(new).startswith(NAMED) else load_encoder(new, device=device)
        words = (str(self.store.place),)
        if pairs is not None and labels is not None:
            return plan_from_pairs(self.store, encoder, new, pairs, labels, out, words, **options)
        if sample is None or encoder is None:
            raise UserError("a plan needs images with identities and a model at hand, or pairs of vectors and labels")
        return plan_from_images(self.store, encoder, new, sample, out, words, **options)

    def backfill(
        self,
        plan: str | Path | None = None,
        share: float = 1.0,
        options: BackfillOptions | None = None,
        *,
        road: str | None = None,
        encoder: Encoder | None = None,
        device: str | None = None,
    ) -> Backfilled:
        """Begin an upgrade or go on with it, as of `core.gallery.backfill.backfill`, in this process alone.

        `device`: None for a GPU if there is one.
        """
        alone = Ranks(0, 1, torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
        return backfill(self.store, plan, share, alone, options or BackfillOptions(), road=road, encoder=encoder)

    def commit(self, delete_missing: bool = False) -> Ended:
        """Free the old vectors, as of `core.gallery.commit.commit`."""
        return commit(self.store, delete_missing)

    def rollback(self) -> Ended:
        """Free the new vectors, as of `core.gallery.commit.rollback`."""
        return rollback(self.store)
