"""Threads get all rows of a sorted store once, whole classes at a time."""

import numpy as np
import pytest
import torch

import core.embeddings.class_chunks as class_chunks
from core.embeddings.class_chunks import work_by_class

SIZES = [3, 0, 1, 7, 2, 0, 5, 1, 1, 4]
LABELS = np.repeat(np.arange(len(SIZES)), SIZES)


class Store:
    """In place of an `EmbeddingStore`: rows of length 2 and more."""

    def __init__(self, labels: np.ndarray):
        self.features = np.random.default_rng(0).uniform(1, 2, (len(labels), 4)).astype(np.float32)
        self._labels = labels
        self.info = type("Info", (), {"num_images": len(labels), "embedding_size": 4})

    def labels(self) -> np.ndarray:
        return self._labels


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("rows", [1, 4, 100])
def test_all_rows_come_once_with_the_sums_of_their_classes(monkeypatch, threads, normalized, rows):
    monkeypatch.setattr(class_chunks, "CHUNK_ROWS", rows)
    monkeypatch.setattr(class_chunks, "CHUNKS", 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    store = Store(LABELS)
    expected = store.features.astype(np.float64)
    if normalized:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    seen = []

    def work(most, chunks):
        for chunk in chunks:
            assert len(chunk.features) == chunk.rows.stop - chunk.rows.start == chunk.counts.sum() <= most
            np.testing.assert_allclose(chunk.features, expected[chunk.rows], rtol=0, atol=1e-15)
            for label, count, total in zip(chunk.classes, chunk.counts, chunk.sums):
                assert count == SIZES[label]
                np.testing.assert_allclose(total, expected[label == LABELS].sum(axis=0), rtol=0, atol=1e-14)
            seen.append((chunk.rows.start, chunk.rows.stop, *chunk.classes))
            chunk.features[:] = np.nan  # as its user may

    assert work_by_class(store, work, normalized)
    seen.sort()
    assert [start for start, *_ in seen] == [0, *(stop for _, stop, *_ in seen[:-1])] and seen[-1][1] == len(LABELS)
    assert [label for _, _, *classes in seen for label in classes] == np.flatnonzero(SIZES).tolist()
    np.testing.assert_array_equal(store.features, Store(LABELS).features)


def test_other_stores_are_left_to_other_ways(monkeypatch):
    def work(most, chunks):
        raise AssertionError("it must not begin")

    assert not work_by_class(Store(LABELS[::-1]), work)
    monkeypatch.setattr(class_chunks, "MOST_ROWS", max(SIZES) - 1)
    assert not work_by_class(Store(LABELS), work)


def test_an_error_in_a_thread_is_that_of_the_call():
    def work(most, chunks):
        next(chunks)
        raise ValueError("of the caller")

    with pytest.raises(ValueError, match="of the caller"):
        work_by_class(Store(LABELS), work)
