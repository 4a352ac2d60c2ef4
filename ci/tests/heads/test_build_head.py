"""The head that the settings ask for, and one that is frozen."""

import pytest
import torch
from limited_child import limited
from plain_softmax import D, make_head

from core.errors import UserError
from core.heads import build_head, build_margin
from core.heads.frozen_classifier import FrozenClassifier
from core.heads.margins import ArcFace, CosFace, Softmax
from core.settings import Settings


def settings(**values) -> Settings:
    return Settings(**{"margin_scale": 30.0, "margin": 0.3, "embedding_size": D} | values)


@pytest.mark.parametrize(
    "loss, margin", [("arcface", ArcFace(30.0, 0.3)), ("cosface", CosFace(30.0, 0.3)), ("softmax", Softmax())]
)
@pytest.mark.parametrize("bias", [True, False])
def test_head_has_the_margin_the_scale_and_the_bias_of_the_settings(loss, margin, bias):
    head = build_head(settings(loss=loss, classifier_bias=bias, sample_rate=0.5), 7)
    assert head.margin == margin and head.weight.shape == (7, D) and head.sample_rate == 0.5
    assert (head.bias is not None) == (loss == "softmax" and bias)


def test_conflicting_classes_are_filtered_where_the_settings_say_so():
    assert build_head(settings(interclass_filtering_threshold=0.4), 7).interclass_filtering_threshold == 0.4
    assert build_head(settings(), 7).interclass_filtering_threshold is None


def test_logits_are_kept_unless_the_settings_say_otherwise():
    assert build_head(settings(recompute_logits=True), 7).recompute_logits
    assert not build_head(settings(), 7).recompute_logits


def test_default_is_arcface_as_released_for_faces():
    assert build_head(Settings(), 7).margin == ArcFace(64.0, 0.5)


def test_unknown_loss_and_scale_of_zero_are_refused():
    with pytest.raises(UserError, match="unknown loss 'triplet': choose 'arcface', 'cosface' or 'softmax'"):
        build_margin("triplet", 30.0, 0.3)
    with pytest.raises(UserError, match="margin_scale must be above 0, got 0.0: arcface"):
        build_head(settings(margin_scale=0.0), 7)


def test_frozen_classifier_is_the_head_that_it_was_taken_from():
    head = make_head("softmax", 10, torch.float32)
    frozen = FrozenClassifier(Softmax(), **{name: tensor.numpy() for name, tensor in head.whole().items()})
    embeddings, labels = torch.randn(4, D), torch.tensor([9, 0, -1, 3])
    assert torch.equal(frozen(embeddings, labels), head(embeddings, labels))
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


@pytest.mark.parametrize(
    ("changed", "copies", "columns"),
    [
        ({}, 3, 10_000_000),
        ({"momentum": 0.0}, 2, 10_000_000),
        ({"optimizer": "adamw"}, 4, 10_000_000),
        ({"loss": "softmax"}, 3, 10_000_000),
        ({"sample_rate": 0.5}, 2.5, 5_000_000),
        ({"sample_rate": 0.5, "sampled_epochs": 1}, 3, 10_000_000),
        ({"recompute_logits": True}, 3, 4096),
        ({"recompute_logits": True, "sample_rate": 0.0001, "batch_size": 7}, 2.0001, 1000),
    ],
)
def test_head_beyond_the_memory_is_refused_with_its_bytes_before_it_is_allocated(monkeypatch, changed, copies, columns):
    batch = changed.get("batch_size", 128)
    needed = round(10_000_000 * 512 * 4 * copies) + batch * columns * 4
    monkeypatch.setattr("core.heads.build.machine_memory", lambda: needed - 1)
    with (
        limited(500),
        pytest.raises(UserError, match=f"10,000,000 classes .* takes {needed:,} bytes .* {needed - 1:,}"),
    ):
        build_head(settings(embedding_size=512, device="cpu", **changed), 10_000_000)
    monkeypatch.setattr("core.heads.build.machine_memory", lambda: needed)
    monkeypatch.setattr("core.heads.build.PartialFC", lambda *arguments, **more: "built")
    assert build_head(settings(embedding_size=512, device="cpu", **changed), 10_000_000) == "built"


def test_computing_logits_again_is_advised_where_it_makes_the_head_fit(monkeypatch):
    weights, block = 3 * 10_000_000 * 512 * 4, 128 * 4096 * 4
    for room, changed, advised in (
        (weights + block, {}, True),
        (weights + block - 1, {}, False),
        (weights, {"recompute_logits": True}, False),
    ):
        monkeypatch.setattr("core.heads.build.machine_memory", lambda room=room: room)
        with pytest.raises(UserError) as caught:
            build_head(settings(embedding_size=512, device="cpu", **changed), 10_000_000)
        assert ("set recompute_logits=True, number the classes" in str(caught.value)) == advised


def test_head_of_a_billion_classes_has_no_room_on_this_machine():
    with limited(500), pytest.raises(UserError, match="takes 6,656,000,000,000 bytes"):
        build_head(settings(embedding_size=512, device="cpu"), 1_000_000_000)


def test_ranks_of_a_machine_share_its_memory(monkeypatch):
    of_a_rank = 4 * (3 * 4 * D + 2 * 128 * 4)  # 4 of the classes, and the logits of both ranks' images with them
    monkeypatch.setattr("core.heads.build.machine_memory", lambda: 2 * of_a_rank - 1)
    monkeypatch.setattr("core.heads.build.world_size", lambda: 2)
    build_head(settings(device="cpu"), 7)  # another machine has the other rank
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match="bytes"):
        build_head(settings(device="cpu"), 7)
