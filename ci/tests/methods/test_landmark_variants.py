"""The methods as AdvBCT's benchmark has them for landmarks: linear heads, the old run's own classifier, old classes."""

import json

import numpy as np
import pytest
import torch
from launching import Launch
from method_steps import (
    LABELS,
    NUM_CLASSES,
    D,
    assert_ends_and_resumes,
    assert_same_on_two_ranks,
    gradients,
    make_batch,
    make_method,
    make_store,
    old_model,
)
from tiny import write_records
from torch.nn.functional import cross_entropy, normalize

from core.engine.old_model import OldModel
from core.errors import UserError
from core.files import ROOT
from core.models.encoder import load_encoder

NUM_OLD = 3
"""Of the old run: classes 0, 1 and 2 of the six. The step's labels are 0, 2, 1, 4, 5, 1, 1, 0."""
SOFTMAX = ("loss=softmax", "classifier_bias=false")


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / "old_features")


def write_old_run(folder, bias=True, num_classes=NUM_OLD, size=D, **config):
    """A run folder as far as its classifier goes. Returns weight and bias in float64."""
    folder.mkdir()
    rng = np.random.default_rng(5)
    content = {"weight": torch.from_numpy(rng.normal(size=(num_classes, size)).astype(np.float32))}
    if bias:
        content["bias"] = torch.from_numpy(rng.normal(size=num_classes).astype(np.float32))
    torch.save(content, folder / "classifier.pt")
    known = {"network": "resnet18", "embedding_size": size, "image_size": 32, "num_classes": num_classes}
    known |= {"loss": "softmax", "margin_scale": 30.0, "margin": 0.3} | config
    (folder / "config.json").write_text(json.dumps(known))
    return [tensor.double() for tensor in content.values()]


@pytest.fixture
def own(tmp_path):
    write_old_run(tmp_path / "old")
    return f"old_model={tmp_path / 'old'}", "old_classifier=own"


def plain_softmax_loss(new, weight, labels, bias=0.0):
    return cross_entropy(new @ weight.T + bias, labels)


@pytest.mark.parametrize("loss, bias", [("softmax", True), ("softmax", False), ("arcface", False), ("cosface", False)])
def test_own_classifier_s_loss_is_that_of_the_old_training_on_samples_of_the_old_classes(
    store, ranks, tmp_path, loss, bias
):
    weight, *biases = write_old_run(tmp_path / "old", bias, loss=loss)
    method = make_method("bct", store, ranks, f"old_model={tmp_path / 'old'}", "old_classifier=own", *SOFTMAX)
    batch = make_batch(store)
    old = batch.label < NUM_OLD
    assert 0 < old.sum() < len(old)
    new, labels = batch.embedding[old], batch.label[old]
    if loss == "softmax":
        expected = plain_softmax_loss(new, weight, labels, sum(biases))
    else:
        cosines = normalize(new) @ normalize(weight).T
        own_class = torch.eye(NUM_OLD, dtype=torch.bool)[labels]
        angled = torch.cos(torch.arccos(cosines) + 0.3) if loss == "arcface" else cosines - 0.3
        expected = cross_entropy(30 * torch.where(own_class, angled, cosines), labels)
    terms = method.loss(batch)
    assert terms.keys() == {"cls", "bct"}
    torch.testing.assert_close(terms["bct"], expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients(terms["bct"], batch.embedding), gradients(expected, batch.embedding))
    torch.testing.assert_close(terms["cls"], plain_softmax_loss(batch.embedding, method.classifier.weight, batch.label))


def test_batch_without_an_old_class_leaves_the_own_classifier_without_loss_and_gradient(store, ranks, own):
    method, batch = make_method("bct", store, ranks, *own), make_batch(store)
    batch.label[:] = torch.tensor([3, 4, 5, 3, 4, 5, 3, 4])
    bct = method.loss(batch)["bct"]
    assert bct == 0 and (gradients(bct, batch.embedding)[0] == 0).all()


def test_last_old_class_counts_and_the_next_does_not(store, ranks, own):
    assert make_method("bct", store, ranks, *own).old_class.tolist() == [0, 1, 2, -1, -1, -1]


def test_own_classifier_is_never_trained(store, ranks, own):
    method = make_method("bct", store, ranks, *own, "loss=softmax")
    assert {name for name, p in method.named_parameters() if p.requires_grad} == {
        "classifier.weight",
        "classifier.bias",
    }


