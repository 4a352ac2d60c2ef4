"""L2 and weakened L2 against the plain formula, on two ranks, at the edges, and through a run."""

import pytest
import torch
from method_steps import (
    assert_ends_and_resumes,
    assert_same_on_two_ranks,
    gradients,
    make_batch,
    make_method,
    make_store,
    plain_arcface,
)

from core.errors import UserError


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / "old_features")


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.6])
def test_terms_and_gradients_are_those_of_the_formula(store, ranks, threshold):
    method, batch = make_method("l2", store, ranks, f"threshold={threshold}", "loss_weight=(2,3)"), make_batch(store)
    distances = [(n / n.norm() - o / o.norm()).norm() for n, o in zip(batch.embedding, batch.old_embedding)]
    expected = {
        "cls": 2 * plain_arcface(batch.embedding, method.classifier.weight, batch.label),
        "l2": 3 * sum(max(d - threshold, 0 * d) for d in distances) / len(distances),
    }
    assert 0.6 > min(distances) and max(distances) > 0.6
    terms = method.loss(batch)
    torch.testing.assert_close(terms, expected)
    leaves = batch.embedding, method.classifier.weight
    torch.testing.assert_close(gradients(sum(terms.values()), *leaves), gradients(sum(expected.values()), *leaves))


def test_released_settings_are_the_defaults(store, ranks):
    method = make_method("l2", store, ranks)
    assert method.weights == (1.0, 10.0) and method.threshold == 0.0


@pytest.mark.parametrize("threshold", [0.0, 0.2])
def test_embeddings_that_are_the_old_ones_cost_nothing_and_have_a_finite_gradient(store, ranks, threshold):
    method, batch = make_method("l2", store, ranks, f"threshold={threshold}"), make_batch(store)
    batch.embedding = batch.old_embedding.clone().requires_grad_()
    l2 = method.loss(batch)["l2"]
    (gradient,) = gradients(l2, batch.embedding)
    assert l2 == 0 and (gradient == 0).all()


def test_two_ranks_are_as_one(store, ranks, tmp_path):
    assert_same_on_two_ranks("l2", store, tmp_path, ranks, "threshold=0.2")


def test_run_ends_and_resumes(tiny_records, tiny_settings, tmp_path, ranks):
    assert assert_ends_and_resumes("l2", tiny_records, tiny_settings, tmp_path, ranks) == {"loss/cls", "loss/l2"}


@pytest.mark.parametrize("setting", ["threshold=-1.0", "loss_weight=(1,)", "loss_weight=(1,-10)"])
def test_settings_that_make_no_sense_are_refused(store, ranks, setting):
    with pytest.raises(UserError, match="must be a (list of 2 numbers|number) >= 0"):
        make_method("l2", store, ranks, setting)
