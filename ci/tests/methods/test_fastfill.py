"""FastFill: loss, log variances and the new model's classifier are those of the formula."""

import json

import numpy as np
import pytest
import torch
from map_steps import LABELS, NUM_CLASSES, make_batch, make_fitting, set_up, unit

from core.errors import UserError
from core.models.maps import load_map

ROWS = np.array([0, 5, 1, 6, 2, 9, 19, 3])
LOSSES = {"softmax": (64, 0.5), "arcface": (16, 0.5), "cosface": (12, 0.3)}


def write_classifier(folder, loss: str, size: int, num_classes: int = NUM_CLASSES, bias: bool = False) -> dict:
    """The classifier and config of the new model's run folder."""
    rng = np.random.default_rng(9)
    tensors = {"weight": torch.from_numpy(rng.normal(size=(num_classes, size)).astype(np.float32))}
    if bias:
        tensors["bias"] = torch.from_numpy(rng.normal(size=num_classes).astype(np.float32))
    torch.save(tensors, folder / "classifier.pt")
    scale, margin = LOSSES[loss]
    config = {"network": "r18", "embedding_size": size, "image_size": 16, "loss": loss, "margin_scale": scale}
    (folder / "config.json").write_text(json.dumps({**config, "margin": margin}))
    return {name: tensor.numpy().astype(np.float64) for name, tensor in tensors.items()}


def plain_class_loss(logits: np.ndarray, label: int, smoothing: float) -> float:
    """Cross-entropy with a smoothed label: (1 - e) of it on the label, e on all classes alike."""
    target = np.full(len(logits), smoothing / len(logits))
    target[label] += 1 - smoothing
    return float(-(target * (logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max())).sum())


@pytest.mark.parametrize(
    ("loss", "bias", "sizes"),
    [
        ("softmax", True, (6, 10)),
        ("softmax", False, (6, 10, 3)),
        ("arcface", False, (10, 6)),
        ("cosface", False, (6, 6)),
    ],
)
def test_loss_is_that_of_the_formula(loss, bias, sizes, tmp_path, ranks):
    weights = "disc_weight=0.7", "label_smoothing=0.2", "uncertainty_weight=0.3"
    method, run = make_fitting("fastfill", tmp_path, ranks, sizes, "hidden=7", "num_epoch=2", *weights)
    classifier = write_classifier(run.new.path, loss, sizes[1], bias=bias)
    method.check(run)
    set_up(method, run)
    method.start_epoch(1)
    batch = make_batch(run, ROWS)
    with torch.no_grad():
        mapped, log_variance = (part.numpy().astype(np.float64) for part in method.network.with_log_error(batch.old))
        terms = method.loss(batch)
    weight = classifier["weight"]
    lengths = np.linalg.norm(np.asarray(run.new.features.features, np.float64), axis=1)
    new, weighted = unit(run.new.features[ROWS]), []
    for h, s, n, label in zip(mapped, log_variance, new, LABELS[ROWS]):
        if loss == "softmax":
            logits = weight @ (h * lengths.mean()) + classifier.get("bias", 0)
        else:
            logits = LOSSES[loss][0] * unit(weight) @ (h / np.linalg.norm(h))
        error = ((n - h) ** 2).sum() + 0.7 * plain_class_loss(logits, label, 0.2)
        weighted.append(0.5 * np.exp(-s) * error)
    assert terms.keys() == {"weighted", "log_variance"}
    np.testing.assert_allclose(terms["weighted"], np.mean(weighted), rtol=1e-5)
    np.testing.assert_allclose(terms["log_variance"], 0.3 * log_variance.mean(), rtol=1e-5)


def test_log_variance_is_linear_in_the_mapped_vector_and_kept_by_the_run_folder(tmp_path, ranks):
    overrides = "hidden=16", "num_epoch=3", "warmup_epoch=1", "pairs_per_step=8", "device=cpu"
    method, run = make_fitting("fastfill", tmp_path, ranks, (6, 10), *overrides)
    write_classifier(run.new.path, "arcface", 10)
    (fitted,) = method.fit(run).values()
    fitted.map.save(tmp_path / "map")
    loaded = load_map(tmp_path / "map")
    sources = run.unit_sources(np.arange(len(LABELS)))
    mapped, head = loaded(sources, normalized=False), loaded.module.log_variance
    log_variance = mapped * np.sqrt(10) @ head.weight.numpy()[0] + head.bias.numpy()
    np.testing.assert_allclose(loaded.predicted_error(sources), np.exp(log_variance), rtol=1e-4)
    assert loaded.kind == "fastfill" and loaded.error_head is None
    assert not any(name in ("weight", "bias") for name in torch.load(tmp_path / "map" / "map.pt", weights_only=True))


def test_classifier_is_not_trained_nor_kept(tmp_path, ranks):
    method, run = make_fitting("fastfill", tmp_path, ranks, (6, 10), "hidden=7")
    write_classifier(run.new.path, "softmax", 10, bias=True)
    set_up(method, run)
    assert {"weight", "bias"}.isdisjoint(dict(method.named_parameters())) and "weight" not in method.state_dict()


def test_missing_or_foreign_classifiers_and_labels_without_class_are_refused(tmp_path, ranks):
    method, run = make_fitting("fastfill", tmp_path, ranks, (6, 10))
    with pytest.raises(UserError, match=r"^the new model has no classifier .*classifier\.pt: .*or use methods/fct"):
        method.check(run)
    write_classifier(run.new.path, "arcface", 8)
    with pytest.raises(UserError, match="takes embeddings of size 8, not 10"):
        method.check(run)
    write_classifier(run.new.path, "arcface", 10, num_classes=5)
    method.check(run)
    with pytest.raises(UserError, match="has labels up to 5, the classifier of .* 5 classes: set rec to the images"):
        method.check_labels(run, LABELS)
    (run.new.path / "classifier.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot read .*classifier.pt"):
        method.check(run)
