"""Embedding a gallery again by the new model of an upgrade, in the plan's order, while the gallery is searched.

The first rank alone reads and writes the gallery. It deals out blocks of entries; each rank embeds its share of a
block, and the vectors are gathered and written together. A batch holds the same images for any number of ranks.
"""

import logging
import math
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np

from core.errors import UserError
from core.gallery.backfill_order import rows_in_order
from core.gallery.begin import begin
from core.gallery.embed_entries import EmbedEntries
from core.gallery.entry_images import Given, image_place
from core.gallery.store import BLOCK, Entries, Store, Version
from core.gallery.upgrade import Upgrade
from core.models.encoder import Encoder, load_encoder
from core.parallel.collectives import broadcast_object
from core.parallel.ranks import Ranks
from core.progress import Progress

__all__ = ["FAILED", "MOST_LISTED", "Backfilled", "BackfillOptions", "backfill"]

logger = logging.getLogger(__name__)
WINDOW = 16
"""Blocks that the workers which read images are started for."""
FAILED = "failed"
"""Document: the reasons by id for entries that the last run could not embed, the first `MOST_LISTED` of them."""
MOST_LISTED = 10_000


@dataclass(frozen=True)
class BackfillOptions:
    """How a backfill reads and embeds."""

    images: str | Path | Given | None = None
    """A list, a folder or records, or a function from ids to images (`core.gallery.entry_images`); None: the paths that
    are stored with the entries."""
    batch_size: int | None = None
    """None: by the device."""
    num_workers: int = 2
    """Processes a rank that read images; a function of the user runs in this process."""
    rate: float | None = None
    """Images a second that all ranks together embed at most."""
    block: int = BLOCK
    """Entries that are embedded and written together: the most that a killed run repeats."""

    def __post_init__(self) -> None:
        if (self.batch_size or 1) < 1 or self.num_workers < 0 or self.block < 1:
            raise UserError("batch size and block must be 1 or more, and workers 0 or more")
        if self.rate is not None and not self.rate > 0:
            raise UserError(f"a rate of {self.rate} images a second embeds nothing: name one above 0")


@dataclass(frozen=True)
class Backfilled:
    """What a backfill has come to."""

    done: int
    """Entries with a new vector."""
    total: int
    embedded: int
    """By this run."""
    failed: int
    """Entries that this run could not embed: their old vectors stay and are searched."""
    reasons: dict[str, str] = field(default_factory=dict)
    """By id, of the first `MOST_LISTED`."""


def backfill(
    store: Store | None,
    plan: str | Path | None,
    share: float,
    ranks: Ranks,
    options: BackfillOptions = BackfillOptions(),
    *,
    road: str | None = None,
    encoder: Encoder | None = None,
) -> Backfilled:
    """Embed entries until a `share` of the gallery has new vectors; every rank must call this.

    Begins the upgrade of the plan's folder if none is under way (`core.gallery.begin`), so that with a share of 0 the
    new model searches and nothing is embedded; `plan` None goes on with the one under way. A run killed at any moment
    repeats at most a block. An image that cannot be read is counted and listed, its entry keeps its old vector, and a
    later run tries it again. `store`: on the first rank. `road`: another one than the plan's. `encoder`: the new model,
    if it is not where the plan says.

    `UserError` if another process backfills, commits or rolls back, if the new model is another one, if not one image
    of the first block can be embedded, and as of `begin`. Memory: 24 bytes an entry, the paths of 16 blocks and the
    vectors of one.
    """
    if not 0 <= share <= 1:
        raise UserError(f"a share of {share} of the gallery cannot be embedded: name one from 0 to 1")
    with ExitStack() as claims:
        work = None
        if ranks.is_first:
            assert store is not None
            claims.enter_context(store.claimed("backfill"))
            work = _Work(store, begin(store, plan, road), share, options.block)
            claims.enter_context(work.progress)
        entries = broadcast_object(work and work.next_entries())
        if entries is not None:
            place = options.images if callable(options.images) else image_place(options.images)
            encoder = _require_encoder(broadcast_object(work and work.new), encoder, ranks)
            embed = EmbedEntries(
                encoder, place, ranks, options.batch_size, options.num_workers, options.rate, options.block
            )
            while entries is not None:
                for rows, vectors, reasons in embed(entries, None if work is None else work.progress):
                    if work is not None:
                        work.keep(entries, rows, vectors, reasons)
                entries = broadcast_object(work and work.next_entries())
        return broadcast_object(work and work.finish())


