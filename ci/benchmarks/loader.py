"""Images a second by workers: the loader beside a plain DataLoader, and the workers that a node of 8 GPUs needs.

    python -m ci.benchmarks loader

Workers share nothing but a queue that takes a batch at a time, so that their number is bounded by the cores, and the
rate of a rank by what its training process does for each batch. Both costs are measured as CPU time, which a busy
machine does not change much; images a second are those of the clock, and end at this machine's cores.
"""

import gc
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ci.benchmarks.harness.bench import Bench
from ci.benchmarks.records import NUM_DISTINCT, SIZE, draw_images
from core.data.recordio import RecordReader, RecordWriter
from core.data.records import RecordDataset, write_image_records
from core.images.device_decoding import EncodedReader
from core.images.loader import load_batches

QUICK = {"images": 1024, "workers": (0, 1)}
NODE_RATES, GPUS_A_NODE = (20_000, 50_000), 8


@dataclass(frozen=True)
class Cost:
    """One pass over the images."""

    rate: float
    """Images a second by the clock."""
    parent: float
    """CPU seconds of the training process, all its threads, for a batch."""
    worker: float
    """CPU seconds of all workers for an image, their start left out."""


class PlainImages(Dataset):
    """As one would write it: reads and decodes an image, which the DataLoader stacks to batches."""

    def __init__(self, prefix: Path):
        self.reader = RecordReader(prefix)

    def __len__(self) -> int:
        return len(self.reader) - 1

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        (label, *_), payload = self.reader[row + 1]
        image = cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_COLOR)
        return torch.from_numpy(cv2.cvtColor(image, cv2.COLOR_BGR2RGB)), int(label)


def write_records(prefix: Path, count: int) -> RecordDataset:
    """Records of `count` images."""
    drawn = draw_images(np.random.default_rng(0), min(count, NUM_DISTINCT))
    with RecordWriter(prefix) as writer:
        write_image_records(writer, count, 1, ((0, drawn[i % len(drawn)]) for i in range(count)))
    return RecordDataset(prefix)


def orders(count: int, batch: int) -> np.ndarray:
    """Rows of shuffled batches, int64 (batches, batch)."""
    return np.random.default_rng(1).permutation(count)[: count // batch * batch].reshape(-1, batch)


def ours(data: RecordDataset, rows: np.ndarray, num_workers: int) -> Iterator[torch.Tensor]:
    """The images of every batch, decoded by the workers."""
    return (batch["image"] for batch in load_batches(data, rows, num_workers, prefetch=4))


def ours_encoded(data: RecordDataset, rows: np.ndarray, num_workers: int) -> Iterator[torch.Tensor]:
    """The encoded images of every batch, as `decode_on=device` has them from the workers."""
    return (batch["encoded"] for batch in load_batches(EncodedReader(data), rows, num_workers, prefetch=4))


def plain(data: RecordDataset, rows: np.ndarray, num_workers: int) -> Iterator[torch.Tensor]:
    """The images of every batch, by a DataLoader with its default collate."""
    loader = DataLoader(
        PlainImages(Path(data.prefix)),
        batch_sampler=rows.tolist(),
        num_workers=num_workers,
        prefetch_factor=4 if num_workers else None,
        worker_init_fn=one_thread,
    )
    return (images for images, _ in loader)


def one_thread(worker: int) -> None:
    """Keep OpenCV's threads from competing with the other workers, as the loader does."""
    cv2.setNumThreads(0)


WAYS: dict[str, Callable[[RecordDataset, np.ndarray, int], Iterator[torch.Tensor]]] = {
    "load_batches": ours,
    "load_batches, encoded": ours_encoded,
    "plain DataLoader": plain,
}


def measure(way: Callable[..., Iterator[torch.Tensor]], data: RecordDataset, rows: np.ndarray, workers: int) -> Cost:
    """Read all batches once; the clock and the parent's time start when the first batch is there.

    The workers' time is that beyond a pass over a quarter of the batches: their start and end cost as much there.
    """
    quarter = rows[: max(len(rows) // 4, 1)]
    before = children_seconds()
    read_all(way, data, quarter, workers)
    between = children_seconds()
    seconds, used, count = read_all(way, data, rows, workers)
    of_workers = (children_seconds() - between) - (between - before)
    batch = rows.shape[1]
    worker = of_workers / (rows.size - quarter.size) if workers else used / count / batch
    return Cost(count * batch / seconds, used / count, worker)


def read_all(
    way: Callable[..., Iterator[torch.Tensor]], data: RecordDataset, rows: np.ndarray, workers: int
) -> tuple[float, float, int]:
    """Seconds by the clock and of this process's CPU for the batches after the first one, and their number."""
    batches = iter(way(data, rows, workers))
    next(batches)
    started, used = time.perf_counter(), time.process_time()
    count = sum(1 for _ in batches)
    seconds, used = time.perf_counter() - started, time.process_time() - used
    del batches
    gc.collect()
    for process in multiprocessing.active_children():
        process.join()
    return seconds, used, count


def children_seconds() -> float:
    """CPU seconds of all processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def scaling(data: RecordDataset, batch: int, workers: Sequence[int], repeats: int) -> dict[tuple[str, int], Cost]:
    """The median cost of every way with every number of workers, all measured in turn."""
    rows, found = orders(len(data), batch), {}
    for _ in range(repeats):
        for number in workers:
            for name, way in WAYS.items():
                found.setdefault((name, number), []).append(measure(way, data, rows, number))
    return {
        key: Cost(*(median(getattr(cost, part) for cost in costs) for part in ("rate", "parent", "worker")))
        for key, costs in found.items()
    }


def workers_of_a_node(cost: Cost, batch: int, rate: float) -> tuple[float, float]:
    """Busy workers of a node that give `rate` images a second, and the most that its parents can take."""
    return rate * cost.worker, GPUS_A_NODE * batch / cost.parent


def run(bench: Bench, *, images: int = 16_384, batch: int = 128, workers: tuple = (0, 1, 2, 4)) -> None:
    data = write_records(bench.folder / "train", images)
    numbers = [int(number) for number in workers]
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    found = scaling(data, batch, numbers, bench.repeats)
    header = ["way", "workers", "images/s", "a worker's us an image", "parent's ms a batch", "parent's bound, images/s"]
    rows = [
        [
            name, str(number), f"{cost.rate:,.0f}", f"{cost.worker * 1e6:.1f}", f"{cost.parent * 1e3:.2f}",
            f"{batch / cost.parent:,.0f}",
        ]
        for (name, number), cost in found.items()
    ]  # fmt: skip
    bench.table(f"{images} JPEGs of {SIZE}x{SIZE}, batches of {batch}, {os.cpu_count()} cores", header, rows)
    most = max(numbers)
    for name in WAYS:
        for rate in NODE_RATES if most else ():
            needed, bound = workers_of_a_node(found[name, most], batch, rate)
            bench.note(
                f"{rate:,} images/s a node of {GPUS_A_NODE} GPUs by {name}: {needed:.1f} cores busy with reading, "
                f"{needed / GPUS_A_NODE:.1f} workers a rank; its training processes take at most {bound:,.0f} images/s"
            )