def test_two_ranks_share_the_own_classifier(store, ranks, tmp_path, own):
    assert_same_on_two_ranks("bct", store, tmp_path, ranks, *own, *SOFTMAX)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda run: (run / "classifier.pt").unlink(), "no classifier of its own at .*classifier.pt.*means"),
        (lambda run: (run / "classifier.pt").write_bytes(b"no zip"), "cannot read .*classifier.pt"),
        (lambda run: torch.save({"weights": torch.zeros(2, D)}, run / "classifier.pt"), "is not a classifier"),
        (lambda run: torch.save({"weight": torch.zeros(D)}, run / "classifier.pt"), "expected weight .C, D."),
        (lambda run: torch.save({"weight": torch.zeros(3, D + 1)}, run / "classifier.pt"), "of size 7, not 6"),
        (lambda run: torch.save({"weight": torch.zeros(7, D)}, run / "classifier.pt"), "on 7 classes.*data have 6"),
        (lambda run: (run / "config.json").unlink(), "config of the run folder not found"),
        (lambda run: edit(run, "loss"), "the config of .*old has no 'loss'"),
    ],
)
def test_run_without_a_usable_classifier_is_refused(store, ranks, tmp_path, own, damage, message):
    damage(tmp_path / "old")
    with pytest.raises(UserError, match=message) as error:
        make_method("bct", store, ranks, *own)
    assert "\n" not in str(error.value)


def edit(run, missing):
    config = json.loads((run / "config.json").read_text())
    del config[missing]
    (run / "config.json").write_text(json.dumps(config))


def test_own_classifier_of_a_bare_file_and_unknown_choices_are_refused(store, ranks, tmp_path):
    with pytest.raises(UserError, match="no classifier of its own at .*old.pt/classifier.pt"):
        make_method("bct", store, ranks, f"old_model={tmp_path / 'old.pt'}", "old_classifier=own")
    with pytest.raises(UserError, match="'old_classifier' in the command line must be 'means' or 'own', got 'mine'"):
        make_method("bct", store, ranks, "old_classifier=mine")


def test_accuracy_of_the_old_classifier_is_high_on_these_features_and_low_for_other_labels(store, tmp_path):
    write_old_run(tmp_path / "old")
    features = normalize(torch.from_numpy(np.array(store.features)))
    means = torch.stack([features[torch.from_numpy(LABELS == label)].mean(0) for label in range(NUM_OLD)])
    torch.save({"weight": normalize(means)}, tmp_path / "old" / "classifier.pt")
    known = [row for row, label in enumerate(LABELS) if label < NUM_OLD]
    right = [float((store.features[row] @ means.numpy().T).argmax() == LABELS[row]) for row in known]
    old = old_model(store, tmp_path / "old")
    assert old.classifier_accuracy() >= 0.7
    torch.save({"weight": normalize(means).roll(1, 0)}, tmp_path / "old" / "classifier.pt")
    assert old.classifier_accuracy() <= 0.3 < sum(right) / len(right)


ANGLE = 30.0, 0.3


def plain_unibct(new, labels, classes):
    """ArcFace, sample by sample, against the normalised means of the normalised old features of `classes`."""

    def loss(store):
        features = torch.from_numpy(np.array(store.features)).double()
        centres = {c: normalize(normalize(features[torch.from_numpy(LABELS == c)]).mean(0), dim=0) for c in classes}
        losses = []
        for n, label in zip(new, labels.tolist()):
            if label in centres:
                cosines = {c: n @ m / n.norm() for c, m in centres.items()}
                own = ANGLE[0] * torch.cos(torch.arccos(cosines[label]) + ANGLE[1])
                logits = [own] + [ANGLE[0] * cosine for c, cosine in cosines.items() if c != label]
                losses.append(torch.logsumexp(torch.stack(logits), 0) - own)
        return sum(losses) / len(losses)

    return loss


UNIBCT = ("refine_epochs=()", f"compat_scale={ANGLE[0]}", f"compat_margin={ANGLE[1]}")


