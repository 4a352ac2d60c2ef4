"""Time and memory of class means, MixBCT's credible rows, and AdvBCT's centres and radii.

    python ci/benchmarks/class_statistics.py                     # 517,951 embeddings of 9,343 classes, D 512
    python ci/benchmarks/class_statistics.py --images 5179510    # from disk: 10.6 GB in --folder
    python ci/benchmarks/class_statistics.py --quick

Each is measured in turn with the plain way: NumPy in float64 by blocks of 16,384 rows, sums by `reduceat` over the rows
sorted by class. The medians of some repeats are printed, beside one plain read of the file, and the largest memory
of ours. Classes come sorted, as in record files of faces, or --shuffled.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median

import numpy as np
import torch
from private_memory import private_memory

from core.embeddings.class_radii import largest_without_outliers
from core.embeddings.class_values import distance_to_mean, means_and_values
from core.embeddings.credible_rows import credible_mask, per_class_rank
from core.embeddings.statistics import class_means
from core.embeddings.store import EmbeddingStore, StoreInfo
from core.errors import run_program

BLOCK_ROWS = 16384
KEEP = 0.9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=517_951)
    parser.add_argument("--classes", type=int, default=9_343)
    parser.add_argument("--size", type=int, default=512, help="of an embedding")
    parser.add_argument("--shuffled", action="store_true", help="images of all classes in any order")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="for the embeddings; without it a temporary one")
    parser.add_argument("--quick", action="store_true", help="20,000 images of 400 classes")
    args = parser.parse_args()
    images, classes = (20_000, 400) if args.quick else (args.images, args.classes)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        store = write_store(Path(folder) / "store", images, classes, args.size, args.shuffled)
        gib = store.features.nbytes / 2**30
        order = f"{'shuffled' if args.shuffled else 'sorted'}; {torch.get_num_threads()} threads"
        print(f"{images:,} x {args.size} ({gib:.2f} GiB) of {classes:,} classes, {order}")
        for name, (ours, plain) in WORKS.items():
            measure(name, store, ours, plain, args.repeats)


def measure(
    name: str, store: EmbeddingStore, ours: Callable[..., np.ndarray], plain: Callable[..., np.ndarray], repeats: int
) -> None:
    """Print the medians of ours, of the plain way and of one read of the file, and how far the results are apart."""
    seconds: dict[Callable[..., np.ndarray], list[float]] = {ours: [], plain: [], read: []}
    results, most = {}, 0.0
    for _ in range(repeats):
        for work, took in seconds.items():
            with private_memory() as peak:
                started = time.perf_counter()
                results[work] = work(store)
                took.append(time.perf_counter() - started)
            most = max(most, peak[0]) if work is ours else most
    apart = np.abs(results[ours].astype(np.float64) - results[plain]).max()
    mine, other, once = (median(seconds[work]) for work in (ours, plain, read))
    print(
        f"  {name:<18}{mine:7.2f} s, plain {other:7.2f} s: {other / mine:4.1f} times as fast; one read {once:5.2f} s; "
        f"memory {most:.2f} GiB; largest difference {apart:.1e}",
        flush=True,
    )


def read(store: EmbeddingStore) -> np.ndarray:
    """All embeddings once."""
    return np.add.reduce([store.features[start : start + BLOCK_ROWS].max() for start in starts(store)])


def starts(store: EmbeddingStore) -> range:
    return range(0, store.info.num_images, BLOCK_ROWS)


def plain_blocks(store: EmbeddingStore) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    for start in starts(store):
        rows = slice(start, start + BLOCK_ROWS)
        block = store.features[rows].astype(np.float64)
        block /= np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-12)
        yield rows, block, store.labels()[rows]


def plain_means(store: EmbeddingStore) -> np.ndarray:
    counts = np.bincount(store.labels())
    sums = np.zeros((len(counts), store.info.embedding_size))
    for _, block, labels in plain_blocks(store):
        order = np.argsort(labels, kind="stable")
        present, first = np.unique(labels[order], return_index=True)
        sums[present] += np.add.reduceat(block[order], first, axis=0)
    return sums / np.maximum(counts, 1)[:, None]


def plain_distances(store: EmbeddingStore, means: np.ndarray) -> np.ndarray:
    distances = np.empty(store.info.num_images)
    for rows, block, labels in plain_blocks(store):
        distances[rows] = np.linalg.norm(block - means[labels], axis=1)
    return distances


def plain_mask(store: EmbeddingStore) -> np.ndarray:
    labels = np.asarray(store.labels())
    distances = plain_distances(store, plain_means(store))
    kept = np.ceil(np.round(KEEP * np.bincount(labels), 9))
    return per_class_rank(distances, labels) < kept[labels]


def radii(store: EmbeddingStore) -> np.ndarray:
    means, distances = means_and_values(store, distance_to_mean)
    return largest_without_outliers(distances, np.asarray(store.labels()), len(means))


def plain_radii(store: EmbeddingStore) -> np.ndarray:
    means = plain_means(store)
    return largest_without_outliers(plain_distances(store, means), np.asarray(store.labels()), len(means))


WORKS = {
    "class means": (lambda store: class_means(store)[0], plain_means),
    "credible rows": (lambda store: credible_mask(store, KEEP), plain_mask),
    "centres and radii": (radii, plain_radii),
}


def write_store(path: Path, images: int, classes: int, size: int, shuffled: bool) -> EmbeddingStore:
    """Random embeddings, float32 (images, size), of images that are dealt to the classes at random."""
    path.mkdir()
    rng = np.random.default_rng(0)
    features = np.lib.format.open_memmap(path / "features.npy", "w+", np.float32, (images, size))
    for start in range(0, images, BLOCK_ROWS):
        block = features[start : start + BLOCK_ROWS]
        rng.standard_normal(dtype=np.float32, out=block)
    features.flush()
    labels = np.append(rng.integers(0, classes, images - classes), np.arange(classes))
    np.save(path / "labels.npy", labels if shuffled else np.sort(labels))
    (path / "store.json").write_text(json.dumps(asdict(StoreInfo("data", "model", images, size, "random", "random"))))
    return EmbeddingStore.open(path)


if __name__ == "__main__":
    run_program(main)
