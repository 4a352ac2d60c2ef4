"""Each method's loss, through its own Method object, on the device in float32 against the CPU in float64."""

import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import torch

from ci.gpu.heads import dense
from ci.gpu.report import Error, Report, difference
from core.embeddings.store import EmbeddingStore, StoreInfo
from core.engine.method import Batch, Method, Run
from core.engine.old_model import OldModel
from core.files import ROOT
from core.parallel.ranks import Ranks
from core.program import load_method

SETTINGS = {
    "advbct": {},
    "bct": {},
    "hot_refresh": {},
    "l2": {},
    "lce": {"transform_blocks": 1},
    "mixbct": {"mix_ratio": 1.0},
    "nccl": {"credible_only": True, "queue_size": 256},
    "unibct": {"refine_epochs": ()},
}
"""Settings under which a loss draws no random numbers, which a CPU and a GPU draw differently."""
CLOSE = 1e-3
SMALL = 1e-3
"""Share of the largest gradient below which a parameter's is as good as none."""


def make_store(folder: Path, num_classes: int, size: int, images: int) -> EmbeddingStore:
    """`images` old embeddings a class, around a direction of its own; one in ten is far out."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(num_classes), images)
    features = rng.standard_normal((num_classes, size))[labels] + 0.3 * rng.standard_normal((len(labels), size))
    features[::10] = rng.standard_normal((len(features[::10]), size))
    np.save(folder / "features.npy", features.astype(np.float32))
    np.save(folder / "labels.npy", labels)
    info = StoreInfo("synthetic", "synthetic", len(labels), size, "synthetic", "synthetic")
    (folder / "store.json").write_text(json.dumps(asdict(info)))
    return EmbeddingStore.open(folder)


def set_up(name: str, store: EmbeddingStore, device: torch.device, dtype: torch.dtype) -> Method:
    """The method with its tables and the same first weights for every device."""
    method = load_method(ROOT / "methods" / name / "train.py")
    size, num_classes = store.info.embedding_size, int(store.labels().max()) + 1
    settings = method.settings_type(embedding_size=size, batch_size=64, margin_scale=16.0, **SETTINGS[name])
    old_model = OldModel(store.path, "synthetic", "r18", "synthetic", size, store)
    torch.manual_seed(1)
    data = SimpleNamespace(num_classes=num_classes, num_images=store.info.num_images)
    method.setup(Run(settings, data, Ranks(0, 1, device), old_model))
    return method.to(device, dtype)


def make_batch(store: EmbeddingStore, batch: int, device: torch.device, dtype: torch.dtype) -> Batch:
    """New embeddings near the old ones."""
    rng = np.random.default_rng(2)
    rows = rng.permutation(store.info.num_images)[:batch]
    old = torch.from_numpy(np.array(store[rows]))
    new = torch.nn.functional.normalize(old) + 0.4 * torch.from_numpy(rng.standard_normal(old.shape)).float()
    embedding = new.to(device, dtype).requires_grad_()
    label = torch.from_numpy(store.labels()[rows]).to(device)
    row = torch.from_numpy(rows).to(device)
    return Batch(torch.empty(0), label, row, 3, 0.2, old.to(device, dtype), embedding)


def check_loss(name: str, device: torch.device, num_classes: int, size: int, batch: int) -> dict[str, Error]:
    """Two steps of the loss, so that a queue holds the first one's: terms of the second, and all gradients."""
    with TemporaryDirectory() as folder:
        store = make_store(Path(folder), num_classes, size, 6)
        results = []
        for place, dtype in ((device, torch.float32), (torch.device("cpu"), torch.float64)):
            method = set_up(name, store, place, dtype)
            made = make_batch(store, batch, place, dtype)
            method.loss(made)
            terms = method.loss(made)
            sum(terms.values()).backward()
            results.append((terms, made.embedding.grad, dict(method.named_parameters())))
    (terms, gradient, parameters), (expected, expected_gradient, expected_parameters) = results
    if terms.keys() != expected.keys():
        raise AssertionError(f"terms {list(terms)} and {list(expected)}")
    errors = {term: difference(terms[term], expected[term], 1e-4) for term in terms}
    errors["gradient of embeddings"] = difference(gradient, expected_gradient, CLOSE)
    largest = max(p.grad.abs().max().item() for p in expected_parameters.values() if p.grad is not None)
    for key, parameter in parameters.items():
        other = expected_parameters[key].grad
        if (parameter.grad is None) != (other is None):
            raise AssertionError(f"{key} has a gradient on one device alone")
        if other is not None:
            errors[f"gradient of {key}"] = difference(dense(parameter.grad), dense(other), CLOSE, SMALL * largest)
    return errors


def check_losses(report: Report, device: torch.device, quick: bool) -> None:
    """All methods with a loss."""
    num_classes, size, batch = (30, 8, 16) if quick else (1000, 128, 64)
    for name in SETTINGS:
        report.check("losses", name, lambda name=name: check_loss(name, device, num_classes, size, batch))
