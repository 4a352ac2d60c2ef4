"""Class means and MixBCT's credible rows against plain loops in float64."""

import json
import math
import re
from dataclasses import asdict
from fractions import Fraction

import numpy as np
import pytest
from launching import load_program

import core.embeddings.credible_rows as credible_rows
import core.embeddings.row_blocks as row_blocks
from core.embeddings.class_radii import prepare_class_radii
from core.embeddings.credibility import prepare_mask_by_distances
from core.embeddings.credible_rows import (
    credible_mask,
    credible_mask_path,
    dimension_scale,
    lowest_of_class,
    prepare_credible_mask,
)
from core.embeddings.statistics import class_means, prepare_class_means
from core.embeddings.store import EmbeddingStore, StoreInfo
from core.errors import UserError
from core.files import ROOT

# Class 0 is first, 7 last, 3 has one image, 4 none; nothing is sorted.
LABELS = np.random.default_rng(0).permutation([0] * 10 + [1] * 7 + [2] * 4 + [3] + [5] * 20 + [6] * 2 + [7] * 11)


def write_store(path, features, labels) -> EmbeddingStore:
    path.mkdir()
    np.save(path / "features.npy", np.asarray(features, np.float32))
    np.save(path / "labels.npy", np.asarray(labels, np.int64))
    info = StoreInfo("data", "model", len(labels), features.shape[1], "train", "old")
    (path / "store.json").write_text(json.dumps(asdict(info)))
    return EmbeddingStore.open(path)


@pytest.fixture
def store(tmp_path) -> EmbeddingStore:
    """Features of very different lengths, one of them zero."""
    rng = np.random.default_rng(1)
    features = rng.normal(size=(len(LABELS), 6)) * rng.uniform(0.01, 100, (len(LABELS), 1))
    features[5] = 0
    return write_store(tmp_path / "store", features, LABELS)


@pytest.fixture(params=[16384, 8, 1], ids=lambda rows: f"blocks of {rows}")
def block_rows(request, monkeypatch):
    monkeypatch.setattr(row_blocks, "BLOCK_ROWS", request.param)
    monkeypatch.setattr(row_blocks, "CHUNK_ROWS", request.param)


def unit_rows(store) -> list[list[float]]:
    rows = []
    for feature in np.asarray(store.features, np.float64).tolist():
        length = math.sqrt(sum(value * value for value in feature))
        rows.append([value / length if length else 0.0 for value in feature])
    return rows


def loop_means(rows, labels) -> dict[int, list[float]]:
    means = {}
    for label in set(labels):
        members = [row for row, of in zip(rows, labels) if of == label]
        means[label] = [sum(column) / len(members) for column in zip(*members)]
    return means


def loop_mask(rows, labels, keep: Fraction) -> list[bool]:
    means = loop_means(rows, labels)
    mask = [False] * len(labels)
    for label in set(labels):
        members = [i for i, of in enumerate(labels) if of == label]
        nearest = sorted(members, key=lambda i: (math.dist(rows[i], means[label]), i))
        for i in nearest[: math.ceil(keep * len(members))]:
            mask[i] = True
    return mask


def test_class_means_are_those_of_a_loop_and_an_empty_class_has_zero(store, block_rows):
    means, counts = class_means(store)
    expected = loop_means(unit_rows(store), LABELS.tolist())
    assert means.shape == (8, 6) and means.dtype == np.float64
    assert counts.tolist() == [10, 7, 4, 1, 0, 20, 2, 11]
    for label in range(8):
        assert np.allclose(means[label], expected.get(label, 0.0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("keep", ["0.9", "0.7", "0.5", "0.3", "0.1", "0.01", "1"])
def test_credible_rows_are_those_of_a_loop_with_exact_fractions(store, block_rows, keep):
    mask = credible_mask(store, float(keep))
    assert mask.dtype == bool and mask.tolist() == loop_mask(unit_rows(store), LABELS.tolist(), Fraction(keep))
    assert mask[LABELS == 3].all()  # the single image of a class is always credible


def test_fraction_that_floating_point_misses_keeps_no_extra_row(tmp_path):
    assert math.ceil(0.7 * 10) == 7 and math.ceil(0.1 * 30) == 3 and math.ceil(0.55 * 100) == 56  # 55.00000000000001
    features = np.random.default_rng(0).normal(size=(240, 4))
    store = write_store(tmp_path / "store", features, [0] * 100 + [1] * 40 + [2] * 100)
    assert np.bincount(store.labels(), credible_mask(store, 0.55)).tolist() == [55, 22, 55]
    assert np.bincount(store.labels(), credible_mask(store, 0.07)).tolist() == [7, 3, 7]


def test_equally_near_rows_are_kept_in_row_order(tmp_path):
    corners = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]], np.float32)
    store = write_store(tmp_path / "store", np.tile(corners, (2, 1)), [0, 0, 0, 0, 1, 1, 1, 1])
    assert credible_mask(store, 0.5).tolist() == [True, True, False, False] * 2


