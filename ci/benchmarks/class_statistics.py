"""Class means, MixBCT's credible rows, and AdvBCT's centres and radii, beside NumPy and one read of the file.

    python -m ci.benchmarks class_statistics                     517,951 embeddings of 9,343 classes, D 512
    python -m ci.benchmarks class_statistics --images 5179510    from disk: 10.6 GB in --folder

The plain way: NumPy in float64 by blocks of 16,384 rows, sums by `reduceat` over the rows sorted by class. Classes come
sorted, as in record files of faces, or --shuffled. Both ways must agree to 1e-12.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from ci.benchmarks.harness.bench import Bench
from core.embeddings.class_radii import largest_without_outliers
from core.embeddings.class_values import distance_to_mean, means_and_values
from core.embeddings.credible_rows import credible_mask
from core.embeddings.statistics import class_means
from core.embeddings.store import EmbeddingStore, StoreInfo

QUICK = {"images": 2_000, "classes": 40, "size": 32}
BLOCK_ROWS = 16384
KEEP = 0.9
TOLERANCE = 1e-12
"""Of means, radii and distances in float64."""


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
    sizes = np.bincount(labels)
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    order = np.lexsort((distances, labels))
    mask = np.empty(len(labels), np.bool_)
    mask[order] = rank < np.ceil(np.round(KEEP * sizes, 9))[labels[order]]
    return mask


def radii(store: EmbeddingStore) -> np.ndarray:
    means, distances = means_and_values(store, distance_to_mean)
    return largest_without_outliers(distances, np.asarray(store.labels()), len(means))


def plain_radii(store: EmbeddingStore) -> np.ndarray:
    means = plain_means(store)
    return largest_without_outliers(plain_distances(store, means), np.asarray(store.labels()), len(means))


def check_numbers(store: EmbeddingStore, found: np.ndarray, expected: np.ndarray) -> None:
    """`AssertionError` unless means, or radii, are the same."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def check_mask(store: EmbeddingStore, found: np.ndarray, expected: np.ndarray) -> None:
    """`AssertionError` unless the same rows of each class are credible; which of rows at one distance is left open."""
    labels = np.asarray(store.labels())
    np.testing.assert_array_equal(
        *(np.bincount(labels[mask], minlength=labels.max() + 1) for mask in (found, expected))
    )
    others = np.flatnonzero(found != expected)
    if len(others):
        distances = plain_distances(store, plain_means(store))
        farthest = np.zeros(labels.max() + 1)
        np.maximum.at(farthest, labels[expected], distances[expected])
        np.testing.assert_allclose(distances[others], farthest[labels[others]], rtol=0, atol=TOLERANCE)


WORKS = {
    "class means": (lambda store: class_means(store)[0], plain_means, check_numbers),
    "credible rows": (lambda store: credible_mask(store, KEEP), plain_mask, check_mask),
    "centres and radii": (radii, plain_radii, check_numbers),
}
"""Ours, the plain way, and what compares the results of the two."""


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


def run(bench: Bench, *, images: int = 517_951, classes: int = 9_343, size: int = 512, shuffled: bool = False) -> None:
    store = write_store(bench.folder / "store", images, classes, size, shuffled)
    bench.note(f"{images:,} x {size} ({store.features.nbytes / 2**30:.2f} GiB) of {classes:,} classes")
    for name, (ours, plain, check) in WORKS.items():
        ways = {"core": ours, "NumPy, float64": plain, "one read of the file": read}
        found = bench.compare(name, {way: partial(work, store) for way, work in ways.items()}, images, "rows")
        check(store, found["core"], found["NumPy, float64"])
        apart = np.abs(found["core"].astype(np.float64) - found["NumPy, float64"]).max()
        bench.note(f"largest difference {apart:.1e}")
