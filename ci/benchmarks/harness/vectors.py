"""Random vectors."""

from pathlib import Path

import numpy as np

__all__ = ["unit", "unit_vectors", "write_unit_vectors"]

BLOCK = 4096


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def unit_vectors(count: int, dim: int, seed: int) -> np.ndarray:
    """Random directions, float32 (count, dim)."""
    return unit(np.random.default_rng(seed).standard_normal((count, dim), dtype=np.float32))


def write_unit_vectors(path: Path, count: int, dim: int, seed: int = 0) -> np.ndarray:
    """The same in a .npy file, memory-mapped; `BLOCK` rows are in memory at a time."""
    rng = np.random.default_rng(seed)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(count, dim))
    for start in range(0, count, BLOCK):
        block = array[start : start + BLOCK]
        block[:] = unit(rng.standard_normal(block.shape, dtype=np.float32))
    array.flush()
    return np.load(path, mmap_mode="r")
