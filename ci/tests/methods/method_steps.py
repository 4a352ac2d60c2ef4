"""What the tests of the methods share: a small store of old features, one step on any number of ranks, whole runs.

Run as a program, `method_steps.py METHOD STORE FOLDER [key=value ...]`, it makes that step on the ranks there are.
"""

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from launching import Launch
from tiny import write_run_folder
from torch.distributed.checkpoint import FileSystemReader

from core.embeddings.store import EmbeddingStore, StoreInfo
from core.engine.method import Batch, Method, Run
from core.engine.old_model import OldModel
from core.engine.trainer import Trainer
from core.files import ROOT, resolve
from core.parallel.collectives import all_reduce_
from core.parallel.ranks import process_group
from core.program import load_method
from core.settings import load_settings

D, NUM_CLASSES = 6, 6
# Class 2 has one image, 3 none; class 4 has three times the same image.
LABELS = np.array([0, 1, 5, 0, 0, 2, 4, 0, 0, 1, 0, 4, 1, 0, 0, 1, 5, 0, 4, 1, 0])
ROWS = np.array([0, 5, 1, 6, 2, 9, 19, 3])
"""Of the step: classes 0, 2, 1, 4 for the first of two ranks and 5, 1, 1, 0 for the second."""


def make_store(path: Path) -> EmbeddingStore:
    """21 old features around class directions, of very different lengths; one of class 0 is far out."""
    rng = np.random.default_rng(3)
    features = rng.normal(size=(NUM_CLASSES, D))[LABELS] + 0.3 * rng.normal(size=(len(LABELS), D))
    features[LABELS == 4] = features[6]
    features[3] *= -1
    features *= rng.uniform(0.1, 10, (len(LABELS), 1))
    path.mkdir()
    np.save(path / "features.npy", features.astype(np.float32))
    np.save(path / "labels.npy", LABELS)
    info = StoreInfo("data", "model", len(LABELS), D, "train", "old")
    (path / "store.json").write_text(json.dumps(asdict(info)))
    return EmbeddingStore.open(path)


def old_model(store: EmbeddingStore, path: str | None = None) -> OldModel:
    """The old model of a store, as `path` names it; that of no file if `path` is None."""
    named = Path("nowhere.onnx") if path is None else resolve(path)
    return OldModel(named, named.stem, "r18", "model", store.info.embedding_size, store)


def make_method(name: str, store: EmbeddingStore, ranks, *overrides: str) -> Method:
    """The method, set up in float64 with the same first weights on every rank."""
    method = load_method(ROOT / "methods" / name / "train.py")
    overrides = [f"embedding_size={D}", "margin_scale=8", *overrides]
    settings = load_settings(ROOT / "configs" / "base.py", overrides, method.settings_type)
    torch.manual_seed(1)
    method.setup(Run(settings, SimpleNamespace(num_classes=NUM_CLASSES), ranks, old_model(store, settings.old_model)))
    return method.double()


def make_batch(store: EmbeddingStore, rows: np.ndarray = ROWS, epoch: int = 3, progress: float = 0.2) -> Batch:
    """New embeddings near the old ones, in float64."""
    rng = np.random.default_rng(7)
    old = store.features[ROWS]
    new = old / np.linalg.norm(old, axis=1, keepdims=True) + 0.4 * rng.normal(size=old.shape)
    part = [int(np.flatnonzero(row == ROWS)[0]) for row in rows]
    embedding = torch.from_numpy(new[part]).double().requires_grad_()
    old = torch.from_numpy(old[part]).double()
    label = torch.from_numpy(LABELS[rows])
    return Batch(None, label, torch.from_numpy(rows), epoch, progress, old, embedding)


def take_step(name: str, store: EmbeddingStore, ranks, *overrides: str) -> dict:
    """Terms averaged over the ranks and gradients as the trainer makes them: averaged, of shards not."""
    method = make_method(name, store, ranks, *overrides)
    batch = make_batch(store, np.array_split(ROWS, ranks.world_size)[ranks.rank])
    terms = method.loss(batch)
    sum(terms.values()).backward()
    shards = {"classifier.weight"}
    gradients = {key: p.grad for key, p in method.named_parameters() if p.grad is not None}
    return {
        "terms": {key: all_reduce_(value.detach().clone()) / ranks.world_size for key, value in terms.items()},
        "embedding": batch.embedding.grad / ranks.world_size,
        "shards": {key: gradients[key] for key in shards},
        "averaged": {
            key: all_reduce_(gradient.clone()) / ranks.world_size
            for key, gradient in gradients.items()
            if key not in shards
        },
        "buffers": dict(method.named_buffers()),
    }


