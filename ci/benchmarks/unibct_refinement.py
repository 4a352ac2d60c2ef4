"""UniBCT's structural prototype refinement beside the paper's inverse, class by class in float64.

    python -m ci.benchmarks unibct_refinement              93,431 classes of 55 images on average, D 512: MS1M-V3
    python -m ci.benchmarks unibct_refinement --repeats 1

Class sizes are log-normal. Features are drawn once for a pool of images, to which the rows of all classes are mapped:
the benchmark needs no 20 GB, and reading costs what it costs from memory. Linear algebra is all but that reading. The
inverse is taken of 200 classes; prototypes must agree with it to 1e-5 of their length.
"""

import runpy
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch

from ci.benchmarks.harness.bench import Bench
from core.embeddings.refinement import refined_prototypes
from core.files import ROOT

QUICK = {"classes": 200, "size": 32}
POOL = 65_536
PROPAGATION, TEMPERATURE = 0.9, 0.05
TOLERANCE = 1e-5
"""Of prototypes in float32, relative to their length; 1e-6 was seen."""


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


def run(bench: Bench, *, classes: int = 93_431, size: int = 512) -> None:
    rng = np.random.default_rng(0)
    sizes = np.clip(rng.lognormal(np.log(55.4) - 0.5 * 0.7**2, 0.7, classes), 1, None).astype(np.int64)
    labels = np.repeat(np.arange(classes), sizes)
    new, old = (PooledFeatures(labels, size, seed) for seed in (1, 2))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bench.note(f"{classes:,} classes, {len(labels):,} images, up to {sizes.max()} a class, D {size}, {device}")
    weights = partial(
        runpy.run_path(str(ROOT / "methods" / "unibct" / "train.py"))["structural_weights"],
        propagation=PROPAGATION,
        temperature=TEMPERATURE,
        edge_softmax="rows",
    )
    first = np.cumsum(sizes) - sizes
    chosen = rng.choice(classes, min(200, classes), replace=False)

    def one_by_one() -> np.ndarray:
        members = (first[label] + np.arange(sizes[label]) for label in chosen)
        return np.array([exact(new[rows].astype(np.float64), old[rows].astype(np.float64)) for rows in members])

    ways = {
        "refined_prototypes": lambda: refined_prototypes(new, old, np.arange(classes), weights, device).cpu().numpy(),
        "inverses, float64": one_by_one,
    }
    items = {"refined_prototypes": classes, "inverses, float64": len(chosen)}
    ours, expected = bench.compare("prototypes", ways, items, "classes").values()
    errors = np.linalg.norm(ours[chosen] - expected, axis=1) / np.linalg.norm(expected, axis=1)
    np.testing.assert_array_less(errors, TOLERANCE)
    reading = (new.seconds + old.seconds) / bench.repeats
    bench.note(f"largest relative error {errors.max():.1e}; reading takes {reading:.1f} s of a run")
