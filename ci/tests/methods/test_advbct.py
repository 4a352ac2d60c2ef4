"""AdvBCT against the plain formula, on two ranks, at the edges, and through a run."""

import math

import pytest
import torch
from launching import load_program
from method_steps import (
    assert_ends_and_resumes,
    assert_same_on_two_ranks,
    gradients,
    make_batch,
    make_method,
    make_store,
    plain_arcface,
    plain_statistics,
)

from core.errors import UserError
from core.files import ROOT

SETTINGS = ("num_epoch=5", "p2s_weight=3", "adv_weight=2", "threshold=0.3")


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / "old_features")


def plain_centres_and_radii(store):
    return plain_statistics(store, lambda row, centre: (row - centre).norm())


def plain_p2s(method, batch, known, theta) -> torch.Tensor:
    violations = []
    for n, label in zip(batch.embedding, batch.label.tolist()):
        if label in known:
            centre, radius = known[label]
            change = abs(radius - theta) * torch.sigmoid(method.elastic[label])
            elastic = radius + change if radius < theta else radius - change
            distance = (n / n.norm() - centre).norm()
            if distance > elastic:
                violations.append(distance - elastic)
    return sum(violations) / len(violations)


def plain_adversarial(method, new, old) -> torch.Tensor:
    """The discriminator by hand, with the statistics of each half-batch of its own."""
    first, norm, _, last = method.discriminator
    loss = 0
    for kind, embeddings in enumerate((new, old)):
        x = torch.stack([e / e.norm() for e in embeddings]) @ first.weight.T + first.bias
        x = (x - x.mean(0)) / (x.var(0, unbiased=False) + norm.eps).sqrt() * norm.weight + norm.bias
        x = x.clamp(min=0) @ last.weight.T + last.bias
        loss = loss - (x[:, kind] - x.exp().sum(1).log()).mean()
    return loss


def test_terms_and_gradients_are_those_of_the_formula(store, ranks):
    method, batch = make_method("advbct", store, ranks, *SETTINGS), make_batch(store, epoch=3, progress=0.2)
    known = plain_centres_and_radii(store)
    radii = [radius for _, radius in known.values()]
    assert min(radii) < 0.3 < max(radii)
    adversarial = 2 * (5 - 3 + 1) / 5 * plain_adversarial(method, batch.embedding, batch.old_embedding)
    expected = {
        "cls": plain_arcface(batch.embedding, method.classifier.weight, batch.label),
        "p2s": 3 * plain_p2s(method, batch, known, 0.3),
        "adv": adversarial,
    }
    terms = method.loss(batch)
    torch.testing.assert_close(terms, expected, rtol=1e-6, atol=1e-7)  # the tables are kept in float32
    actual = gradients(sum(terms.values()), batch.embedding, *method.parameters())
    wanted = gradients(sum(expected.values()), batch.embedding, *method.parameters())
    torch.testing.assert_close(actual[1:], wanted[1:], rtol=1e-5, atol=1e-6)
    # The backbone's gradient of the discriminator's loss is reversed, with the strength of this moment.
    (of_adversarial,) = gradients(adversarial, batch.embedding)
    strength = 2 / (1 + math.exp(-10 * 0.2)) - 1
    torch.testing.assert_close(actual[0], wanted[0] - (1 + strength) * of_adversarial, rtol=1e-5, atol=1e-6)


def test_released_settings_are_the_defaults(store, ranks):
    method = make_method("advbct", store, ranks)
    assert (method.threshold, method.p2s_weight, method.adv_weight) == (0.4, 4.0, 4.0)
    assert method.elastic.abs().max() <= 1 and method.elastic.std() > 0.2


def test_reversal_grows_from_nothing(store, ranks):
    method = make_method("advbct", store, ranks)
    steps = [gradients(method.loss(batch)["adv"], batch.embedding)[0] for batch in (
        make_batch(store, progress=progress) for progress in (0.0, 0.1, 0.9))]  # fmt: skip
    assert (steps[0] == 0).all() and 0 < steps[1].norm() < steps[2].norm()


def test_classes_of_fewer_than_two_images_are_left_out(store, ranks):
    method, batch = make_method("advbct", store, ranks, "threshold=0"), make_batch(store)
    assert (method.radius >= 0).tolist() == [True, True, False, False, True, True]
    batch.label[1:] = torch.tensor([2, 3, 2, 3, 2, 3, 2])
    expected = 4 * plain_p2s(method, batch, plain_centres_and_radii(store), 0.0)
    torch.testing.assert_close(method.loss(batch)["p2s"], expected, rtol=1e-6, atol=1e-7)
    batch.label[0] = 2
    p2s = method.loss(batch)["p2s"]
    assert p2s == 0
    assert all((gradient == 0).all() for gradient in gradients(p2s, batch.embedding, method.elastic))


def test_samples_within_their_radius_do_not_count_in_the_mean():
    advbct = load_program(ROOT / "methods" / "advbct" / "train.py")
    new, radii = torch.eye(3), torch.tensor([1.0, 5.0, 1.0])
    loss = advbct.point_to_set_loss(new, -new, radii, torch.tensor([True, True, False]))
    assert loss == 1  # of a distance of 2 and a radius of 1; the second is within, the third is not known


def test_batch_within_the_radii_has_no_loss_and_no_gradient(store, ranks):
    method, batch = make_method("advbct", store, ranks, "threshold=5"), make_batch(store)
    with torch.no_grad():
        method.elastic.fill_(20)
    p2s = method.loss(batch)["p2s"]
    assert p2s == 0
    assert all((gradient == 0).all() for gradient in gradients(p2s, batch.embedding, method.elastic))


def test_embedding_on_the_old_centre_has_a_finite_gradient(store, ranks):
    method, batch = make_method("advbct", store, ranks, "threshold=0"), make_batch(store)
    method.centre = torch.nn.functional.normalize(method.centre)
    batch.embedding = method.centre[batch.label].clone().requires_grad_()
    assert gradients(sum(method.loss(batch).values()), batch.embedding)[0].isfinite().all()


def test_two_ranks_are_as_one(store, ranks, tmp_path):
    assert_same_on_two_ranks("advbct", store, tmp_path, ranks, *SETTINGS)


def test_two_ranks_are_as_one_where_only_one_of_them_has_violations(store, ranks, tmp_path):
    method, batch = make_method("advbct", store, ranks, "threshold=2.5"), make_batch(store)
    (gradient,) = gradients(method.loss(batch)["p2s"], batch.embedding)
    assert [(part != 0).any().item() for part in gradient.chunk(2)] == [True, False]
    assert_same_on_two_ranks("advbct", store, tmp_path, ranks, "threshold=2.5")


def test_run_ends_and_resumes(tiny_records, tiny_settings, tmp_path, ranks):
    terms = assert_ends_and_resumes("advbct", tiny_records, tiny_settings, tmp_path, ranks)
    assert terms == {"loss/cls", "loss/p2s", "loss/adv"}


@pytest.mark.parametrize("setting", ["threshold=-0.1", "p2s_weight=-1", "adv_weight=-1"])
def test_settings_that_make_no_sense_are_refused(store, ranks, setting):
    with pytest.raises(UserError, match="must be a number >= 0"):
        make_method("advbct", store, ranks, setting)
