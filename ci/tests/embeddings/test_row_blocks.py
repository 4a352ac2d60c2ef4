"""Statistics of stores are the same for any number of threads, and equal to plain NumPy in float64."""

import numpy as np
import pytest
import torch

import core.embeddings.row_blocks as row_blocks
from core.embeddings.class_radii import class_radii
from core.embeddings.credible_rows import credible_mask
from core.embeddings.row_blocks import normalized_blocks, row_values
from core.embeddings.statistics import class_means

COUNT, SIZE, CLASSES = 5000, 16, 37


class Rows:
    """In place of an `EmbeddingStore`."""

    def __init__(self, sorted_labels: bool):
        rng = np.random.default_rng(3)
        self.features = (rng.normal(size=(COUNT, SIZE)) * rng.uniform(0.1, 10, (COUNT, 1))).astype(np.float32)
        self.features[7] = 0
        labels = rng.integers(0, CLASSES, COUNT)
        self._labels = np.sort(labels) if sorted_labels else labels
        self.info = type("Info", (), {"num_images": COUNT, "embedding_size": SIZE})

    def labels(self) -> np.ndarray:
        return self._labels


@pytest.fixture(params=[True, False], ids=["sorted", "not sorted"])
def store(request, monkeypatch) -> Rows:
    monkeypatch.setattr(row_blocks, "CHUNKS", 3)
    return Rows(request.param)


@pytest.fixture(params=[1, 2, 5])
def threads(request, monkeypatch) -> int:
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)
    return request.param


def unit(features: np.ndarray) -> np.ndarray:
    rows = features.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def test_statistics_are_those_of_plain_numpy(store, threads):
    rows, labels = unit(store.features), store.labels()
    means = np.stack([rows[labels == each].mean(axis=0) for each in range(CLASSES)])
    found, counts = class_means(store)
    np.testing.assert_allclose(found, means, rtol=0, atol=1e-14)
    np.testing.assert_array_equal(counts, np.bincount(labels))
    distances = np.linalg.norm(rows - means[labels], axis=1)
    kept = np.zeros(COUNT, bool)
    for each in range(CLASSES):
        members = np.flatnonzero(labels == each)
        kept[members[np.argsort(distances[members])[: int(np.ceil(0.7 * len(members)))]]] = True
    np.testing.assert_array_equal(credible_mask(store, 0.7), kept)
    own = row_values(store, lambda block, of_rows: (block * means[of_rows]).sum(axis=1))
    np.testing.assert_allclose(own, (rows * means[labels]).sum(axis=1), rtol=0, atol=1e-14)


def test_threads_change_no_bit(store, monkeypatch):
    def all_of_them() -> list[np.ndarray]:
        means, _ = class_means(store)
        return [means, credible_mask(store, 0.7, True), *(class_radii(store, means, m) for m in ("distance", "angle"))]

    found = []
    for count in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        found.append(all_of_them())
    for one, *others in zip(*found):
        for other in others:
            np.testing.assert_array_equal(one, other)


def test_blocks_come_in_order_and_a_few_at_a_time(store, threads):
    features, read = store.features, []

    class Noted:
        def __getitem__(self, rows):
            read.append(rows.start)
            return features[rows]

    store.features = Noted()
    for number, (rows, block, labels) in enumerate(normalized_blocks(store)):
        assert rows.start == number * row_blocks.BLOCK_ROWS and len(block) == len(labels) == rows.stop - rows.start
        assert len(read) <= number + 2 * threads + 1
        np.testing.assert_array_equal(labels, store.labels()[rows])
    assert rows.stop == COUNT


def test_an_error_in_a_thread_is_that_of_the_call(store, threads):
    def fail(block: np.ndarray, labels: np.ndarray) -> np.ndarray:
        raise ValueError("of the caller")

    with pytest.raises(ValueError, match="of the caller"):
        row_values(store, fail)