def assert_same_on_two_ranks(name: str, store: EmbeddingStore, folder: Path, ranks, *overrides: str) -> None:
    """Terms, gradients and buffers of the step on two ranks are those of one process; the batch is cut in two."""
    alone = take_step(name, store, ranks, *overrides)
    launch = Launch(Path(__file__), [name, store.path, folder, *overrides], folder / "logs", ranks=2)
    statuses, outputs = launch.wait()
    assert statuses == [0, 0], outputs
    pair = [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]
    close = {"rtol": 1e-10, "atol": 1e-12}
    for one in pair:
        for what in ("terms", "averaged", "buffers"):
            torch.testing.assert_close(one[what], alone[what], **close)
    torch.testing.assert_close(torch.cat([one["embedding"] for one in pair]), alone["embedding"], **close)
    for key, gradient in alone["shards"].items():
        torch.testing.assert_close(torch.cat([one["shards"][key] for one in pair]), gradient, **close)


def assert_ends_and_resumes(name: str, records: Path, settings: list[str], folder: Path, ranks, *overrides: str) -> set:
    """A run that goes on from its sixth step ends with the tensors of the whole run. Returns the names of the terms.

    `model.pt` must hold a plain backbone. The method's tensors are compared in the last checkpoint.
    """
    old = write_run_folder(folder / "old")
    program = ROOT / "methods" / name / "train.py"
    output = folder / "run"
    overrides = [f"rec={records}", f"old_model={old}", f"features={folder / 'store'}", f"output={output}", *overrides]
    overrides += [*settings, "checkpoint_steps=3"]

    def train() -> tuple[dict, dict]:
        method = load_method(program)
        config = program.parent / "configs" / "glyphs.py"
        trainer = Trainer(load_settings(config, overrides, method.settings_type), method, name, ranks)
        trainer.train()
        tensors = {key: value.detach().clone() for key, value in trainer.method.state_dict().items()}
        return torch.load(output / "model.pt", weights_only=True), tensors

    model, tensors = train()
    saved = FileSystemReader(output / "checkpoints" / "step_8").read_metadata().state_dict_metadata
    assert {f"method.{key}" for key in tensors} == {key for key in saved if key.startswith("method.")}
    shutil.rmtree(output / "checkpoints" / "step_8")
    (output / "model.pt").unlink()
    again, tensors_again = train()
    torch.testing.assert_close(again, model, rtol=0, atol=0)
    torch.testing.assert_close(tensors_again, tensors, rtol=0, atol=0)
    assert model.keys() == torch.load(old / "model.pt", weights_only=True).keys()
    logged = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged] == [2, 4, 6, 8]
    terms = {key for key in logged[-1] if key.startswith("loss/")}
    assert logged[-1]["loss"] == sum(logged[-1][term] for term in terms)
    return terms


def plain_arcface(new: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """L_cls with s = 8 and m = 0.5, sample by sample."""
    losses = []
    for n, label in zip(new, labels.tolist()):
        logits = torch.stack([8 * (n @ w) / n.norm() / w.norm() for w in weight])
        own = 8 * torch.cos(torch.arccos(logits[label] / 8) + 0.5)
        others = [logit for c, logit in enumerate(logits) if c != label]
        losses.append(torch.logsumexp(torch.stack([own, *others]), 0) - own)
    return sum(losses) / len(losses)


def plain_statistics(store: EmbeddingStore, measure) -> dict[int, tuple[torch.Tensor, float]]:
    """By class of two rows or more: mean of the normalised old features, and largest `measure` to it, no outlier."""
    rows = [torch.from_numpy(feature / np.linalg.norm(feature)) for feature in np.asarray(store.features, np.float64)]
    known = {}
    for label in (0, 1, 4, 5):
        own = [row for row, other in zip(rows, LABELS) if other == label]
        centre = sum(own) / len(own)
        values = sorted(float(measure(row, centre)) for row in own)
        if len(values) >= 4:
            low, high = values[len(values) // 4], values[3 * len(values) // 4]
            values = [value for value in values if value <= high + 1.5 * (high - low)]
        known[label] = centre, values[-1]
    return known


def gradients(loss: torch.Tensor, *leaves: torch.Tensor) -> tuple:
    return torch.autograd.grad(loss, leaves, retain_graph=True, materialize_grads=True)


if __name__ == "__main__":
    with process_group("cpu") as own_ranks:
        name, store_path, folder, *overrides = sys.argv[1:]
        result = take_step(name, EmbeddingStore.open(store_path), own_ranks, *overrides)
        torch.save(result, Path(folder) / f"rank{own_ranks.rank}.pt")
