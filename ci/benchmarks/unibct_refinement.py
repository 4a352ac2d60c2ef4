"""Time, memory and accuracy of UniBCT's structural prototype refinement.

    python ci/benchmarks/unibct_refinement.py            # 93,431 classes of 55 images on average, D 512: MS1M-V3
    python ci/benchmarks/unibct_refinement.py --quick

Class sizes are log-normal. Features are drawn once for a pool of images, to which the rows of all classes are mapped:
the benchmark needs no 20 GB, and reading costs what it costs from memory. Linear algebra is all but that reading.
"""

import argparse
import importlib.util
import resource
import time
from functools import partial
from types import ModuleType, SimpleNamespace

import numpy as np
import torch

from core.embeddings.refinement import refined_prototypes
from core.errors import run_program
from core.files import ROOT

POOL = 65_536
PROPAGATION, TEMPERATURE = 0.9, 0.05


class PooledFeatures:
    """In place of a `EmbeddingStore`: row i is row i % POOL of random features. Notes how long reading takes."""

    def __init__(self, labels: np.ndarray, embedding_size: int, seed: int):
        rng = np.random.default_rng(seed)
        self.pool = np.empty((POOL, embedding_size), dtype=np.float32)
        rng.standard_normal(dtype=np.float32, out=self.pool)
        identities = self.pool.reshape(-1, 64, embedding_size)  # images of a class are mostly alike
        identities += rng.standard_normal((len(identities), 1, embedding_size), dtype=np.float32)
        self.info = SimpleNamespace(embedding_size=embedding_size)
        self._labels, self.seconds = labels, 0.0

    def labels(self) -> np.ndarray:
        return self._labels

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        start = time.perf_counter()
        features = self.pool[rows % POOL]
        self.seconds += time.perf_counter() - start
        return features


def load_unibct() -> ModuleType:
    """The method's train.py as a module."""
    spec = importlib.util.spec_from_file_location("unibct", ROOT / "methods" / "unibct" / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def exact(new: np.ndarray, old: np.ndarray) -> np.ndarray:
    """The prototype of one class in float64, with the inverse as the paper writes it and rows that sum to 1."""
    if len(new) == 1:
        return old[0]
    unit = new / np.linalg.norm(new, axis=1, keepdims=True)
    edges = np.exp((unit @ unit.T - 1) / TEMPERATURE)
    np.fill_diagonal(edges, 0)
    edges /= edges.sum(axis=1, keepdims=True)
    a = (1 - PROPAGATION) * np.linalg.inv(np.eye(len(new)) - PROPAGATION * edges)
    return (a @ old).mean(axis=0)


def resident_mib() -> float:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="2,000 classes, D 128")
    parser.add_argument("--classes", type=int, help="another number of classes")
    args = parser.parse_args()
    num_classes, embedding_size = (2_000, 128) if args.quick else (93_431, 512)
    num_classes = args.classes or num_classes
    rng = np.random.default_rng(0)
    sizes = np.clip(rng.lognormal(np.log(55.4) - 0.5 * 0.7**2, 0.7, num_classes), 1, None).astype(np.int64)
    labels = np.repeat(np.arange(num_classes), sizes)
    new, old = (PooledFeatures(labels, embedding_size, seed) for seed in (1, 2))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, one thread"
    print(f"{num_classes:,} classes, {len(labels):,} images, up to {sizes.max()} a class, D {embedding_size}, {name}")

    before = resident_mib()
    start = time.perf_counter()
    classes = np.arange(num_classes)
    settings = {"propagation": PROPAGATION, "temperature": TEMPERATURE, "edge_softmax": "rows"}
    weights = partial(load_unibct().structural_weights, **settings)
    prototypes = refined_prototypes(new, old, classes, weights, device, quiet=False).cpu()
    seconds = time.perf_counter() - start
    reading = new.seconds + old.seconds
    print(f"linear algebra {seconds - reading:.1f} s (target on 2 CPU cores: 90 s), reading {reading:.1f} s")
    print(f"memory {resident_mib() - before:.0f} MiB, of which {prototypes.nbytes / 2**20:.0f} MiB are the prototypes")
    first = np.cumsum(sizes) - sizes
    errors = []
    for label in rng.choice(num_classes, 200):
        rows = first[label] + np.arange(sizes[label])
        expected = exact(new[rows].astype(np.float64), old[rows].astype(np.float64))
        errors.append(np.linalg.norm(prototypes[label].numpy() - expected) / np.linalg.norm(expected))
    print(f"largest relative error of 200 prototypes against float64: {max(errors):.1e}")


if __name__ == "__main__":
    run_program(main)
