"""What each method's loss costs a training step, beside a step of backbone and head alone.

    python -m ci.benchmarks method_overhead            r18, 112x112, B 128, C 93,431, D 512: faces
    python -m ci.benchmarks method_overhead --methods nccl bct

A step is the forward and backward pass and the update of all parameters. What a method adds lies between the embedding
and its gradient, and in the update of its own parameters: that part is timed with the method's loss and with the head
alone, in turn, and their difference is set against the whole step with the head alone. One process, on CUDA if there is
one; new and old embeddings are random. Without --methods all that train are measured.
"""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from ci.benchmarks.harness.bench import Bench
from core.backbones import build_backbone
from core.embeddings.store import EmbeddingStore, StoreInfo
from core.engine.method import Batch, Method, Run
from core.engine.old_model import OldModel
from core.engine.optimization import build_optimizer
from core.files import ROOT
from core.heads import PartialFC
from core.heads.margins import ArcFace
from core.parallel.ranks import process_group
from core.program import load_method
from core.settings import Settings, load_settings

QUICK = {"batch": 8, "image": 32, "classes": 100, "size": 16}
TARGETS = {"nccl": 15.0}
"""Most extra time a step, in per cent; of all others 5."""


class HeadAlone(Method[Settings]):
    """ArcFace and nothing else."""

    def setup(self, run: Run) -> None:
        self.classifier = PartialFC(ArcFace(), run.settings.embedding_size, run.data.num_classes)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return {"cls": self.classifier(batch.embedding, batch.label)}


def make_store(folder: Path, num_classes: int, embedding_size: int) -> EmbeddingStore:
    """Two random old embeddings a class."""
    shape = (2 * num_classes, embedding_size)
    np.save(folder / "features.npy", np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
    np.save(folder / "labels.npy", np.repeat(np.arange(num_classes), 2))
    info = StoreInfo("random", "random", *shape, "random", "random")
    (folder / "store.json").write_text(json.dumps(asdict(info)))
    return EmbeddingStore.open(folder)


class Step:
    """The part of a training step between the embedding and its gradient, and the update of the method's parameters."""

    def __init__(self, method: Method, run: Run):
        method.setup(run)
        self.method, self.settings = method.to(run.device), run.settings
        self.optimizer = build_optimizer(run.settings, method.parameters())

    def __call__(self, embedding: Tensor, row: Tensor, label: Tensor, old: Tensor) -> None:
        batch = Batch(None, label, row, self.settings.num_epoch - 1, 0.9, old, embedding)
        torch.stack(list(self.method.loss(batch).values())).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def whole_step(backbone: nn.Module, optimizer, images: Tensor, step: Step, batch: tuple[Tensor, ...]) -> None:
    """As the training loop does it, mixed precision on CUDA included."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=images.device.type == "cuda"):
        embedding = backbone(images)
    step(embedding.float(), *batch)
    nn.utils.clip_grad_norm_(backbone.parameters(), 5.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def run(
    bench: Bench, *, batch: int = 128, image: int = 112, classes: int = 93_431, size: int = 512, methods: tuple = ()
) -> None:
    programs = [ROOT / "methods" / name / "train.py" for name in methods] or sorted(ROOT.glob("methods/*/train.py"))
    loaded = {program.parent.name: load_method(program) for program in programs}
    store = make_store(bench.folder, classes, size)
    old_model = OldModel(bench.folder, "random", "random", "random", size, store)
    data = SimpleNamespace(num_classes=classes, num_images=2 * classes)
    overrides = [f"embedding_size={size}", f"batch_size={batch}"]
    with process_group() as ranks:
        device = ranks.device

        def prepared(method: Method) -> Step:
            settings = load_settings(ROOT / "configs" / "base.py", overrides, method.settings_type)
            return Step(method, Run(settings, data, ranks, old_model))

        torch.manual_seed(0)
        row = torch.randint(2 * classes, (batch,))
        inputs = row.to(device), (row // 2).to(device), torch.from_numpy(store[row.numpy()]).to(device)
        embedding = torch.randn(batch, size, device=device, requires_grad=True)
        alone = prepared(HeadAlone())
        backbone = build_backbone("r18", size, image_size=image).to(device, memory_format=torch.channels_last)
        optimizer = build_optimizer(alone.settings, backbone.parameters())
        images = torch.randn(batch, 3, image, image, device=device).to(memory_format=torch.channels_last)
        whole = partial(whole_step, backbone, optimizer, images, alone, inputs)
        bench.compare(
            f"r18, {image}x{image}, B {batch}, C {classes:,}, D {size}", {"whole step": whole}, batch, "images"
        )
        step_seconds = bench.works[-1]["ways"][0]["median_seconds"]
        del backbone, optimizer, images, whole
        rows = []
        for name, method in loaded.items():
            if not isinstance(method, Method):  # fits a map
                continue
            steps = {"method": prepared(method), "head alone": alone}
            bench.compare(
                f"{name}, after the embedding", {way: partial(step, embedding, *inputs) for way, step in steps.items()}
            )
            with_method, with_head = (way["seconds"] for way in bench.works[-1]["ways"])
            extra = median(ours - theirs for ours, theirs in zip(with_method, with_head))
            rows.append(
                [name, f"{1000 * extra:.1f}", f"{100 * extra / step_seconds:.1f}", f"{TARGETS.get(name, 5.0):.0f}"]
            )
        bench.table("What the losses add", ["method", "ms", "% of a step", "target %"], rows)