@pytest.mark.parametrize("only", [False, True])
def test_unibct_is_arcface_against_the_old_centres_from_the_start(store, ranks, tmp_path, only):
    write_old_run(tmp_path / "old")
    settings = (*UNIBCT, f"old_model={tmp_path / 'old'}", f"old_classes_only={only}")
    method, batch = make_method("unibct", store, ranks, *settings), make_batch(store, epoch=0)
    method.start_epoch(0, None)
    classes = [0, 1, 2] if only else [0, 1, 2, 4, 5]
    expected = plain_unibct(batch.embedding, batch.label, classes)(store)
    bct = method.loss(batch)["bct"]
    torch.testing.assert_close(bct, expected, rtol=1e-6, atol=0)
    wanted = gradients(expected, batch.embedding)
    torch.testing.assert_close(gradients(bct, batch.embedding), wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name, table", [("advbct", "radius"), ("lce", "boundary")])
def test_old_classes_only_leaves_the_boundaries_of_the_others_out(store, ranks, tmp_path, name, table):
    write_old_run(tmp_path / "old")
    everything, old_only = (
        make_method(name, store, ranks, f"old_model={tmp_path / 'old'}", f"old_classes_only={only}")
        for only in (False, True)
    )
    expected = getattr(everything, table).clone()
    assert (expected[NUM_OLD:] >= 0).any()
    expected[NUM_OLD:] = -1
    assert torch.equal(getattr(old_only, table), expected)
    batch = make_batch(store)
    batch.label[:] = torch.tensor([3, 4, 5, 3, 4, 5, 3, 4])
    terms = old_only.loss(batch)
    assert terms["p2s" if name == "advbct" else "boundary"] == 0
    assert name == "advbct" or terms["align"] == 0


@pytest.mark.parametrize("name", ["advbct", "lce", "unibct"])
def test_old_classes_are_not_known_without_a_run_folder(store, ranks, tmp_path, name):
    with pytest.raises(UserError, match="is not a run folder.*old_classes_only=false"):
        make_method(name, store, ranks, f"old_model={tmp_path / 'old.onnx'}", "old_classes_only=true")


@pytest.mark.parametrize("head", [SOFTMAX, ("loss=softmax",), ("loss=cosface", "margin=0.2")], ids=lambda h: h[-1])
@pytest.mark.parametrize("name", ["advbct", "bct", "hot_refresh", "l2", "lce", "mixbct", "nccl", "unibct"])
def test_every_method_has_the_head_of_the_config(store, ranks, name, head):
    method, batch = make_method(name, store, ranks, *head, "mix_ratio=0" if name == "mixbct" else "seed=1"), None
    batch = make_batch(store)
    weight, bias = method.classifier.weight, method.classifier.bias
    assert (bias is None) == (head != ("loss=softmax",))
    if head[0] == "loss=softmax":
        expected = plain_softmax_loss(batch.embedding, weight, batch.label, 0.0 if bias is None else bias)
    else:
        cosines = normalize(batch.embedding) @ normalize(weight).T
        expected = cross_entropy(8 * (cosines - 0.2 * torch.eye(NUM_CLASSES)[batch.label]), batch.label)
    terms = method.loss(batch)
    torch.testing.assert_close(terms["cls"], expected)
    sum(terms.values()).backward()
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


def test_nccl_with_a_linear_head_compares_cosine_logits(store, ranks):
    method, batch = (
        make_method("nccl", store, ranks, *SOFTMAX, "beta=1", "queue_size=8", "batch_size=8"),
        make_batch(store),
    )
    unit, weight = normalize(batch.embedding), normalize(method.classifier.weight)
    old = normalize(batch.old_embedding)
    new_logits, old_logits = unit @ weight.T, (old @ weight.T).detach()
    same = batch.label[:, None] == batch.label
    shares = torch.where(same, (1 + old @ old.T) / 2, 0) / same.sum(1, keepdim=True)
    expected = -(shares * torch.log_softmax(new_logits @ old_logits.T, 1)).sum(1).mean()
    term = method.loss(batch)["logit"]
    torch.testing.assert_close(term, expected, rtol=1e-5, atol=0)  # the queue is kept in float32
    leaves = batch.embedding, method.classifier.weight
    torch.testing.assert_close(gradients(term, *leaves), gradients(expected, *leaves), rtol=1e-4, atol=1e-7)


TINY = [
    "batch_size=16", "num_epoch=2", "lr=0.02", "num_workers=0", "device=cpu", "frequent=2", "embedding_size=8",
    "network=resnet18", "network_options={}",
]  # fmt: skip
TERMS = {
    "advbct": {"cls", "p2s", "adv"}, "bct": {"cls", "bct"}, "hot_refresh": {"cls", "compatible"}, "l2": {"cls", "l2"},
    "lce": {"cls", "boundary", "align"}, "mixbct": {"cls"}, "nccl": {"cls", "embedding", "logit"},
    "unibct": {"cls", "bct"},
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Prefixes of records: of all six classes, and of the first two alone."""
    folder = tmp_path_factory.mktemp("landmarks")
    labels = sorted(list(range(6)) * 12)
    return write_records(folder / "train", labels), write_records(folder / "train_part_30_class", labels[:24])


def train_old(folder, records, *overrides, ranks=1):
    program = ROOT / "old_model" / "train.py"
    arguments = [program.parent / "configs" / "glyphs_retrieval.py", f"rec={records}", f"output={folder}", *TINY]
    launch = Launch(program, [*arguments, *overrides], folder.parent / "logs", ranks)
    statuses, outputs = launch.wait()
    assert statuses == [0] * ranks, outputs
    return folder


@pytest.fixture(scope="module")
def old_run(data, tmp_path_factory):
    return train_old(tmp_path_factory.mktemp("old") / "run", data[1])


def test_old_run_keeps_its_classifier_and_model_pt_is_a_plain_backbone(old_run):
    content = torch.load(old_run / "classifier.pt", weights_only=True)
    assert content["weight"].shape == (2, 8) and content["weight"].dtype == torch.float32
    assert not any("head" in key for key in torch.load(old_run / "model.pt", weights_only=True))
    assert load_encoder(old_run).any_size
    old = OldModel(old_run, "old", "resnet18", "fingerprint", 8, None)
    assert old.num_classes == 2 and old.classifier.weight.equal(content["weight"])


def test_classifier_is_whole_and_the_same_from_one_and_two_ranks(data, tmp_path):
    # Without a learning rate both end with the first weights, which do not depend on the number of ranks.
    step = ("num_epoch=1", "augment=()", "classifier_bias=true", "lr=0")
    alone = train_old(tmp_path / "one", data[0], *step, "batch_size=16")
    pair = train_old(tmp_path / "two", data[0], *step, "batch_size=8", ranks=2)
    one, two = (torch.load(run / "classifier.pt", weights_only=True) for run in (alone, pair))
    assert one["weight"].shape == (6, 8) and one["bias"].shape == (6,)
    torch.testing.assert_close(two, one, rtol=0, atol=0)
    assert (two["weight"] != 0).all() and (tmp_path / "two" / "classifier.pt").stat().st_size < 4096


def test_trained_run_that_lacks_its_classifier_writes_it_when_it_is_started_again(data, tmp_path):
    run = train_old(tmp_path / "run", data[1])
    wanted = torch.load(run / "classifier.pt", weights_only=True)
    (run / "classifier.pt").unlink()
    train_old(run, data[1])
    torch.testing.assert_close(torch.load(run / "classifier.pt", weights_only=True), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("name", sorted(TERMS))
def test_glyph_retrieval_config_of_every_method_trains_and_logs_its_terms(name, data, old_run, tmp_path):
    program = ROOT / "methods" / name / "train.py"
    arguments = [program.parent / "configs" / "glyphs_retrieval.py", f"rec={data[0]}", f"old_model={old_run}", *TINY]
    arguments += [f"features={tmp_path / 'store'}", f"output={tmp_path / 'run'}", "num_epoch=1"]
    statuses, outputs = Launch(program, arguments, tmp_path / "logs").wait()
    assert statuses == [0], outputs
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {key.removeprefix("loss/") for key in lines[-1] if key.startswith("loss/")} == TERMS[name]
    assert all(np.isfinite(line["loss"]) for line in lines)
    encoder = load_encoder(tmp_path / "run")
    assert encoder.any_size and encoder.mean == (123.675, 116.28, 103.53)
    assert encoder.old_model_fingerprint == load_encoder(old_run).fingerprint


def test_run_with_the_own_classifier_ends_and_resumes(tiny_records, tiny_settings, tmp_path, ranks, monkeypatch):
    write_old_run(tmp_path / "classified", num_classes=4, size=8)
    monkeypatch.setattr("method_steps.write_run_folder", lambda path: complete(path, tmp_path / "classified"))
    terms = assert_ends_and_resumes(
        "bct", tiny_records, tiny_settings, tmp_path, ranks, "old_classifier=own", "loss=softmax"
    )
    assert terms == {"loss/cls", "loss/bct"}


def complete(path, classified):
    """An untrained old model as a run folder that has a classifier."""
    from tiny import write_run_folder

    write_run_folder(path)
    known = json.loads((classified / "config.json").read_text()) | json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(known))
    (path / "classifier.pt").write_bytes((classified / "classifier.pt").read_bytes())
    return path
