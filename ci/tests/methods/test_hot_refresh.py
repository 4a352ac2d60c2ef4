"""Hot-refresh against the plain formula, on two ranks, at the edges, and through a run."""

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
from torch.nn.functional import normalize

from core.errors import UserError

EXACT = {"rtol": 1e-9, "atol": 1e-11}


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / "old_features")


def plain_contrast(batch, temperature=0.01, new_to_new=True, hardest=None) -> torch.Tensor:
    new, old, labels = normalize(batch.embedding), normalize(batch.old_embedding), batch.label.tolist()
    losses = []
    for i, label in enumerate(labels):
        others = [j for j, other in enumerate(labels) if other != label]
        kinds = [[new[i] @ old[j] for j in others]]
        if new_to_new:
            kinds.append([new[i] @ new[j].detach() for j in others])
        logits = [new[i] @ old[i]]
        for kind in kinds:
            logits += sorted(kind, key=lambda cosine: -cosine.item())[:hardest]
        logits = torch.stack(logits) / temperature
        losses.append(torch.logsumexp(logits, 0) - logits[0])
    return sum(losses) / len(losses)


CASES = [
    ({}, {}),
    ({"temperature": 0.2}, {"temperature": 0.2}),
    ({"new_to_new": False, "temperature": 0.2}, {"new_to_new": False, "temperature": 0.2}),
    ({"hardest_negatives": 2, "temperature": 0.2}, {"hardest": 2, "temperature": 0.2}),
    ({"hardest_negatives": 10, "temperature": 0.2}, {"hardest": 10, "temperature": 0.2}),  # more than there are
]


@pytest.mark.parametrize("settings, plain", CASES, ids=str)
def test_terms_and_gradients_are_those_of_the_formula(store, ranks, settings, plain):
    method = make_method("hot_refresh", store, ranks, *(f"{key}={value}" for key, value in settings.items()))
    batch = make_batch(store)
    expected = {
        "cls": plain_arcface(batch.embedding, method.classifier.weight, batch.label),
        "compatible": plain_contrast(batch, **plain),
    }
    terms = method.loss(batch)
    torch.testing.assert_close(terms, expected, **EXACT)
    leaves = batch.embedding, method.classifier.weight
    for name in terms:
        actual, wanted = (gradients(each[name], *leaves) for each in (terms, expected))
        torch.testing.assert_close(actual, wanted, **EXACT)


def test_batch_of_one_class_has_no_negatives_and_no_gradient(store, ranks):
    method, batch = make_method("hot_refresh", store, ranks), make_batch(store)
    batch.label[:] = 1
    compatible = method.loss(batch)["compatible"]
    assert compatible == 0 and (gradients(compatible, batch.embedding)[0] == 0).all()


@pytest.mark.parametrize("setting", ["temperature=0", "hardest_negatives=-1"])
def test_settings_that_make_no_sense_are_refused(store, ranks, setting):
    with pytest.raises(UserError, match="must be a (whole )?number >=? 0"):
        make_method("hot_refresh", store, ranks, setting)


@pytest.mark.parametrize("hardest", [0, 2])
def test_two_ranks_are_as_one(store, ranks, tmp_path, hardest):
    settings = f"hardest_negatives={hardest}", "temperature=0.2"
    assert_same_on_two_ranks("hot_refresh", store, tmp_path, ranks, *settings)


def test_run_ends_and_resumes(tiny_records, tiny_settings, tmp_path, ranks):
    terms = assert_ends_and_resumes("hot_refresh", tiny_records, tiny_settings, tmp_path, ranks)
    assert terms == {"loss/cls", "loss/compatible"}