def _require_encoder(new: Version, encoder: Encoder | None, ranks: Ranks) -> Encoder:
    """The new model, on this rank's device."""
    if encoder is None:
        if new.model is None:
            raise UserError(f"the model {new.name} is not at hand, only its name is known: name its place (--new)")
        encoder = load_encoder(new.model, device=ranks.device)
    if encoder.fingerprint != new.key:
        raise UserError(
            f"the model {encoder.name} (fingerprint {encoder.fingerprint[:12]}) is not the new one of the upgrade, "
            f"{new.name} ({new.key[:12]}): name that one"
        )
    return encoder


class _Work:
    """What is left to do in a gallery, block by block, and what has been done; on the first rank alone."""

    def __init__(self, store: Store, upgrade: Upgrade, share: float, block: int):
        self.store, self.upgrade, self.block = store, upgrade, block
        self.new = store.versions()[upgrade.new]
        self.before = store.counts()[upgrade.new]
        self.target = math.ceil(share * len(store) - 1e-9)
        self.embedded = self.failed = self.position = 0
        self.reasons: dict[str, str] = {}
        self.rows = np.empty(0, np.int64)
        if self.missing > 0:
            self.rows = rows_in_order(store, upgrade)
            store.require_room(4 * self.new.size * min(self.missing, len(self.rows)))
        self.progress = Progress(f"embedding with {self.new.name}", min(self.missing, len(self.rows)))

    @property
    def missing(self) -> int:
        """New vectors up to the share that is wanted."""
        return self.target - self.before - self.embedded

    def next_entries(self) -> Entries | None:
        """The next ones in the order, no more than are missing; None at the end."""
        while self.missing > 0 and self.position < len(self.rows):
            rows = self.rows[self.position : self.position + min(self.missing, WINDOW * self.block)]
            self.position += len(rows)
            entries = self.store.entries_at(rows)
            if entries.ids:
                return entries
        return None

    def keep(self, entries: Entries, places: slice, vectors: np.ndarray, reasons: list[str]) -> None:
        """Write the vectors (B, D) of a block of the entries, and list those that there is a reason against."""
        rows, ids = entries.rows[places], entries.ids[places]
        good = np.array([not reason for reason in reasons], bool)
        if good.any():
            by_row = np.argsort(rows[good])
            self.embedded += self.store.add_vectors(self.new.key, rows[good][by_row], vectors[good][by_row])
        if good.all():
            return
        bad = {name: reason for name, reason in zip(ids, reasons) if reason}
        if not self.failed:
            logger.warning("%s cannot be embedded (%s): its old vector stays", *next(iter(bad.items())))
        self.failed += len(bad)
        self.reasons.update(islice(bad.items(), MOST_LISTED - len(self.reasons)))
        self._list_failed()
        if not self.before + self.embedded:
            name, reason = next(iter(bad.items()))
            raise UserError(
                f"{self.store.place}: none of the first {self.failed} entries can be embedded; {name}: {reason}; say "
                "where the images are (--images)"
            )

    def _list_failed(self) -> None:
        self.upgrade = replace(self.upgrade, failed=self.failed)
        self.store.set_documents({"upgrade": self.upgrade.to_json(), FAILED: self.reasons or None})

    def finish(self) -> Backfilled:
        """What has been done."""
        if self.position and self.upgrade.failed != self.failed:  # of an earlier run, and embedded now
            self._list_failed()
        return Backfilled(self.store.counts()[self.new.key], len(self.store), self.embedded, self.failed, self.reasons)
