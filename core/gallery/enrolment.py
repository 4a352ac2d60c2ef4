"""Enrolment by images: they are embedded by each model whose vectors a new entry of the gallery needs now."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from core.errors import UserError
from core.gallery.backfill import BackfillOptions
from core.gallery.documents import read_upgrade
from core.gallery.embed_entries import EmbedEntries
from core.gallery.entry_images import image_place
from core.gallery.store import BLOCK, Entries, Store, Version
from core.models.encoder import Encoder, load_encoder
from core.parallel.ranks import Ranks

__all__ = ["EmbeddedEntries", "embed_for"]


@dataclass(frozen=True)
class EmbeddedEntries:
    """B entries to be enrolled, and those of the same block that cannot be."""

    ids: list[str]
    vectors: dict[str, np.ndarray]
    """(B, D) float32 by key of the model."""
    labels: list[str | None]
    images: list[str | None]
    reasons: dict[str, str]
    """By id: why an image cannot be embedded."""


def embed_for(
    store: Store,
    ids: Sequence[str],
    images: Sequence[str | None],
    labels: Sequence[str | None] | None,
    encoders: Sequence[Encoder],
    options: BackfillOptions,
    device: str,
) -> Iterator[EmbeddedEntries]:
    """Embed the images of N new entries at the paths `images`, block by block.

    By the gallery's model, during an upgrade by the old and by the new one: those of `encoders`, else where the gallery
    has them from. During an upgrade either may be missing, as `Gallery.enrol` allows. `options` says how, and where the
    images are if not at their paths; they are decoded once a model. `UserError` if no model is at hand. Memory: the
    vectors of a block of 4,096 entries.
    """
    alone = Ranks(0, 1, torch.device(device))
    place = options.images if callable(options.images) else image_place(options.images)
    embed = {
        encoder.fingerprint: EmbedEntries(
            encoder, place, alone, options.batch_size, options.num_workers, options.rate, BLOCK
        )
        for encoder in _needed(store, encoders, alone.device)
    }
    labels = [None] * len(ids) if labels is None else labels
    for start in range(0, len(ids), BLOCK):
        block = slice(start, start + BLOCK)
        names = list(ids[block])
        entries = Entries(np.arange(len(names)), names, list(labels[block]), list(images[block]))
        vectors: dict[str, np.ndarray] = {}
        reasons: dict[str, str] = {}
        for key, embed_entries in embed.items():
            ((_, vectors[key], why),) = embed_entries(entries, None)
            reasons |= {name: reason for name, reason in zip(names, why) if reason}
        good = np.flatnonzero([name not in reasons for name in names])
        yield EmbeddedEntries(
            [names[at] for at in good],
            {key: of_model[good] for key, of_model in vectors.items()},
            [entries.labels[at] for at in good],
            [entries.images[at] for at in good],
            reasons,
        )


def _needed(store: Store, encoders: Sequence[Encoder], device: torch.device) -> list[Encoder]:
    """The models whose vectors a new entry needs, as far as they are at hand."""
    versions, upgrade = store.versions(), read_upgrade(store)
    needed = list(versions.values())[:1] if upgrade is None else [versions[upgrade.old], versions[upgrade.new]]
    given = {encoder.fingerprint: encoder for encoder in encoders}
    strange = set(given) - {version.key for version in needed}
    if strange:
        raise UserError(
            f"{store.place} takes entries by {' and '.join(version.name for version in needed) or 'no model'}, not by "
            f"{given[min(strange)].name} (fingerprint {min(strange)[:12]}): leave that one out"
        )
    found = [given.get(version.key) or _at_hand(version, device) for version in needed]
    known = [encoder for encoder in found if encoder is not None]
    if not known:
        names = " and ".join(version.name for version in needed) or "its model"
        raise UserError(f"{store.place}: {names} is not at hand and embeds no images: give vectors")
    return known


def _at_hand(version: Version, device: torch.device) -> Encoder | None:
    """The model from where the gallery has it; None for one whose name alone is known."""
    if version.model is None:
        return None
    encoder = load_encoder(version.model, device=device)
    if encoder.fingerprint != version.key:
        raise UserError(
            f"{version.model} is no longer {version.name}, whose vectors the gallery has (fingerprint "
            f"{encoder.fingerprint[:12]}, not {version.key[:12]}): say where that model is (--model)"
        )
    return encoder
