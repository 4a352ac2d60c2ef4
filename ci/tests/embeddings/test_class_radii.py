"""Class radii against plain loops over sorted lists."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

import core.embeddings.row_blocks as row_blocks
from core.embeddings.class_radii import class_radii, largest_without_outliers, prepare_class_radii
from core.embeddings.statistics import class_means
from core.embeddings.store import EmbeddingStore, StoreInfo

# Class 0 is first, 7 last, 3 has one row, 4 none, 2 just four; nothing is sorted.
LABELS = np.random.default_rng(0).permutation([0] * 10 + [1] * 7 + [2] * 4 + [3] + [5] * 20 + [6] * 2 + [7] * 3)


@pytest.fixture
def store(tmp_path) -> EmbeddingStore:
    """Features of very different lengths around class directions, every class of more than three with one far out."""
    rng = np.random.default_rng(1)
    features = rng.normal(size=(8, 5))[LABELS] + 0.2 * rng.normal(size=(len(LABELS), 5))
    for label in (0, 1, 2, 5):
        features[np.flatnonzero(label == LABELS)[-1]] *= -1
    features *= rng.uniform(0.01, 100, (len(LABELS), 1))
    path = tmp_path / "store"
    path.mkdir()
    np.save(path / "features.npy", features.astype(np.float32))
    np.save(path / "labels.npy", LABELS)
    info = StoreInfo("data", "model", len(LABELS), 5, "train", "old")
    (path / "store.json").write_text(json.dumps(asdict(info)))
    return EmbeddingStore.open(path)


def plain_radius(values: list[float]) -> float:
    values = sorted(values)
    if len(values) < 2:
        return -1.0
    if len(values) >= 4:
        third, first = values[int(3 * len(values) / 4)], values[int(len(values) / 4)]
        spread = 1.5 * (third - first)
        values = [value for value in values if first - spread <= value <= third + spread]
    return max(values)


def plain_radii(store, measure) -> list[float]:
    rows = [feature / np.linalg.norm(feature) for feature in np.asarray(store.features, np.float64)]
    radii = []
    for label in range(8):
        own = [row for row, other in zip(rows, LABELS) if other == label]
        mean = sum(own) / max(len(own), 1)
        if measure == "distance":
            values = [math.dist(row, mean) for row in own]
        else:
            values = [math.acos(min(1.0, row @ mean / np.linalg.norm(mean))) for row in own]
        radii.append(plain_radius(values))
    return radii


@pytest.mark.parametrize("block_rows", [16384, 7, 1])
@pytest.mark.parametrize("measure", ["distance", "angle"])
def test_radii_are_those_of_plain_loops_whatever_the_blocks(store, measure, block_rows, monkeypatch):
    monkeypatch.setattr(row_blocks, "BLOCK_ROWS", block_rows)
    monkeypatch.setattr(row_blocks, "CHUNK_ROWS", block_rows)
    radii = class_radii(store, class_means(store)[0], measure)
    np.testing.assert_allclose(radii, plain_radii(store, measure), rtol=1e-9)
    assert radii[3] == radii[4] == -1 and (np.delete(radii, [3, 4]) > 0).all()


def test_outliers_are_left_out_from_four_rows_on():
    values = np.array([1.0, 2.0, 3.0, 4.0, 50.0, 1.0, 2.0, 50.0])
    assert largest_without_outliers(values, np.array([0] * 5 + [1] * 3), 2).tolist() == [4, 50]


def test_many_classes_of_all_sizes_are_as_in_plain_loops():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 400, 2000)
    values = np.round(rng.lognormal(size=2000), 1)  # with ties, and some exactly at the limit
    expected = [plain_radius(values[labels == label].tolist()) for label in range(401)]
    np.testing.assert_array_equal(largest_without_outliers(values, labels, 401), expected)
    assert {0, 1, 2, 3, 4} <= set(np.bincount(labels, minlength=401).tolist())


def test_identical_rows_have_a_radius_of_zero():
    assert largest_without_outliers(np.zeros(5), np.zeros(5, np.int64), 1) == [0]


@pytest.mark.parametrize("measure", ["distance", "angle"])
def test_prepared_radii_are_kept_beside_the_store(store, ranks, measure):
    means, radii = prepare_class_radii(store, measure, ranks)
    np.testing.assert_allclose(means, class_means(store)[0], atol=1e-7)
    np.testing.assert_allclose(radii, plain_radii(store, measure), rtol=1e-5)
    assert radii.dtype == np.float32
    np.save(store.path / f"class_radii_{measure}.npy", np.zeros(8, np.float32))
    assert not prepare_class_radii(store, measure, ranks)[1].any()