def test_lowest_of_a_class_are_those_of_its_own_rows():
    values, labels = np.array([5.0, 1.0, 3.0, 2.0, 2.0, 9.0]), np.array([3, 0, 3, 0, 3, 3])
    for kept, expected in (
        ([2, 0, 0, 3], [True, True, True, True, True, False]),
        ([1, 0, 0, 1], [False, True, False, False, True, False]),
        ([0, 0, 0, 4], [True, False, True, False, True, True]),
    ):
        assert lowest_of_class(values, labels, np.array(kept)).tolist() == expected


def test_scaled_dimensions_have_unit_norm_over_the_data_and_change_the_mask_as_a_loop_says(tmp_path, block_rows):
    rng = np.random.default_rng(2)
    features = rng.normal(size=(len(LABELS), 6)) * [100, 30, 10, 3, 1, 0.3]
    store = write_store(tmp_path / "store", features, LABELS)
    rows = np.array(unit_rows(store))
    scale = dimension_scale(store)
    assert np.allclose(np.linalg.norm(rows * scale, axis=0), 1, atol=1e-12)
    scaled = (rows / np.linalg.norm(rows, axis=0)).tolist()
    mask = credible_mask(store, 0.5, scale_dimensions=True)
    assert mask.tolist() == loop_mask(scaled, LABELS.tolist(), Fraction("0.5"))
    assert mask.tolist() != credible_mask(store, 0.5).tolist()


def test_mask_is_kept_beside_the_store_by_fraction_and_scaling_and_not_computed_again(store, ranks, monkeypatch):
    masks = {key: prepare_credible_mask(store, *key, ranks) for key in ((0.9, False), (0.9, True), (0.5, False))}
    assert sorted(path.name for path in store.path.glob("credible*")) == [
        "credible_0.5.npy", "credible_0.9.npy", "credible_0.9_scaled.npy"
    ]  # fmt: skip
    monkeypatch.setattr(credible_rows, "credible_mask", None)
    for (keep, scaled), mask in masks.items():
        assert np.array_equal(prepare_credible_mask(store, keep, scaled, ranks), mask)
        assert np.array_equal(np.load(credible_mask_path(store, keep, scaled)), mask)


@pytest.mark.parametrize("cut", [0, 50, -3])
def test_error_for_damaged_statistics_names_the_remedy(store, ranks, cut):
    for prepare in (
        lambda: prepare_credible_mask(store, 0.9, False, ranks),
        lambda: prepare_class_means(store, ranks),
        lambda: prepare_class_radii(store, "distance", ranks),
        lambda: prepare_mask_by_distances(store, lambda distances, _: distances[:, 0] > 1, "mask", ranks),
    ):
        before = set(store.path.iterdir())
        prepare()
        (path,) = set(store.path.iterdir()) - before
        whole = path.read_bytes()
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=rf"{path} is not a readable .npy file .*; delete it"):
            prepare()
        path.write_bytes(whole)


def test_fractions_that_differ_in_the_seventh_digit_have_masks_of_their_own(store):
    assert credible_mask_path(store, 0.9) != credible_mask_path(store, 0.90000001)


def test_tools_write_means_and_mask_beside_the_store(store, monkeypatch, capsys):
    average, denoise = (load_program(ROOT / "tools" / f"{name}_features.py") for name in ("average", "denoise"))
    monkeypatch.setattr("sys.argv", ["average_features.py", str(store.path)])
    average.main()
    assert "class_means.npy: 8 x 6" in capsys.readouterr().out
    means, _ = class_means(store)
    saved = np.load(store.path / "class_means.npy")
    assert saved.dtype == np.float32 and np.array_equal(saved, means.astype(np.float32))
    monkeypatch.setattr("sys.argv", ["denoise_features.py", str(store.path), "--keep", "0.5", "--scale-dimensions"])
    denoise.main()
    mask = credible_mask(store, 0.5, True)
    assert np.array_equal(np.load(store.path / "credible_0.5_scaled.npy"), mask)
    assert re.search(rf": {mask.sum()} of {len(mask)} rows are credible", capsys.readouterr().out)
    monkeypatch.setattr("sys.argv", ["denoise_features.py", str(store.path), "--keep", "0"])
    with pytest.raises(UserError, match="--keep must be above 0 and at most 1, got 0.0"):
        denoise.main()
    assert not list(store.path.glob(".*"))
