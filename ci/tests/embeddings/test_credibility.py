"""NCCL's entropy rule against plain loops in float64."""

import math

import numpy as np
import pytest
import torch
from launching import load_program
from test_statistics import write_store

import core.embeddings.credibility as credibility
from core.embeddings.credibility import mask_by_distances, prepare_mask_by_distances
from core.files import ROOT
from core.parallel.ranks import Ranks

nccl = load_program(ROOT / "methods" / "nccl" / "train.py")


def plain_mask(features, labels) -> list[bool]:
    units = [row / np.linalg.norm(row) for row in np.asarray(features, np.float64)]
    num_classes = max(labels) + 1
    centres, spreads = [], []
    for label in range(num_classes):
        own = [unit for unit, other in zip(units, labels) if other == label]
        centres.append(np.mean(own, axis=0))
        spreads.append(np.var([np.linalg.norm(unit - centres[-1]) for unit in own]) + 1e-10)
    mask = []
    for unit in units:
        exponents = [-np.linalg.norm(unit - centre) / spread for centre, spread in zip(centres, spreads)]
        p = [math.exp(exponent - max(exponents)) for exponent in exponents]
        p = [value / sum(p) for value in p]
        entropy = -sum(value * math.log(value) for value in p if value > 0)
        mask.append(entropy <= math.log(num_classes) / 2)
    return mask


@pytest.fixture
def wide_store(tmp_path):
    """40 classes, some spread out so far that many rows are in doubt; class 7 has one image."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(40), np.where(np.arange(40) == 7, 1, 9)))
    features = rng.normal(size=(40, 3))[labels] + 0.1 * rng.normal(size=(len(labels), 3))
    features *= np.where(rng.random(len(labels)) < 0.3, -1, 1)[:, None]
    features *= rng.uniform(0.1, 10, (len(labels), 1))  # lengths are of no consequence
    return write_store(tmp_path / "store", features, labels)


@pytest.mark.parametrize("elements", [2**24, 100])
def test_mask_is_that_of_the_rule(wide_store, ranks, monkeypatch, elements):
    monkeypatch.setattr(credibility, "BLOCK_ELEMENTS", elements)
    expected = plain_mask(wide_store.features, wide_store.labels())
    assert 20 < sum(expected) < len(expected) - 20
    assert mask_by_distances(wide_store, nccl.highly_credible, ranks).tolist() == expected


def test_entropy_of_even_and_of_certain_probabilities():
    distances = torch.tensor([[1.0, 1, 1, 1], [0, 1e9, 1e9, 1e9]])
    entropies = nccl.spread_entropy(distances, torch.ones(4))
    torch.testing.assert_close(entropies, torch.tensor([math.log(4), 0.0]))


def test_class_of_one_image_is_credible(wide_store, ranks):
    assert mask_by_distances(wide_store, nccl.highly_credible, ranks)[wide_store.labels() == 7].all()


def test_ranks_share_the_rows_out(wide_store, ranks):
    rule = nccl.highly_credible
    shares = [mask_by_distances(wide_store, rule, Ranks(rank, 3, ranks.device)) for rank in range(3)]
    assert np.array_equal(np.concatenate(shares), mask_by_distances(wide_store, rule, ranks))


def test_mask_is_kept_beside_the_store(wide_store, ranks):
    mask = prepare_mask_by_distances(wide_store, nccl.highly_credible, "credible", ranks)
    assert mask.dtype == bool and len(mask) == len(wide_store.labels())
    np.save(wide_store.path / "credible.npy", ~mask)
    assert np.array_equal(prepare_mask_by_distances(wide_store, nccl.highly_credible, "credible", ranks), ~mask)
