"""BCT against the plain formula, on two ranks, at the edges, and through a run."""

import numpy as np
import pytest
import torch
from method_steps import (
    LABELS,
    D,
    assert_ends_and_resumes,
    assert_same_on_two_ranks,
    gradients,
    make_batch,
    make_method,
    make_store,
    plain_arcface,
)

from core.embeddings.statistics import class_means, prepare_class_means
from core.errors import UserError
from core.heads.frozen_classifier import FrozenClassifier
from core.heads.margins import CosFace


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / "old_features")


def plain_prototypes(store) -> dict[int, torch.Tensor]:
    """Normalised mean of each class's old features as they are stored, by class."""
    features = torch.from_numpy(np.array(store.features)).double()
    prototypes = {}
    for label in sorted(set(LABELS.tolist())):
        own = [feature for feature, other in zip(features, LABELS) if other == label]
        prototypes[label] = sum(own) / len(own) / (sum(own) / len(own)).norm()
    return prototypes


def plain_bct(new, labels, prototypes, scale) -> torch.Tensor:
    losses = []
    for n, label in zip(new, labels.tolist()):
        logits = {c: scale * (n @ p) / n.norm() for c, p in prototypes.items()}
        losses.append(torch.logsumexp(torch.stack(list(logits.values())), 0) - logits[label])
    return sum(losses) / len(losses)


@pytest.mark.parametrize("scale", [1, 32])
def test_terms_and_gradients_are_those_of_the_formula(store, ranks, scale):
    method, batch = make_method("bct", store, ranks, f"compat_scale={scale}"), make_batch(store)
    expected = {
        "cls": plain_arcface(batch.embedding, method.classifier.weight, batch.label),
        "bct": plain_bct(batch.embedding, batch.label, plain_prototypes(store), scale),
    }
    terms = method.loss(batch)
    # The prototypes are kept in float32.
    torch.testing.assert_close(terms, expected, rtol=1e-6, atol=0)
    leaves = batch.embedding, method.classifier.weight
    actual, wanted = (gradients(sum(each.values()), *leaves) for each in (method.loss(batch), expected))
    torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-7)


def test_old_classifier_has_no_class_without_old_features_and_leaves_its_samples_out(store, ranks):
    method, batch = make_method("bct", store, ranks), make_batch(store)
    assert len(method.old_classifier.weight) == 5
    assert method.old_class.tolist() == [0, 1, 2, -1, 3, 4]
    batch.label[2:] = 3
    expected = plain_bct(batch.embedding[:2], batch.label[:2], plain_prototypes(store), 1.0)
    torch.testing.assert_close(method.loss(batch)["bct"], expected, rtol=1e-6, atol=0)
    batch.label[:] = 3
    bct = method.loss(batch)["bct"]
    assert bct == 0 and (gradients(bct, batch.embedding)[0] == 0).all()


def test_old_classifier_is_never_trained(store, ranks):
    method = make_method("bct", store, ranks)
    assert {name for name, p in method.named_parameters() if p.requires_grad} == {"classifier.weight"}


def test_no_classifier_keeps_logits_where_the_settings_say_so(store, ranks):
    method = make_method("bct", store, ranks, "recompute_logits=True")
    assert method.classifier.recompute_logits and method.old_classifier.recompute_logits


def test_released_scale_is_the_default_and_another_is_refused_if_it_makes_no_sense(store, ranks):
    assert make_method("bct", store, ranks).old_classifier.margin.s == 1.0
    with pytest.raises(UserError, match="'compat_scale' in the command line must be a number > 0"):
        make_method("bct", store, ranks, "compat_scale=0")


def test_two_ranks_are_as_one(store, ranks, tmp_path):
    assert_same_on_two_ranks("bct", store, tmp_path, ranks, "compat_scale=32")


def test_run_ends_and_resumes(tiny_records, tiny_settings, tmp_path, ranks):
    assert assert_ends_and_resumes("bct", tiny_records, tiny_settings, tmp_path, ranks) == {"loss/cls", "loss/bct"}


def test_prototypes_can_be_replaced(ranks):
    first, second = np.random.default_rng(0).normal(size=(2, 4, D))
    head = FrozenClassifier(CosFace(2.0, 0.0), first).double()
    head.replace(second)
    embeddings, labels = torch.randn(3, D, dtype=torch.float64), torch.tensor([0, 3, 1])
    unit = {c: torch.from_numpy(row / np.linalg.norm(row)) for c, row in enumerate(second)}
    torch.testing.assert_close(head(embeddings, labels), plain_bct(embeddings, labels, unit, 2.0))


def test_prepared_means_are_those_of_the_features_as_stored_or_normalised_and_kept(store, ranks):
    raw, unit = prepare_class_means(store, ranks, normalized=False), prepare_class_means(store, ranks)
    features = np.asarray(store.features, np.float64)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    for means, rows in ((raw, features), (unit, features / lengths)):
        expected = [rows[label == LABELS].mean(0) if label in LABELS else np.zeros(D) for label in range(6)]
        np.testing.assert_allclose(means, expected, rtol=1e-6, atol=1e-7)
        assert means.dtype == np.float32
    np.testing.assert_allclose(class_means(store)[0], unit, atol=1e-7)
    np.save(store.path / "class_means.npy", np.zeros((6, D), np.float32))
    assert not prepare_class_means(store, ranks).any()
