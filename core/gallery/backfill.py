"""Embedding a gallery again by the new model of an upgrade, in the plan's order, while the gallery is searched.

The first rank alone reads and writes the gallery. It deals out blocks of entries; each rank embeds its share of a
block, and the vectors are gathered and written together. A batch holds the same images for any number of ranks.
"""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from core.errors import UserError
from core.gallery.backfill_order import rows_in_order
from core.gallery.begin import begin
from core.gallery.entry_images import REASON_BYTES, EntryImages, Given, Place, image_place, reasons_as_text
from core.gallery.store import BLOCK, Entries, Store, Version
from core.gallery.upgrade import Upgrade
from core.images.loader import load_batches
from core.models.encoder import Encoder, load_encoder
from core.parallel.collectives import all_gather_rows, broadcast_object
from core.parallel.ranks import Ranks
from core.progress import Progress

__all__ = ["FAILED", "Backfilled", "BackfillOptions", "backfill"]

logger = logging.getLogger(__name__)
WINDOW = 16
"""Blocks that the workers which read images are started for."""
FAILED = "failed"
"""Document: the reasons by id for entries that the last run could not embed, the first `MOST_LISTED` of them."""
MOST_LISTED = 10_000
BATCH_SIZES = {"cpu": 128, "cuda": 512}
"""By device; halved where the images do not fit."""
NO_DIRECTION = "the model gives no finite vector, or one of zeros"


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
            embed = _Embed(encoder, place, ranks, options)
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


class _Embed:
    """Embeds entries over all ranks."""

    def __init__(self, encoder: Encoder, place: Place | Given, ranks: Ranks, options: BackfillOptions):
        self.encoder, self.place, self.ranks, self.options = encoder, place, ranks, options
        self.batch_size = options.batch_size or BATCH_SIZES[encoder.device.type]
        if options.rate is not None:  # no more at once than are due in a second
            self.batch_size = min(self.batch_size, max(1, int(options.rate)))
        self.at_once = self.batch_size
        self.next_time = time.monotonic()

    def __call__(self, entries: Entries, progress: Progress | None) -> Iterator[tuple[slice, np.ndarray, list[str]]]:
        """For each block of N entries its places, the vectors (B, D), and the reasons (B,) why there is none."""
        count, options = len(entries.ids), self.options
        source = EntryImages(entries.ids, entries.images, self.place, self.encoder.image_size)
        blocks = [np.arange(at, min(at + options.block, count)) for at in range(0, count, options.block)]
        mine = [self._mine(block) for block in blocks]
        workers = 0 if callable(self.place) else options.num_workers
        loader = load_batches(
            source, [batch for own in mine for batch in own], workers, pin_memory=self.encoder.device.type == "cuda"
        )
        for block, own in zip(blocks, mine):
            parts, shown = [self._nothing()], 0
            for number, batch in enumerate(islice(loader, len(own)), 1):
                self._wait(len(batch["row"]))
                parts.append((batch["row"], self._vectors(batch["image"]), batch["reason"]))
                if progress is not None:  # as far as the other ranks are too, at about the same speed
                    progress.update(len(block) * number // len(own) - shown)
                    shown = len(block) * number // len(own)
            rows, vectors, reasons = (all_gather_rows(torch.cat(part)) for part in zip(*parts))
            order = rows.argsort()
            texts = reasons_as_text(reasons[order].numpy())
            directed = (torch.isfinite(vectors).all(1) & vectors.any(1))[order].tolist()
            texts = [text or ("" if there else NO_DIRECTION) for text, there in zip(texts, directed)]
            yield slice(int(block[0]), int(block[-1]) + 1), vectors[order].numpy(), texts

    def _mine(self, block: np.ndarray) -> list[np.ndarray]:
        """This rank's batches of a block: they are dealt to the ranks in turn."""
        batches = [block[at : at + self.batch_size] for at in range(0, len(block), self.batch_size)]
        return batches[self.ranks.rank :: self.ranks.world_size]

    def _nothing(self) -> tuple[Tensor, Tensor, Tensor]:
        """The part of a rank without a batch."""
        size = self.encoder.embedding_size
        return torch.empty(0, dtype=torch.int64), torch.empty(0, size), torch.empty(0, REASON_BYTES, dtype=torch.uint8)

    def _wait(self, count: int) -> None:
        """Until the rate allows so many more images."""
        if self.options.rate is None:
            return
        time.sleep(max(0.0, self.next_time - time.monotonic()))
        self.next_time = max(self.next_time, time.monotonic()) + count * self.ranks.world_size / self.options.rate

    def _vectors(self, images: Tensor) -> Tensor:
        """(B, D) on the CPU; in smaller pieces where the device has no room for all images at once."""
        while True:
            try:
                return torch.cat([self.encoder(piece).cpu() for piece in images.split(self.at_once)])
            except torch.OutOfMemoryError as error:
                if self.at_once == 1:
                    raise UserError(
                        f"{self.encoder.device} has no room for one image of {self.encoder.name}: free its memory, or "
                        "name another device (--device)"
                    ) from error
                self.at_once //= 2
                logger.info(
                    "%s: %d images at a time do not fit; now %d", self.encoder.device, 2 * self.at_once, self.at_once
                )
                torch.cuda.empty_cache()
