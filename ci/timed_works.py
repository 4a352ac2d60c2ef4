"""Do one work once, with the `core` of the revision on the path, and time it: `compare_speed.py` starts this file.

    PYTHONPATH=<a revision's folder> python ci/timed_works.py class_means DATA RESULT.npz

DATA is what `compare_speed.py` writes. RESULT.npz has `seconds` and `value`, an array of what came of it. The works
call only what every revision since 71db8f1 has.
"""

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_

from core.backbones import build_backbone
from core.data.records import RecordDataset
from core.embeddings.class_radii import prepare_class_radii
from core.embeddings.statistics import class_means
from core.embeddings.store import EmbeddingStore
from core.engine.optimization import build_optimizer
from core.evaluation.identification import evaluate_1_n
from core.evaluation.ijb import pair_scores, template_features
from core.evaluation.ijb_embeddings import ImageEmbeddings
from core.evaluation.ijb_meta import IdentificationLists, Subjects, read_images, read_pairs
from core.evaluation.roc import receiver_operating_characteristic
from core.heads import PartialFC
from core.heads.margins import ArcFace
from core.images.transforms import TrainTransform
from core.parallel.ranks import Ranks
from core.settings import Settings

Work = Callable[[], np.ndarray | tuple[np.ndarray, ...]]
"""What is timed, and what came of it; several arrays of one shape as a tuple."""
KEEP, BATCH, STEPS = 0.9, 128, 3
ONE_RANK = Ranks(0, 1, torch.device("cpu"))


def credible_rows(store: EmbeddingStore) -> np.ndarray:
    """MixBCT's, as its training has them made and kept."""
    room = "credible_rows" if find_spec("core.embeddings.credible_rows") else "statistics"  # where it was at first
    return import_module(f"core.embeddings.{room}").prepare_credible_mask(store, KEEP, False, ONE_RANK)


def radii(store: EmbeddingStore) -> np.ndarray:
    """AdvBCT's, around the class means; made and kept too."""
    return prepare_class_radii(store, "distance", ONE_RANK)[1]


STATISTICS = {
    "class_means": lambda store: class_means(store)[0],
    "credible_rows": credible_rows,
    "centres_and_radii": radii,
}


def statistic(name: str, data: Path) -> Work:
    """Of the embeddings in DATA/store."""
    store = without_statistics(data / "store")
    return lambda: STATISTICS[name](store)


