"""NCCL against the plain formula with a list for a queue and whole logit vectors, on two ranks, at the edges."""

import math

import numpy as np
import pytest
import torch
from method_steps import (
    LABELS,
    NUM_CLASSES,
    ROWS,
    D,
    assert_ends_and_resumes,
    assert_same_on_two_ranks,
    gradients,
    make_batch,
    make_method,
    make_store,
    plain_arcface,
)
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from core.errors import UserError
from core.heads import PartialFC
from core.heads.margins import ArcFace

EXACT = {"rtol": 1e-9, "atol": 1e-11}


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / "old_features")


def plain_contrast(similarities, weights) -> torch.Tensor:
    """One anchor's term: similarities to the queue's entries, and {place: w_ij} of its positives."""
    if not weights:
        return 0 * similarities[0]
    log_p = [similarity - torch.logsumexp(torch.stack(similarities), 0) for similarity in similarities]
    return -sum(weight * log_p[place] for place, weight in weights.items()) / len(weights)


def plain_terms(batch, queue, head, tau=1.0, alpha=1.0, beta=0.01) -> dict[str, torch.Tensor]:
    """`queue` is a list of (normalised old embedding, label). Old logits are constants, as the queue's entries are."""
    head = normalize(head)
    by_embedding, by_logit = [], []
    for new, old, label in zip(normalize(batch.embedding), normalize(batch.old_embedding), batch.label.tolist()):
        weights = {j: (1 + old @ o) / 2 for j, (o, other) in enumerate(queue) if other == label}
        by_embedding.append(plain_contrast([new @ o / tau for o, _ in queue], weights))
        new_logits = torch.stack([new @ w for w in head])
        old_logits = [torch.stack([o @ w for w in head.detach()]) for o, _ in queue]
        by_logit.append(plain_contrast([new_logits @ logits / tau for logits in old_logits], weights))
    cls = plain_arcface(batch.embedding, head, batch.label)
    return {"cls": cls, "embedding": alpha * sum(by_embedding) / len(ROWS), "logit": beta * sum(by_logit) / len(ROWS)}


def pushed(batch) -> list:
    return list(zip(normalize(batch.old_embedding), batch.label.tolist()))


def assert_as_formula(method, batch, queue, **settings):
    expected, terms = plain_terms(batch, queue, method.classifier.weight, **settings), method.loss(batch)
    torch.testing.assert_close(terms, expected, **EXACT)
    leaves = batch.embedding, method.classifier.weight
    for name in terms:
        actual, wanted = (gradients(each[name], *leaves) for each in (terms, expected))
        torch.testing.assert_close(actual, wanted, **EXACT)


def other_rows(method, seed: int):
    """A batch of other images, with other embeddings."""
    batch = make_batch(method.store)
    rng = np.random.default_rng(seed)
    batch.embedding = torch.from_numpy(rng.normal(size=(len(ROWS), D))).requires_grad_()
    batch.old_embedding = torch.from_numpy(rng.normal(size=(len(ROWS), D)))
    batch.label = torch.from_numpy(rng.integers(NUM_CLASSES, size=len(ROWS)))
    return batch


@pytest.fixture
def method(store, ranks):
    """With a queue of 20 entries: three batches of 8 wrap it. The head's rows have a direction of their own."""
    made = make_method(
        "nccl", store, ranks, "batch_size=8", "queue_size=20", "temperature=0.5", "alpha=0.7", "beta=0.3"
    )
    made.store = store
    torch.nn.init.normal_(made.classifier.weight)
    return made


def test_terms_and_gradients_are_those_of_the_formula_before_and_after_the_queue_is_full(method):
    queue = []
    for step in range(5):
        batch = other_rows(method, step)
        queue = (queue + pushed(batch))[-20:]
        assert_as_formula(method, batch, queue, tau=0.5, alpha=0.7, beta=0.3)


def test_first_batch_meets_a_queue_of_its_own_and_an_image_alone_in_its_class_has_itself(store, ranks):
    method, batch = make_method("nccl", store, ranks), make_batch(store)
    assert (method.temperature, method.alpha, method.beta, len(method.queue.label)) == (1.0, 1.0, 0.01, 8192)
    assert (batch.label == 2).sum() == 1
    assert_as_formula(method, batch, pushed(batch))


