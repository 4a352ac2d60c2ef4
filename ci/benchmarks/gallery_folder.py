"""A gallery in a folder beside what it cannot do without: creation beside copying and hashing, search beside search.

    python -m ci.benchmarks gallery_folder                      1,000,000 x 256, 1,000 queries; 6 GB of disk
    python -m ci.benchmarks gallery_folder --entries 50000      a smaller gallery
    python -m ci.benchmarks gallery_folder --folder /data/tmp   on another disk

`Gallery` is what a user calls, from a .npy file and a list of ids, checks included; `FolderStore` lies below it.
Copying ends when the copy is on the disk, as creation does. Then half of the entries, drawn at random, get a new vector
too; a search of the half-upgraded gallery searches the new vectors, and the old ones of the others, and `Gallery`
calibrates the scores of both. Ids are --shuffled or ascending.
"""

import hashlib
import os
import shutil
import time
from pathlib import Path

import numpy as np

from ci.benchmarks.harness.bench import Bench
from ci.benchmarks.harness.vectors import unit_vectors, write_unit_vectors
from core.evaluation.calibration import fit_calibration
from core.evaluation.search import search
from core.gallery import Gallery
from core.gallery.documents import calibrations_to_document
from core.gallery.folder.store import FolderStore
from core.gallery.store import Version
from core.gallery.upgrade import Upgrade

QUICK = {"entries": 600, "dim": 16, "queries": 20}
BLOCK = 4096


def run(
    bench: Bench, *, entries: int = 1_000_000, dim: int = 256, queries: int = 1_000, k: int = 10, shuffled: bool = False
) -> None:
    folder = bench.folder
    vectors = write_unit_vectors(folder / "v.npy", entries, dim)
    numbers = np.random.default_rng(0).permutation(entries) if shuffled else range(entries)
    ids = [f"person-{number:09d}" for number in numbers]
    (folder / "ids.txt").write_text("\n".join(ids) + "\n")
    ways = {
        "Gallery.create": lambda: create(folder),
        "FolderStore.creating": lambda: create_store(folder / "store", ids, vectors),
        "copying and hashing": lambda: copy_and_hash(folder),
    }
    bench.compare(f"create {entries:,} x {dim}", ways, entries, "entries")
    with Gallery.open(folder / "gallery") as gallery:
        bench.note(f"{upgrade_half(gallery, vectors):,.0f} vectors added a second, in blocks of {BLOCK:,}")
        bench.note(f"half upgraded: {gallery.store.counts()}; faults: {gallery.store.verify()}")
        asked, units = unit_vectors(queries, dim, 1), np.array(vectors)  # a matrix in memory, without a gallery
        search(asked[:2], units[:100], k)  # loads faiss
        ways = {
            "Gallery.search": lambda: gallery.search(asked, "new", k),
            "FolderStore.search": lambda: search_both(gallery.store, asked, k),
            "plain search": lambda: search(asked, units, k),
        }
        found = bench.compare(f"{k} best, half upgraded", ways, queries, "queries")
    (_, rows), hits = found["plain search"], found["FolderStore.search"]
    best = np.array([[name for _, name in sorted(zip(-line, names), key=lambda hit: hit[0])[:k]]
                     for line, names in zip(*hits)])  # fmt: skip
    bench.note(
        f"the same ids: {(best == np.array(ids)[rows]).mean():.4%} (the new vectors are the old ones; ties differ)"
    )


def create(folder: Path) -> None:
    shutil.rmtree(folder / "gallery", ignore_errors=True)
    Gallery.create(folder / "gallery", folder / "v.npy", "name:old", folder / "ids.txt").close()


def create_store(path: Path, ids: list[str], vectors: np.ndarray) -> None:
    shutil.rmtree(path, ignore_errors=True)
    with FolderStore.creating(path) as store:
        store.add_version(Version("old", "old model", vectors.shape[1]))
        store.enrol(ids, {"old": vectors})


def copy_and_hash(folder: Path) -> str:
    shutil.copyfile(folder / "v.npy", folder / "copy.npy")
    with open(folder / "copy.npy", "rb") as handle:
        os.fsync(handle.fileno())
    digest = hashlib.sha256()
    with open(folder / "v.npy", "rb") as handle:
        while block := handle.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def upgrade_half(gallery: Gallery, vectors: np.ndarray) -> float:
    """In random order, in blocks, as a backfill does; vectors a second."""
    store = gallery.store
    store.add_version(Version("new", "new", vectors.shape[1]))
    order = np.random.default_rng(2).permutation(len(vectors))[: len(vectors) // 2]
    started = time.perf_counter()
    for start in range(0, len(order), BLOCK):
        rows = order[start : start + BLOCK]  # rows are numbered in the order of enrolment
        store.add_vectors("new", rows, vectors[rows])
    seconds = time.perf_counter() - started
    upgrade = Upgrade("old", "new", None, "direct", "random", "0" * 64, len(vectors))
    impostors = np.random.default_rng(2).standard_normal(100_000) / vectors.shape[1] ** 0.5
    calibrations = {"new/new": fit_calibration(impostors), "new/old": fit_calibration(0.9 * impostors)}
    store.set_documents({"upgrade": upgrade.to_json(), "calibrations": calibrations_to_document(calibrations)})
    return len(order) / seconds


def search_both(store: FolderStore, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    parts = store.search("new", queries, k), store.search("old", queries, k, without=["new"])
    return (
        np.concatenate([part.scores for part in parts], axis=1),
        np.concatenate([part.ids for part in parts], axis=1),
    )
