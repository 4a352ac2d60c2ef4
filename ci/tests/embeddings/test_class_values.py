"""Class means and values beside them: one pass over sorted rows, two over others, and plain NumPy say the same."""

import numpy as np
import pytest
import torch

import core.embeddings.class_chunks as class_chunks
import core.embeddings.class_values as class_values
from core.embeddings.class_radii import VALUES, class_radii, largest_without_outliers
from core.embeddings.class_values import means_and_values, order_within_classes
from core.embeddings.credible_rows import dimension_scale
from core.embeddings.row_blocks import row_values
from core.embeddings.statistics import class_means

SIZE = 16
# Classes of 1 to 700 rows; 0, 5 and 6 have none, the last but one is larger than all others together.
SIZES = [0, 1, 130, 2, 1, 0, 0, 40, 3, 128, 1, 1, 700, 5]


class Rows:
    """In place of an `EmbeddingStore`; `read` has the rows that were asked for."""

    def __init__(self, labels: np.ndarray):
        rng = np.random.default_rng(3)
        self.rows = (rng.normal(size=(len(labels), SIZE)) * rng.uniform(0.1, 10, (len(labels), 1))).astype(np.float32)
        self.rows[7] = 0
        self.of_rows = labels
        self.info = type("Info", (), {"num_images": len(labels), "embedding_size": SIZE})
        self.read: list[slice] = []
        self.features = self

    def __getitem__(self, rows: slice) -> np.ndarray:
        self.read.append(rows)
        return self.rows[rows]

    def labels(self) -> np.ndarray:
        return self.of_rows


@pytest.fixture
def store() -> Rows:
    return Rows(np.repeat(np.arange(len(SIZES)), SIZES))


@pytest.mark.parametrize("most", [8192, 100], ids=["one pass", "a class too large"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("measure", VALUES)
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_pass_gives_the_bits_of_means_first_and_values_then(
    store, monkeypatch, most, threads, measure, scaled, dtype
):
    monkeypatch.setattr(class_chunks, "CHUNKS", 2)
    monkeypatch.setattr(class_chunks, "CHUNK_ROWS", 128)
    monkeypatch.setattr(class_chunks, "MOST_ROWS", most)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    scale = dimension_scale(store) if scaled else None
    with monkeypatch.context() as patch:
        patch.setattr(class_chunks, "MOST_ROWS", 0)  # one thread adds up all rows in order
        expected = class_means(store, scale)[0]
    np.testing.assert_array_equal(class_means(store, scale)[0], expected)
    expected = expected.astype(dtype)
    values = row_values(store, lambda rows, of: VALUES[measure](rows if scale is None else rows * scale, expected[of]))
    store.read.clear()
    means, found = means_and_values(store, VALUES[measure], scale, dtype)
    assert means.dtype == dtype
    np.testing.assert_array_equal(means, expected)
    np.testing.assert_array_equal(found, values)
    once = sum(rows.stop - rows.start for rows in store.read) == len(store.rows)
    assert once == (most == 8192)


def test_sorted_rows_give_what_the_same_rows_give_in_any_order(store):
    mixed = np.random.default_rng(0).permutation(len(store.rows))
    other = Rows(store.labels()[mixed])
    other.rows = store.rows[mixed]
    for value_of in VALUES.values():
        (means, values), (means_of_mixed, of_mixed) = (means_and_values(each, value_of) for each in (store, other))
        np.testing.assert_allclose(means_of_mixed, means, rtol=0, atol=1e-14)
        np.testing.assert_allclose(of_mixed, values[mixed], rtol=0, atol=1e-7)  # the angle of a lone row is near 0


def test_radii_of_one_pass_are_those_around_the_means(store):
    for measure, value_of in VALUES.items():
        means, values = means_and_values(store, value_of)
        radii = largest_without_outliers(values, store.labels(), len(means))
        np.testing.assert_array_equal(radii, class_radii(store, means, measure))


@pytest.mark.parametrize("rows", [1, 50, 1024])
@pytest.mark.parametrize("is_sorted", [True, False])
def test_rows_come_by_class_and_value_and_equal_ones_as_they_were(monkeypatch, rows, is_sorted):
    monkeypatch.setattr(class_values, "SORTED_ROWS", rows)
    labels = np.repeat(np.arange(len(SIZES)), SIZES)
    if not is_sorted:
        labels = np.random.default_rng(1).permutation(labels)
    values = np.random.default_rng(2).integers(0, 9, len(labels)).astype(np.float64)
    np.testing.assert_array_equal(order_within_classes(values, labels), np.lexsort((values, labels)))
    assert order_within_classes(np.empty(0), np.empty(0, np.int64)).shape == (0,)
