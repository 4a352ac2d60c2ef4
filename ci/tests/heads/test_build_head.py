"""The head that a config asks for, and one that is frozen."""

import pytest
import torch
from easydict import EasyDict
from plain_softmax import D, make_head

from core.errors import UserError
from core.files import ROOT
from core.heads import build_head
from core.heads.frozen_classifier import FrozenClassifier
from core.heads.margins import ArcFace, CosFace, Softmax
from core.settings import load_config


def config(**values):
    return EasyDict({"loss": "arcface", "margin_scale": 30.0, "margin": 0.3, "classifier_bias": True,
                     "embedding_size": D, "sample_rate": 1.0} | values)  # fmt: skip


@pytest.mark.parametrize(
    "loss, margin", [("arcface", ArcFace(30.0, 0.3)), ("cosface", CosFace(30.0, 0.3)), ("softmax", Softmax())]
)
@pytest.mark.parametrize("bias", [True, False])
def test_head_has_the_margin_the_scale_and_the_bias_of_the_config(loss, margin, bias):
    head = build_head(config(loss=loss, classifier_bias=bias, sample_rate=0.5), 7)
    assert head.margin == margin and head.weight.shape == (7, D) and head.sample_rate == 0.5
    assert (head.bias is not None) == (loss == "softmax" and bias)


def test_default_is_arcface_as_released_for_faces():
    base = ROOT / "configs" / "base.py"
    assert build_head(load_config(base), 3).margin == ArcFace(64.0, 0.5)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"loss": "triplet"}, "unknown loss 'triplet': choose 'arcface', 'cosface' or 'softmax'"),
        ({"margin_scale": 0.0}, "margin_scale must be above 0, got 0.0: arcface"),
    ],
)
def test_loss_that_makes_no_sense_is_told(values, message):
    with pytest.raises(UserError, match=message):
        build_head(config(**values), 7)


def test_frozen_classifier_is_the_head_that_it_was_taken_from():
    head = make_head("softmax", 10, torch.float32)
    frozen = FrozenClassifier(Softmax(), **{name: tensor.numpy() for name, tensor in head.whole().items()})
    embeddings, labels = torch.randn(4, D), torch.tensor([9, 0, -1, 3])
    assert torch.equal(frozen(embeddings, labels), head(embeddings, labels))
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
