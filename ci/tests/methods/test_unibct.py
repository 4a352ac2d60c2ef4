"""UniBCT: its loss against the plain formula, its schedule, its refinement in training on one and two ranks."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import Launch
from method_steps import (
    D,
    assert_ends_and_resumes,
    gradients,
    make_batch,
    make_method,
    make_store,
    old_model,
    plain_arcface,
)
from tiny import build_linear

from core.data.records import RecordDataset
from core.embeddings.store import EmbeddingStore, StoreInfo
from core.engine.method import Batch, Run
from core.errors import UserError
from core.files import ROOT
from core.parallel.ranks import process_group
from core.program import load_method
from core.settings import load_settings

KNOWN = [0, 1, 2, 4, 5]
"""Class 3 has no image."""


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / "old_features")


def set_prototypes(method) -> torch.Tensor:
    """The same for any number of ranks; returns all of them."""
    prototypes = torch.from_numpy(np.random.default_rng(2).normal(size=(len(KNOWN), D)))
    first = method.prototypes.class_start
    method.prototypes.weight.data.copy_(prototypes[first : first + method.prototypes.num_local])
    return prototypes


@pytest.mark.parametrize("scale", [1, 32])
def test_terms_and_gradients_are_those_of_the_formula(store, ranks, scale):
    method, batch = make_method("unibct", store, ranks, f"compat_scale={scale}"), make_batch(store, epoch=10)
    prototypes = set_prototypes(method)
    losses = []
    for n, label in zip(batch.embedding, batch.label.tolist()):
        logits = torch.stack([scale * (n @ p) / n.norm() / p.norm() for p in prototypes])
        losses.append(torch.logsumexp(logits, 0) - logits[KNOWN.index(label)])
    expected = {
        "cls": plain_arcface(batch.embedding, method.classifier.weight, batch.label),
        "bct": sum(losses) / len(losses),
    }
    terms = method.loss(batch)
    torch.testing.assert_close(terms, expected, rtol=1e-9, atol=1e-11)
    leaves = batch.embedding, method.classifier.weight
    actual, wanted = (gradients(sum(each.values()), *leaves) for each in (method.loss(batch), expected))
    torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-11)


def test_classification_is_alone_until_the_first_refinement(store, ranks):
    method = make_method("unibct", store, ranks)
    terms = {epoch: set(method.loss(make_batch(store, epoch=epoch))) for epoch in (0, 9, 10, 34)}
    assert terms == {0: {"cls"}, 9: {"cls"}, 10: {"cls", "bct"}, 34: {"cls", "bct"}}


def test_no_classifier_keeps_logits_where_the_settings_say_so(store, ranks):
    method = make_method("unibct", store, ranks, "recompute_logits=True")
    assert method.classifier.recompute_logits and method.prototypes.recompute_logits


def test_class_without_old_features_is_no_prototype_and_its_samples_are_left_out(store, ranks):
    method, batch = make_method("unibct", store, ranks), make_batch(store, epoch=10)
    set_prototypes(method)
    assert method.prototypes.num_classes == 5
    batch.label[:] = 3
    bct = method.loss(batch)["bct"]
    assert bct == 0 and (gradients(bct, batch.embedding)[0] == 0).all()


@pytest.mark.parametrize(
    "setting, message",
    [
        ("refine_epochs=(10, 35)", "name epochs from 0 to num_epoch - 1"),
        ("propagation=1", "'propagation' in the command line must be a number >= 0 and < 1, got 1"),
        ("temperature=0", "'temperature' in the command line must be a number > 0, got 0"),
        ("compat_scale=0", "'compat_scale' in the command line must be a number > 0"),
        ("edge_softmax=both", "must be 'columns' or 'rows', got 'both'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(store, ranks, setting, message):
    with pytest.raises(UserError, match=message):
        make_method("unibct", store, ranks, setting)


def old_store(path: Path, data: RecordDataset) -> EmbeddingStore:
    path.mkdir(exist_ok=True)
    features = np.random.default_rng(4).normal(size=(data.num_images, D)) + np.eye(D)[data.labels() % D] * 2
    np.save(path / "features.npy", features.astype(np.float32))
    np.save(path / "labels.npy", data.labels())
    info = StoreInfo(data.fingerprint, "model", data.num_images, D, "train", "old")
    (path / "store.json").write_text(json.dumps(vars(info)))
    return EmbeddingStore.open(path)


def refine(records: str, folder: Path, ranks) -> dict:
    """Start an epoch that refines with a linear model, then make a step; what this rank has of it."""
    program = ROOT / "methods" / "unibct" / "train.py"
    output = folder / f"run_on_{ranks.world_size}"
    overrides = [f"embedding_size={D}", "num_workers=0", "edge_softmax=rows", f"output={output}"]
    method, data = load_method(program), RecordDataset(records)
    settings = load_settings(ROOT / "configs" / "base.py", overrides, method.settings_type)
    method.setup(Run(settings, data, ranks, old_model(EmbeddingStore.open(folder / "old"))))
    torch.manual_seed(3)
    backbone = build_linear("linear", D, data.image_size)
    method.start_epoch(9, backbone)
    assert not method.prototypes.weight.any()
    method.start_epoch(10, backbone)
    new, label = torch.randn(6, D), torch.from_numpy(data.labels()[[0, 70, 30, 12, 41, 60]])
    new, label = (tensor.chunk(ranks.world_size)[ranks.rank] for tensor in (new, label))
    batch = Batch(None, label, None, 10, 0.0, None, new.requires_grad_())
    bct = method.loss(batch)["bct"]
    bct.backward()
    gradient = new.grad / ranks.world_size
    return {"prototypes": method.prototypes.weight.detach(), "bct": bct.detach(), "gradient": gradient}


def test_two_ranks_refine_and_step_as_one(tiny_records, tmp_path, ranks):
    data = RecordDataset(str(tiny_records))
    old = old_store(tmp_path / "old", data)
    alone = refine(str(tiny_records), tmp_path, ranks)
    statuses, outputs = Launch(Path(__file__), [tiny_records, tmp_path], tmp_path / "logs", ranks=2).wait()
    assert statuses == [0, 0], outputs
    pair = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    close = {"rtol": 1e-4, "atol": 1e-5}
    for name in ("prototypes", "gradient"):
        torch.testing.assert_close(torch.cat([one[name] for one in pair]), alone[name], **close)
    assert all(torch.isclose(one["bct"], alone["bct"], rtol=1e-5) for one in pair)
    means = np.stack([old.features[data.labels() == label].mean(0) for label in range(6)])
    differences = np.linalg.norm(alone["prototypes"].numpy() - means, axis=1)
    assert (0.001 < differences).all() and (differences < 1).all()


@pytest.mark.parametrize("edge_softmax", ["columns", "rows"])
def test_run_ends_and_resumes_across_its_refinement(tiny_records, tiny_settings, tmp_path, ranks, edge_softmax):
    """It refines before its fifth step and goes on from its sixth: the prototypes come from the checkpoint."""
    settings = ["refine_epochs=(1,)", f"edge_softmax={edge_softmax}"]
    terms = assert_ends_and_resumes("unibct", tiny_records, tiny_settings, tmp_path, ranks, *settings)
    assert terms == {"loss/cls", "loss/bct"}
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert ["loss/bct" in line for line in lines] == [False, False, True, True]
    assert not (tmp_path / "run" / "new_features").exists()


if __name__ == "__main__":
    with process_group("cpu") as own_ranks:
        result = refine(sys.argv[1], Path(sys.argv[2]), own_ranks)
        torch.save(result, f"{sys.argv[2]}/rank{own_ranks.rank}.pt")