def test_gradient_reaches_the_head_through_the_new_logits(method):
    terms = method.loss(make_batch(method.store))
    assert gradients(terms["logit"], method.classifier.weight)[0].abs().max() > 1e-4
    assert (gradients(terms["embedding"], method.classifier.weight)[0] == 0).all()


def credible_method(store, ranks, mask):
    np.save(store.path / "credible_entropy.npy", mask)
    return make_method("nccl", store, ranks, "batch_size=8", "queue_size=20", "credible_only=True")


def test_rows_in_doubt_are_neither_anchors_nor_in_the_queue(store, ranks):
    mask = np.ones(len(LABELS), bool)
    mask[ROWS[[0, 2, 5]]] = False
    method, batch = credible_method(store, ranks, mask), make_batch(store)
    kept = torch.from_numpy(mask[ROWS])
    queue = [entry for entry, keep in zip(pushed(batch), kept) if keep]
    terms = method.loss(batch)
    batch.label = torch.where(kept, batch.label, 99)  # an anchor of a class that the queue does not have
    expected = plain_terms(make_batch(store), queue, method.classifier.weight)["cls"]
    torch.testing.assert_close(terms["cls"], expected, **EXACT)
    weights = normalize(method.classifier.weight)
    new, old, total = normalize(batch.embedding), normalize(batch.old_embedding), 0
    for n, o, label in zip(new, old, batch.label.tolist()):
        own = {j: (1 + o @ entry) / 2 for j, (entry, other) in enumerate(queue) if other == label}
        total = total + plain_contrast([(weights @ n) @ (weights @ entry) for entry, _ in queue], own)
    torch.testing.assert_close(terms["logit"], 0.01 * total / len(ROWS), **EXACT)


def test_batch_without_credible_rows_has_the_classification_alone(store, ranks):
    method, batch = credible_method(store, ranks, np.zeros(len(LABELS), bool)), make_batch(store)
    terms = method.loss(batch)
    assert terms["embedding"] == 0 and terms["logit"] == 0 and terms["cls"] > 0
    for gradient in gradients(terms["embedding"] + terms["logit"], batch.embedding, method.classifier.weight):
        assert (gradient == 0).all()


class Shapes(TorchDispatchMode):
    """Notes the shape of every tensor that is made."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        tensors = results if isinstance(results, tuple | list) else [results]
        self.seen |= {tuple(tensor.shape) for tensor in tensors if isinstance(tensor, torch.Tensor)}
        return results


def test_memory_of_a_step_does_not_grow_with_queue_times_classes(store, ranks):
    method, batch = make_method("nccl", store, ranks, "queue_size=500"), make_batch(store)
    method.classifier = PartialFC(ArcFace(), D, 300).double()
    with Shapes() as shapes:
        sum(method.loss(batch).values()).backward()
    assert (500, D) in shapes.seen and (300, D) in shapes.seen
    assert max(math.prod(shape) for shape in shapes.seen) == max(500 * len(ROWS), 300 * len(ROWS))


def test_settings_that_make_no_sense_are_refused(store, ranks):
    with pytest.raises(UserError, match="queue_size is 127, but a batch of all ranks has 128"):
        make_method("nccl", store, ranks, "queue_size=127")
    with pytest.raises(UserError, match="'temperature' in the command line must be a number > 0"):
        make_method("nccl", store, ranks, "temperature=0")


@pytest.mark.parametrize("credible", [False, True])
def test_two_ranks_are_as_one(store, ranks, tmp_path, credible):
    overrides = ["queue_size=12", "batch_size=4", "temperature=0.5", "beta=0.3", f"credible_only={credible}"]
    assert_same_on_two_ranks("nccl", store, tmp_path, ranks, *overrides)


def test_run_ends_and_resumes(tiny_records, tiny_settings, tmp_path, ranks):
    terms = assert_ends_and_resumes("nccl", tiny_records, tiny_settings, tmp_path, ranks, "queue_size=40")
    assert terms == {"loss/cls", "loss/embedding", "loss/logit"}
