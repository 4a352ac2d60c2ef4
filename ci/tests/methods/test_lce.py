"""LCE against the plain formula, on two ranks, at the edges, and through a run."""

import math

import pytest
import torch
from method_steps import (
    D,
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

WEIGHTS = ("boundary_weight=2", "align_weight=3")


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / "old_features")


def plain_centres_and_boundaries(store):
    return plain_statistics(store, lambda row, centre: torch.arccos((row @ centre / centre.norm()).clamp(max=1)))


def plain_terms(method, batch, known) -> dict[str, torch.Tensor]:
    """All terms, the centres through the method's own transformation of the whole batch's."""
    centres = torch.stack([known[c][0] if c in known else method.centre[c] for c in batch.label.tolist()])
    beyond, apart = [], []
    for n, centre, label in zip(batch.embedding, method.transformation(centres), batch.label.tolist()):
        if label in known:
            weight = method.classifier.weight[label]
            beyond.append((torch.arccos(n @ centre / n.norm() / centre.norm()) - known[label][1]).clamp(min=0))
            apart.append(1 - centre @ weight / centre.norm() / weight.norm())
    return {
        "cls": plain_arcface(batch.embedding, method.classifier.weight, batch.label),
        "boundary": sum(beyond) / len(beyond),
        "align": sum(apart) / len(apart),
    }


@pytest.mark.parametrize("blocks", [0, 2])
def test_terms_and_gradients_are_those_of_the_formula(store, ranks, blocks):
    method, batch = make_method("lce", store, ranks, f"transform_blocks={blocks}", *WEIGHTS), make_batch(store)
    expected = plain_terms(method, batch, plain_centres_and_boundaries(store))
    expected["boundary"] *= 2
    expected["align"] *= 3
    terms = method.loss(batch)
    torch.testing.assert_close(terms, expected, rtol=1e-5, atol=1e-6)  # the tables are kept in float32
    leaves = batch.embedding, *method.parameters()
    actual, wanted = (gradients(sum(each.values()), *leaves) for each in (terms, expected))
    torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5)
    assert len(leaves) == 2 + 12 * blocks and all((gradient != 0).any() for gradient in actual[:2])


def test_transformation_adds_to_the_centres_what_each_block_makes_of_them(store, ranks):
    method = make_method("lce", store, ranks, "transform_blocks=1")
    layers = [(type(m).__name__, *(p.numel() for p in m.parameters())) for m in method.transformation[0]]
    linear = [("Linear", 16 * D, 16), ("Linear", 16 * 16, 16), ("Linear", 16 * D, D)]
    norm = [("BatchNorm1d", 16, 16), ("BatchNorm1d", 16, 16), ("BatchNorm1d", D, D)]
    assert layers == [layer for pair in zip(linear, norm) for layer in (*pair, ("ReLU",))]
    x = torch.randn(5, D, dtype=torch.float64)
    y = x
    for layer in method.transformation[0]:
        y = layer(y)
    torch.testing.assert_close(method.transformation(x), x + y)


def test_classes_of_fewer_than_two_images_are_left_out(store, ranks):
    method, batch = make_method("lce", store, ranks), make_batch(store)
    assert (method.boundary >= 0).tolist() == [True, True, False, False, True, True]
    batch.label[1:] = torch.tensor([2, 3, 2, 3, 2, 3, 2])
    terms = method.loss(batch)
    expected = plain_terms(method, batch, plain_centres_and_boundaries(store))
    torch.testing.assert_close(terms, expected, rtol=1e-5, atol=1e-6)
    batch.label[0] = 2
    terms = method.loss(batch)
    assert terms["boundary"] == terms["align"] == 0
    found = gradients(terms["boundary"] + terms["align"], batch.embedding, method.classifier.weight)
    assert all((gradient == 0).all() for gradient in found)


@pytest.mark.parametrize("sign", [1, -1])
def test_embeddings_on_the_old_centre_or_opposite_have_a_finite_gradient(store, ranks, sign):
    method, batch = make_method("lce", store, ranks), make_batch(store)
    batch.label[:] = 0
    batch.embedding = (3 * sign * method.centre[batch.label]).requires_grad_()
    boundary = method.loss(batch)["boundary"]
    expected = 0 if sign == 1 else math.pi - method.boundary[0].item()
    assert math.isclose(boundary.item(), expected, abs_tol=1e-7)
    (gradient,) = gradients(boundary, batch.embedding)
    assert gradient.isfinite().all() and (sign == -1 or (gradient == 0).all())


@pytest.mark.parametrize("blocks", [0, 1])
def test_two_ranks_are_as_one(store, ranks, tmp_path, blocks):
    assert_same_on_two_ranks("lce", store, tmp_path, ranks, f"transform_blocks={blocks}", *WEIGHTS)


def test_run_ends_and_resumes(tiny_records, tiny_settings, tmp_path, ranks):
    terms = assert_ends_and_resumes("lce", tiny_records, tiny_settings, tmp_path, ranks, "transform_blocks=1")
    assert terms == {"loss/cls", "loss/boundary", "loss/align"}


def test_settings_that_make_no_sense_are_refused(store, ranks):
    assert len(make_method("lce", store, ranks).transformation) == 0
    for setting in ("transform_blocks=-1", "boundary_weight=-1", "align_weight=-1"):
        with pytest.raises(UserError, match="must be a (whole )?number >= 0"):
            make_method("lce", store, ranks, setting)
