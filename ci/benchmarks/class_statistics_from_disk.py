"""All statistics that a method needs of a store larger than the memory's caches, beside one read of its file.

    python -m ci.benchmarks class_statistics_from_disk --folder /scratch    10.6 GB: 5,179,510 embeddings, D 512

The file's pages are dropped from the system's cache before each turn (Linux). One read: 8 MiB at a time into the same
buffer. Classes come sorted, as in record files of faces. At the end each result is compared with NumPy's, as in
`class_statistics`; that is not timed.
"""

import os
from collections.abc import Callable
from pathlib import Path

from ci.benchmarks.class_statistics import WORKS, write_store
from ci.benchmarks.harness.bench import Bench
from core.embeddings.store import EmbeddingStore

QUICK = {"images": 2_000, "classes": 40, "size": 32}
BUFFER = 8 * 2**20
METHODS = {"class means": "UniBCT, BCT", "credible rows": "MixBCT", "centres and radii": "AdvBCT"}


def read(path: Path) -> int:
    """Read the file once; returns its bytes."""
    buffer, total = bytearray(BUFFER), 0
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            total += count
    return total


def dropped(path: Path, work: Callable[[], object]) -> Callable[[], object]:
    """`work` after the file has left the system's cache."""

    def from_disk() -> object:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
        return work()

    return from_disk


def run(bench: Bench, *, images: int = 5_179_510, classes: int = 93_431, size: int = 512) -> None:
    path = write_store(bench.folder / "store", images, classes, size, shuffled=False).path
    features = path / "features.npy"
    bench.note(f"{images:,} x {size} ({features.stat().st_size / 2**30:.2f} GiB) of {classes:,} classes")
    once = dropped(features, lambda: read(features))
    for name, (ours, plain, check) in WORKS.items():
        # The store is opened anew each time: pages that are mapped stay in the cache.
        mine = dropped(features, lambda ours=ours: ours(EmbeddingStore.open(path)))
        ways = {"core": mine, "one read of the file": once}
        found = bench.compare(f"{name} ({METHODS[name]})", ways, images, "rows")["core"]
        store = EmbeddingStore.open(path)
        check(store, found, plain(store))
