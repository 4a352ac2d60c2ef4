import math

import pytest
import torch

from core.heads.margins import ArcFace, CosFace, Softmax

MARGINS = [ArcFace(), CosFace(), Softmax()]


def test_arcface_gives_hand_worked_numbers():
    # theta = 60, 90 and 180 degrees, m = 30 degrees: cos 90 = 0, cos 120 = -1/2, cos 210 = -sqrt(3)/2 (past pi).
    cosines = torch.tensor([[0.5, 0.1], [0.2, 0.0], [-1.0, 0.3]])
    logits = ArcFace(s=10.0, m=math.pi / 6)(cosines, torch.tensor([0, 1, 0]))
    expected = torch.tensor([[0.0, 1.0], [2.0, -5.0], [-5 * math.sqrt(3), 3.0]])
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


def test_cosface_gives_hand_worked_numbers():
    logits = CosFace(s=10.0, m=0.25)(torch.tensor([[0.5, 0.1], [0.2, 0.0]]), torch.tensor([0, 1]))
    torch.testing.assert_close(logits, torch.tensor([[2.5, 1.0], [2.0, -2.5]]))


def test_softmax_leaves_the_products_as_they_are():
    products = torch.randn(3, 4) * 7
    assert torch.equal(Softmax()(products, torch.tensor([0, 3, -1])), products)


def test_defaults_are_those_of_the_papers_and_only_softmax_is_not_normalized():
    assert (ArcFace().s, ArcFace().m) == (64.0, 0.5)
    assert (CosFace().s, CosFace().m) == (64.0, 0.4)
    assert [margin.normalized for margin in MARGINS] == [True, True, False]


@pytest.mark.parametrize("margin", MARGINS, ids=str)
def test_rows_without_label_are_only_scaled_and_inputs_stay(margin):
    cosines, labels = torch.rand(3, 4) * 2 - 1, torch.tensor([-1, 2, -1])
    kept = cosines.clone(), labels.clone()
    logits = margin(cosines, labels)
    assert torch.equal(cosines, kept[0])
    assert torch.equal(labels, kept[1])
    changed = (logits != margin.s * cosines).nonzero().tolist()
    assert changed == ([[1, 2]] if margin.normalized else [])


@pytest.mark.parametrize("margin", MARGINS, ids=str)
def test_gradients_are_finite_at_cosines_of_one_and_beyond(margin):
    values = [1.0, -1.0, 1.0 + 2e-7, -1.0 - 2e-7, 1.0 - 6e-8, 0.0]
    cosines = torch.tensor(values).unsqueeze(1).repeat(1, 2).requires_grad_()
    logits = margin(cosines, torch.zeros(len(values), dtype=torch.int64))
    logits.sum().backward()
    assert logits.isfinite().all()
    assert cosines.grad.isfinite().all()


@pytest.mark.parametrize("margin", MARGINS, ids=str)
def test_gradients_are_the_true_derivatives(margin):
    torch.manual_seed(0)
    cosines = (torch.rand(4, 3, dtype=torch.float64) * 1.8 - 0.9).requires_grad_()
    assert torch.autograd.gradcheck(lambda c: margin(c, torch.tensor([0, 2, -1, 1])), cosines)


@pytest.mark.parametrize("margin", MARGINS, ids=str)
def test_a_rank_without_classes_gets_logits_without_columns(margin):
    assert margin(torch.empty(3, 0), torch.tensor([-1, -1, -1])).shape == (3, 0)


def test_arcface_agrees_with_the_arc_cosine_over_the_whole_range():
    cosines = torch.linspace(-1, 1, 2001, dtype=torch.float64).unsqueeze(1)
    logits = ArcFace()(cosines, torch.zeros(2001, dtype=torch.int64))
    # The sine is held at 1e-6, which s sin(m) = 31 turns into 3e-5 at the ends.
    torch.testing.assert_close(logits, 64 * torch.cos(torch.arccos(cosines) + 0.5), atol=4e-5, rtol=0)
