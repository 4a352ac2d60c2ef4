"""What each method's loss costs a training step, beside a step of backbone and head alone.

    python ci/benchmarks/method_overhead.py            # r18, 112x112, B 128, C 93,431, D 512: faces
    python ci/benchmarks/method_overhead.py --quick
    python ci/benchmarks/method_overhead.py --methods nccl bct

A step is the forward and backward pass and the update of all parameters. What a method adds lies between the embedding
and its gradient, and in the update of its own parameters: that part is timed with the method's loss and with the head
alone, in turns, and their difference is set against the whole step with the head alone. One process, on CUDA if there
is one; new and old embeddings are random. Methods are those with a folder below methods/.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from core.backbones import build_backbone
from core.embeddings.store import EmbeddingStore, StoreInfo
from core.engine.method import Batch, Method, Run
from core.engine.old_model import OldModel
from core.engine.optimization import build_optimizer
from core.errors import run_program
from core.files import ROOT
from core.heads import PartialFC
from core.heads.margins import ArcFace
from core.parallel.ranks import Ranks, process_group
from core.program import load_method
from core.settings import Settings, load_settings

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


def timed(device: torch.device, work, *arguments) -> float:
    """Seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work(*arguments)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def whole_step(backbone: nn.Module, optimizer, images: Tensor, step: Step, batch: tuple[Tensor, ...]) -> None:
    """As the training loop does it, mixed precision on CUDA included."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=images.device.type == "cuda"):
        embedding = backbone(images)
    step(embedding.float(), *batch)
    nn.utils.clip_grad_norm_(backbone.parameters(), 5.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def measure(names: list[str], quick: bool, repeats: int, ranks: Ranks, folder: Path) -> None:
    """Print the table."""
    device = ranks.device
    batch_size, image_size, num_classes, embedding_size = (32, 32, 5_000, 128) if quick else (128, 112, 93_431, 512)
    store = make_store(folder, num_classes, embedding_size)
    old_model = OldModel(folder, "random", "random", "random", embedding_size, store)
    data = SimpleNamespace(num_classes=num_classes, num_images=2 * num_classes)
    overrides = [f"embedding_size={embedding_size}", f"batch_size={batch_size}"]

    def prepared(method: Method) -> Step:
        settings = load_settings(ROOT / "configs" / "base.py", overrides, method.settings_type)
        return Step(method, Run(settings, data, ranks, old_model))

    torch.manual_seed(0)
    row = torch.randint(2 * num_classes, (batch_size,))
    old = torch.from_numpy(store[row.numpy()]).to(device)
    batch = row.to(device), (row // 2).to(device), old
    embedding = torch.randn(batch_size, embedding_size, device=device, requires_grad=True)
    alone = prepared(HeadAlone())
    backbone = build_backbone("r18", embedding_size, image_size=image_size).to(
        device, memory_format=torch.channels_last
    )
    optimizer = build_optimizer(alone.settings, backbone.parameters())
    images = torch.randn(batch_size, 3, image_size, image_size, device=device).to(memory_format=torch.channels_last)
    whole = [timed(device, whole_step, backbone, optimizer, images, alone, batch) for _ in range(repeats + 1)]
    step_seconds = statistics.median(whole[1:])
    del backbone, optimizer, images
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"r18, {image_size}x{image_size}, B {batch_size}, C {num_classes:,}, D {embedding_size}, {machine}")
    print(f"step of backbone and head: {1000 * step_seconds:.0f} ms")
    print(f"{'method':12} {'head alone':>10} {'method':>10} {'extra':>10} {'of a step':>10} {'target':>8}")
    for name in names:
        step = prepared(load_method(ROOT / "methods" / name / "train.py"))
        for each in (step, alone):
            each(embedding, *batch)
        pairs = [[timed(device, each, embedding, *batch) for each in (alone, step)] for _ in range(3 * repeats)]
        head, method = (1000 * statistics.median(column) for column in zip(*pairs))
        extra = 1000 * statistics.median(second - first for first, second in pairs)
        share, target = extra / (10 * step_seconds), TARGETS.get(name, 5.0)
        print(f"{name:12} {head:7.1f} ms {method:7.1f} ms {extra:7.1f} ms {share:8.1f} % {target:6.0f} %", flush=True)


def main() -> None:
    known = sorted(path.parent.name for path in (ROOT / "methods").glob("*/train.py"))
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="32x32, B 32, C 5,000, D 128")
    parser.add_argument("--methods", nargs="+", choices=known, default=known, metavar="NAME", help=", ".join(known))
    parser.add_argument("--repeats", type=int, default=4, help="timed whole steps; of the losses three times as many")
    args = parser.parse_args()
    with process_group() as ranks, tempfile.TemporaryDirectory() as folder:
        measure(args.methods, args.quick, args.repeats, ranks, Path(folder))


if __name__ == "__main__":
    run_program(main)
