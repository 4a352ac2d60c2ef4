"""What a user of a gallery waits for, beside the plain way: creation from files, search across two models.

    python ci/benchmarks/gallery_search.py                     1,000,000 x 256, 1,000 queries; 4 GB of disk
    python ci/benchmarks/gallery_search.py --entries 50000     a smaller gallery

Creation from a .npy file and a list of ids, checks included, beside copying and hashing the .npy file; then half of the
entries get a new vector and queries search both halves with calibrated scores, beside the exact search of one array of
the same size in memory. The shortest of several rounds counts. Memory is what the process holds beside mapped files.
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
from private_memory import private_memory

from core.evaluation.calibration import fit_calibration
from core.evaluation.search import search
from core.gallery import Gallery
from core.gallery.documents import calibrations_to_document
from core.gallery.store import Version
from core.gallery.upgrade import Upgrade

BLOCK = 1 << 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("entries", 1_000_000), ("dim", 256), ("queries", 1_000), ("k", 10), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", type=Path, help="where to make the files (default: the folder of temporary ones)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        write_files(folder, args.entries, args.dim)
        plain = shortest("copying and hashing", args.rounds, lambda: copy_and_hash(folder))
        ours = shortest("create", args.rounds, lambda: create(folder))
        print(f"{ours / plain:.2f} times copying and hashing\n")
        with Gallery.open(folder / "gallery") as gallery:
            upgrade_half(gallery, np.load(folder / "v.npy", mmap_mode="r"))
            queries = unit(np.random.default_rng(1).standard_normal((args.queries, args.dim), dtype=np.float32))
            units = unit(np.load(folder / "v.npy"))
            plain = shortest("plain search", args.rounds, lambda: search(queries, units, args.k))
            ours = shortest("search across both", args.rounds, lambda: gallery.search(queries, "new", args.k))
            print(f"{ours / plain:.2f} times the plain search")


def shortest(what: str, rounds: int, work: Callable[[], object]) -> float:
    """Seconds of the fastest round, printed with the memory that it takes at its peak."""
    seconds, gib = [], 0.0
    for _ in range(rounds):
        with private_memory() as peak:
            started = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - started)
        gib = max(gib, *peak)
    print(f"{what:20} {min(seconds):7.2f} s (of {', '.join(f'{each:.2f}' for each in seconds)}), {gib:.2f} GiB")
    return min(seconds)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write_files(folder: Path, entries: int, dim: int) -> None:
    rows, rng = np.lib.format.open_memmap(folder / "v.npy", "w+", np.float32, (entries, dim)), np.random.default_rng(0)
    for start in range(0, entries, BLOCK):
        part = rows[start : start + BLOCK]
        part[:] = rng.standard_normal(part.shape, dtype=np.float32)
    (folder / "ids.txt").write_text("".join(f"person-{number:09d}\n" for number in rng.permutation(entries)))


def copy_and_hash(folder: Path) -> None:
    digest = hashlib.sha256()
    with open(folder / "v.npy", "rb") as source, open(folder / "copy.npy", "wb") as target:
        while block := source.read(1 << 22):
            digest.update(block)
            target.write(block)
        target.flush()
        os.fsync(target.fileno())
    (folder / "copy.npy").unlink()


def create(folder: Path) -> None:
    shutil.rmtree(folder / "gallery", ignore_errors=True)
    Gallery.create(folder / "gallery", folder / "v.npy", "name:old", folder / "ids.txt").close()


def upgrade_half(gallery: Gallery, vectors: np.ndarray) -> None:
    """Every second entry gets a new vector."""
    store = gallery.store
    store.add_version(Version("new", "new", vectors.shape[1]))
    for start in range(0, len(vectors), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(vectors)), 2)
        store.add_vectors("new", rows, vectors[rows])
    upgrade = Upgrade("old", "new", None, "direct", "random", "0" * 64, len(vectors))
    impostors = np.random.default_rng(2).standard_normal(100_000) / vectors.shape[1] ** 0.5
    calibrations = {"new/new": fit_calibration(impostors), "new/old": fit_calibration(0.9 * impostors)}
    store.set_documents({"upgrade": upgrade.to_json(), "calibrations": calibrations_to_document(calibrations)})


if __name__ == "__main__":
    main()
