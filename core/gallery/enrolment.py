"""Enrolling in a gallery whose model may be about to change: by the new model, and by the old one until the commit."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from core.errors import UserError
from core.gallery.backfill import NO_DIRECTION
from core.gallery.documents import read_upgrade
from core.gallery.entry_images import EntryImages, Stored, reasons_as_text
from core.gallery.store import Store
from core.images.loader import load_batches
from core.models.encoder import Encoder

__all__ = ["embed_images", "enrol", "versions_to_enrol"]


def versions_to_enrol(store: Store) -> list[str]:
    """Keys of the versions that an enrolment gives vectors of.

    During an upgrade these are the new one, by which the entry is found, and the old one, which a rollback needs.
    """
    upgrade = read_upgrade(store)
    if upgrade is not None:
        return [upgrade.new, upgrade.old]
    return list(store.versions())[:1]  # others are left by a beginning that was killed


def enrol(
    store: Store,
    ids: Sequence[str],
    vectors: Mapping[str, np.ndarray],
    labels: Sequence[str | None] | None = None,
    images: Sequence[str | None] | None = None,
) -> None:
    """`Store.enrol`; `UserError` unless vectors of all of `versions_to_enrol` are given, and of no other."""
    needed, versions = versions_to_enrol(store), store.versions()
    for key in vectors:
        if key not in needed:
            raise UserError(f"{store.place} has no vectors of {key}: give those of {_named(store, needed)}")
    missing = [key for key in needed if key not in vectors]
    if missing:
        why = "; until the upgrade is committed an entry has vectors of both models" if len(needed) > 1 else ""
        raise UserError(f"{store.place}: vectors of {_named(store, missing)} are missing{why}")
    for key, given in vectors.items():
        if given.ndim != 2 or given.shape != (len(ids), versions[key].size):
            raise UserError(
                f"vectors of {versions[key].name} must be ({len(ids)}, {versions[key].size}), one for each id: got "
                f"{given.shape}"
            )
    store.enrol(ids, vectors, labels, images)


def _named(store: Store, keys: Sequence[str]) -> str:
    versions = store.versions()
    return " and ".join(f"{versions[key].name} ({key[:12]})" if versions[key].name != key else key for key in keys)


def embed_images(
    encoder: Encoder, ids: Sequence[str], paths: Sequence[str | None], batch_size: int = 128, num_workers: int = 0
) -> Iterator[np.ndarray]:
    """Embeddings (B, D) of the entries' images, in batches; `UserError` naming an entry whose image cannot be used."""
    source = EntryImages(ids, paths, Stored(), encoder.image_size)
    batches = [np.arange(at, min(at + batch_size, len(ids))) for at in range(0, len(ids), batch_size)]
    for batch in load_batches(source, batches, num_workers):
        vectors = encoder(batch["image"]).cpu()
        directed = (torch.isfinite(vectors).all(1) & vectors.any(1)).tolist()
        for row, reason, there in zip(batch["row"].tolist(), reasons_as_text(batch["reason"].numpy()), directed):
            if reason or not there:
                raise UserError(f"{ids[row]} cannot be enrolled: {reason or NO_DIRECTION}")
        yield vectors.numpy()
