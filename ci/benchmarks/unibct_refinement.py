"""UniBCT's structural prototype refinement beside the paper's inverse, class by class in float64.

    python -m ci.benchmarks unibct_refinement              93,431 classes of 55 images on average, D 512: MS1M-V3
    python -m ci.benchmarks unibct_refinement --repeats 1

Class sizes are log-normal. Features are drawn once for a pool of images, to which the rows of all classes are mapped:
the benchmark needs no 20 GB, and reading costs what it costs from memory. Linear algebra is all but that reading. The
inverse is taken of 200 classes.
"""

import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch

from ci.benchmarks.harness.bench import Bench
from core.embeddings.refinement import refined_prototypes
from core.files import ROOT
from core.program import load_method

QUICK = {"classes": 200, "size": 32}
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