def statistic_from_disk(name: str, data: Path) -> Work:
    """The same of DATA/large, whose pages leave the system's cache first."""
    descriptor = os.open(data / "large" / "features.npy", os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    store = without_statistics(data / "large")
    return lambda: STATISTICS[name](store)


def without_statistics(path: Path) -> EmbeddingStore:
    """A store as it was written: what another run has kept beside it is removed."""
    for kept in (*path.glob("class_*.npy"), *path.glob("credible_*.npy")):
        kept.unlink()
    return EmbeddingStore.open(path)


def ijb_test(data: Path, with_files: bool) -> Work:
    """Rates of 1:1 and 1:N from stored embeddings; with the meta and pair files that they need, or after these."""
    embeddings = ImageEmbeddings(*(np.load(data / f"{view}.npy", mmap_mode="r") for view in ("plain", "mirrored")))
    first, second, probes = (Subjects(*np.load(data / f"{part}.npy")) for part in ("g1", "g2", "probes"))
    lists = IdentificationLists({"g1": first, "g2": second}, probes)
    read = None if with_files else read_files(data)

    def test() -> np.ndarray:
        images, pairs = read or read_files(data)
        templates = template_features(embeddings, images)
        scores = pair_scores(templates, templates, pairs)
        found = receiver_operating_characteristic(scores[pairs.same], scores[~pairs.same])
        return np.array([*found.metrics.values(), *numbers(evaluate_1_n(templates, templates, lists).metrics)], float)

    return test


def read_files(data: Path) -> tuple:
    """The images and pairs of DATA/IJBC."""
    images = read_images(data / "IJBC", "IJBC")
    return images, read_pairs(images)


def numbers(metrics: dict) -> list[float | None]:
    """All of them, those of a gallery too."""
    return [n for value in metrics.values() for n in (numbers(value) if isinstance(value, dict) else [value])]


def pair_file(data: Path) -> Work:
    """Its pairs as rows of templates, and which are genuine."""
    images = read_images(data / "IJBC", "IJBC")

    def read() -> tuple[np.ndarray, ...]:
        pairs = read_pairs(images)
        return pairs.first, pairs.second, pairs.same

    return read


def records(data: Path, to_network: bool) -> Work:
    """All images of DATA/train, a batch at a time in one thread: the last batch, as bytes or as a network takes it."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    source, transform = RecordDataset(data / "train"), TrainTransform("face", ["flip"])

    def read() -> np.ndarray:
        batch = np.empty(0)
        for start in range(0, len(source), BATCH):
            batch, _ = source.batch(range(start, min(start + BATCH, len(source))))
            if to_network:
                batch = transform(torch.from_numpy(batch)).numpy()
        return batch

    return read


def partial_fc(data: Path, rate: float) -> Work:
    """A step of the head and its update, after two that are not timed: the losses and the weights of some classes."""
    sizes = json.loads((data / "sizes.json").read_text())
    head = PartialFC(ArcFace(), sizes["size"], sizes["head_classes"], sample_rate=rate)
    optimizer = build_optimizer(Settings(lr=0.1), head.parameters())
    embeddings = torch.randn(BATCH, sizes["size"], requires_grad=True)
    labels = torch.randint(sizes["head_classes"], (BATCH,))

    def step() -> float:
        loss = head(embeddings, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        embeddings.grad = None
        return loss.item()

    before = [step() for _ in range(STEPS - 1)]

    def last() -> np.ndarray:
        losses = [*before, step()]
        return np.append(losses, head.weight[labels].detach().numpy())

    return last


def training_step(data: Path) -> Work:
    """A step of r18 on the CPU in the precision that is the revision's default, after one that is not timed."""
    sizes = json.loads((data / "sizes.json").read_text())
    side, count = sizes["image_size"], sizes["step_images"]
    backbone = build_backbone("r18", sizes["size"], image_size=side).to(memory_format=torch.channels_last)
    half = None  # before there was a choice, trainings on CPUs computed in float32
    if find_spec("core.engine.precision"):
        precision = import_module("core.engine.precision")
        half = precision.PRECISIONS[precision.choose_precision("auto", backbone, side, ONE_RANK)]
    head = PartialFC(ArcFace(), sizes["size"], sizes["classes"])
    optimizer = build_optimizer(Settings(lr=0.1), [*backbone.parameters(), *head.parameters()])
    images = torch.randn(count, 3, side, side).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(count) % sizes["classes"]

    def step() -> float:
        with torch.autocast("cpu", half or torch.bfloat16, enabled=half is not None):
            embeddings = backbone(images)
        loss = head(embeddings.float(), labels)
        loss.backward()
        clip_grad_norm_(backbone.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    before = step()
    return lambda: np.array([before, step()])


WORKS: dict[str, Callable[[Path], Work]] = {
    **{name: functools.partial(statistic, name) for name in STATISTICS},
    "ijb_test": functools.partial(ijb_test, with_files=True),
    "ijb_stored": functools.partial(ijb_test, with_files=False),
    "pair_file": pair_file,
    "records": functools.partial(records, to_network=False),
    "records_to_network": functools.partial(records, to_network=True),
    "training_step": training_step,
    "partial_fc": functools.partial(partial_fc, rate=1.0),
    "partial_fc_0.1": functools.partial(partial_fc, rate=0.1),
    "partial_fc_0.01": functools.partial(partial_fc, rate=0.01),
    **{f"{name}_from_disk": functools.partial(statistic_from_disk, name) for name in STATISTICS},
}
"""Each gets DATA, prepares, and returns what is timed."""


def main() -> None:
    name, data, result = sys.argv[1:]
    torch.manual_seed(0)
    work = WORKS[name](Path(data))
    started = time.perf_counter()
    value = work()
    seconds = time.perf_counter() - started
    np.savez(result, seconds=seconds, value=np.stack(value) if isinstance(value, tuple) else value)


if __name__ == "__main__":
    main()
