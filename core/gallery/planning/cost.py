"""What an upgrade costs: images to embed, hours on this device, and bytes of vectors."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from core.gallery.planning.plan import Cost
from core.gallery.upgrade import ROADS
from core.images.loader import load_batches
from core.images.source import ImageSource
from core.models.encoder import Encoder

__all__ = ["Holdings", "Rate", "estimate_cost", "measure_rate"]

SECONDS = 5.0
"""That a rate is measured for."""
WARM_UP = 2
"""Batches before: the first ones pay for memory and for the choice of algorithms."""
ITEM = 4
"""Bytes of a number of a new vector, float32."""


@dataclass(frozen=True)
class Holdings:
    """What a gallery holds, as far as a plan depends on it."""

    entries: int
    images: int
    """Entries whose image can be embedded again."""
    vector_bytes: int
    """Of all stored vectors."""
    labelled: bool = False
    """Whether entries have classes, and classes several entries."""


@dataclass(frozen=True)
class Rate:
    """How fast the new model embeds here."""

    images_per_second: float
    how: str


def measure_rate(encoder: Encoder, source: ImageSource, batch_size: int, num_workers: int) -> Rate:
    """Read and embed images of `source`, again and again if it is small, for five seconds after two batches.

    At least one batch is timed. `UserError` if an image cannot be read.
    """
    timed, started = 0, 0.0
    for number, batch in enumerate(load_batches(source, _batches(source, batch_size), num_workers)):
        encoder(batch["image"].to(encoder.device)).cpu()
        if number == WARM_UP - 1:
            started = time.perf_counter()
        elif number >= WARM_UP:
            timed += len(batch["image"])
            if time.perf_counter() - started >= SECONDS:
                break
    rate = timed / (time.perf_counter() - started)
    device = torch.cuda.get_device_name(encoder.device) if encoder.device.type == "cuda" else "the CPU"
    threads = f", {torch.get_num_threads()} threads" if encoder.device.type == "cpu" else ""
    return Rate(
        rate,
        f"{timed} images of {source.name} read and embedded by {encoder.name} on {device}{threads}, batches of "
        f"{batch_size}, {num_workers} reading processes",
    )


def _batches(source: ImageSource, batch_size: int) -> Iterator[np.ndarray]:
    """Batches of the source without end, but for the limit that keeps a loader from reading ahead for ever."""
    size = min(batch_size, source.num_images)
    starts = range(0, source.num_images - size + 1, size)
    return (np.arange(start, start + size) for start in itertools.cycle(starts))


def estimate_cost(gallery: Holdings, new_size: int, rate: Rate | None) -> Cost:
    """The cost of a gallery whose new vectors have `new_size` numbers, float32."""
    everything = gallery.images * new_size * ITEM
    mapped = gallery.entries * new_size * ITEM
    first = {"gallery_map": mapped, "full_backfill": everything}
    peak = {"gallery_map": gallery.vector_bytes + mapped + everything, "stay": gallery.vector_bytes}
    return Cost(
        images=gallery.images,
        images_per_second=None if rate is None else rate.images_per_second,
        hours=None if rate is None else gallery.images / rate.images_per_second / 3600,
        how="not measured: there are no images to measure with" if rate is None else rate.how,
        bytes_first={road: first.get(road, 0) for road in ROADS},
        bytes_peak={road: peak.get(road, gallery.vector_bytes + everything) for road in ROADS},
    )
