"""Embedding the images of a gallery's entries, over any number of ranks. A batch is the same for any number of them."""

import logging
import time
from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from core.errors import UserError
from core.gallery.entry_images import REASON_BYTES, EntryImages, Given, Place, reasons_as_text
from core.gallery.store import BLOCK, Entries
from core.images.loader import load_batches
from core.models.encoder import Encoder
from core.parallel.collectives import all_gather_rows
from core.parallel.ranks import Ranks
from core.progress import Progress

__all__ = ["EmbedEntries"]

logger = logging.getLogger(__name__)
BATCH_SIZES = {"cpu": 128, "cuda": 512}
"""By device; halved where the images do not fit."""
NO_DIRECTION = "the model gives no finite vector, or one of zeros"


class EmbedEntries:
    """Embeds the images of entries at `place` over all ranks, at most `rate` images a second together.

    `batch_size` None: by the device. `num_workers`: processes a rank that read images; a function of the user runs in
    this process. `block`: entries whose vectors come together.
    """

    def __init__(
        self,
        encoder: Encoder,
        place: Place | Given,
        ranks: Ranks,
        batch_size: int | None = None,
        num_workers: int = 0,
        rate: float | None = None,
        block: int = BLOCK,
    ):
        self.encoder, self.place, self.ranks = encoder, place, ranks
        self.num_workers, self.rate, self.block = num_workers, rate, block
        self.batch_size = batch_size or BATCH_SIZES[encoder.device.type]
        if rate is not None:  # no more at once than are due in a second
            self.batch_size = min(self.batch_size, max(1, int(rate)))
        self.at_once = self.batch_size
        self.next_time = time.monotonic()

    def __call__(self, entries: Entries, progress: Progress | None) -> Iterator[tuple[slice, np.ndarray, list[str]]]:
        """For each block of N entries its places, the vectors (B, D), and the reasons (B,) why there is none."""
        count = len(entries.ids)
        source = EntryImages(entries.ids, entries.images, self.place, self.encoder.image_size)
        blocks = [np.arange(at, min(at + self.block, count)) for at in range(0, count, self.block)]
        mine = [self._mine(block) for block in blocks]
        workers = 0 if callable(self.place) else self.num_workers
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
        if self.rate is None:
            return
        time.sleep(max(0.0, self.next_time - time.monotonic()))
        self.next_time = max(self.next_time, time.monotonic()) + count * self.ranks.world_size / self.rate

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
