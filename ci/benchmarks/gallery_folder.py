"""A gallery in a folder beside what it cannot do without: creation beside copying and hashing, search beside search.

    python ci/benchmarks/gallery_folder.py                      1,000,000 x 256, 1,000 queries; 5 GB of disk
    python ci/benchmarks/gallery_folder.py --entries 50000      a smaller gallery
    python ci/benchmarks/gallery_folder.py --folder /data/tmp   on another disk

Half of the entries, drawn at random, have a new vector too; a search of the half-upgraded gallery searches the new
vectors, and the old ones of the others. Each step is measured in turn with its plain one, several times; the shortest
times are compared, of the clock and of the processors, which other work on the machine disturbs less. Copying ends
when the copy is on the disk, as the creation does.
"""

import argparse
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from private_memory import private_memory

from core.evaluation.search import search
from core.gallery.folder.store import FolderStore
from core.gallery.store import Version

BLOCK = 1 << 22


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("entries", 1_000_000), ("dim", 256), ("queries", 1_000), ("k", 10), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", type=Path, help="where to make the files (default: the folder of temporary ones)")
    parser.add_argument("--shuffled", action="store_true", help="ids in random order, not ascending")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        file = folder / "vectors.npy"
        vectors = write_vectors(file, args.entries, args.dim)
        numbers = np.random.default_rng(0).permutation(args.entries) if args.shuffled else range(args.entries)
        ids = [f"person-{number:09d}" for number in numbers]
        print(f"{args.entries:,} x {args.dim}, {vectors.nbytes / 2**30:.2f} GiB, {torch.get_num_threads()} threads")
        compare(
            args.rounds,
            ("copying and hashing", lambda: copy_and_hash(file, folder / "copy.npy")),
            ("create", lambda: create(folder / "gallery", ids, vectors)),
        )
        gallery = FolderStore.open(folder / "gallery")
        upgrade_half(gallery, vectors)
        print(f"half upgraded: {gallery.counts()}; faults: {gallery.verify()}")
        search(vectors[:2], vectors[:100], args.k)  # loads faiss
        queries = unit(np.random.default_rng(1).standard_normal((args.queries, args.dim), dtype=np.float32))
        units = np.array(vectors)  # a matrix in memory, without a gallery
        found = compare(
            args.rounds,
            ("plain search", lambda: search(queries, units, args.k)),
            ("half-upgraded gallery", lambda: search_both(gallery, queries, args.k)),
        )
        (_, rows), hits = found
        best = np.array([[name for _, name in sorted(zip(-line, names), key=lambda hit: hit[0])[: args.k]]
                         for line, names in zip(*hits)])  # fmt: skip
        print(
            f"the same ids: {(best == np.array(ids)[rows]).mean():.4%} (the new vectors are the old ones; ties differ)"
        )


def write_vectors(path: Path, count: int, dim: int) -> np.ndarray:
    """Random unit vectors float32 (count, dim) in a file, memory-mapped."""
    rng = np.random.default_rng(0)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(count, dim))
    for start in range(0, count, 4096):
        block = array[start : start + 4096]
        block[:] = unit(rng.standard_normal(block.shape, dtype=np.float32))
    array.flush()
    return np.load(path, mmap_mode="r")


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def copy_and_hash(file: Path, copy: Path) -> str:
    shutil.copyfile(file, copy)
    with open(copy, "rb") as handle:
        os.fsync(handle.fileno())
    digest = hashlib.sha256()
    with open(file, "rb") as handle:
        while block := handle.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def create(path: Path, ids: list[str], vectors: np.ndarray) -> None:
    shutil.rmtree(path, ignore_errors=True)
    with FolderStore.creating(path) as store:
        store.add_version(Version("old", "old model", vectors.shape[1]))
        store.enrol(ids, {"old": vectors})


def upgrade_half(gallery: FolderStore, vectors: np.ndarray) -> None:
    """In random order, in blocks, as a backfill does; prints its rate."""
    gallery.add_version(Version("new", "new model", vectors.shape[1]))
    order = np.random.default_rng(2).permutation(len(vectors))[: len(vectors) // 2]
    started = time.perf_counter()
    for start in range(0, len(order), 4096):
        rows = order[start : start + 4096]  # rows are numbered in the order of enrolment
        gallery.add_vectors("new", rows, vectors[rows])
    print(f"{len(order) / (time.perf_counter() - started):,.0f} vectors added a second, in blocks of 4,096")


def search_both(gallery: FolderStore, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    parts = gallery.search("new", queries, k), gallery.search("old", queries, k, without=["new"])
    return (
        np.concatenate([part.scores for part in parts], axis=1),
        np.concatenate([part.ids for part in parts], axis=1),
    )


def compare(rounds: int, *steps: tuple[str, Callable[[], object]]) -> list:
    """Run the steps in turn; what each gave the last time."""
    seconds, used, gib, results = ([start] * len(steps) for start in (float("inf"), float("inf"), 0.0, None))
    for _ in range(rounds):
        for number, (_, step) in enumerate(steps):
            with private_memory() as peak:
                started, used_before = time.perf_counter(), time.process_time()
                results[number] = step()
                seconds[number] = min(seconds[number], time.perf_counter() - started)
                used[number] = min(used[number], time.process_time() - used_before)
            gib[number] = max(gib[number], peak[0])
    for number, (name, _) in enumerate(steps):
        print(
            f"{name:<24}{seconds[number]:8.2f} s ({seconds[number] / seconds[0]:.2f} times the first), of processors "
            f"{used[number]:.2f} s ({used[number] / used[0]:.2f} times); memory {gib[number]:.2f} GiB",
            flush=True,
        )
    return results


if __name__ == "__main__":
    main()
