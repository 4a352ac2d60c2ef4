"""Kill a gallery's programs at random moments, and see that it is whole after each kill and that nothing is lost.

    python ci/kill_gallery.py --kills 20

One gallery goes the whole way of an upgrade undisturbed: create, insert, half a backfill, rollback, the whole backfill,
insert, commit. Others go the same way, but each program is killed (SIGKILL) at a random moment of its work; then every
checksum is verified, and the same command is given again. After each step the gallery must hold the same as the
undisturbed one. Prints the kills by program; status 1 if anything was found.
"""

import argparse
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "ci" / "tests"), str(ROOT / "tools")]

from launching import load_program  # noqa: E402
from tiny import noise, write_run_folder  # noqa: E402

from core.errors import run_program  # noqa: E402
from core.gallery.documents import map_from_document  # noqa: E402
from core.gallery.folder.store import FolderStore  # noqa: E402

PIXELS, SIZE, BLOCK = 16, 32, 64
OLD = "name:vendor-v1"
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["core.gallery.gallery", "torch._dynamo", "launching"])


def main() -> None:
    """Parse the command line, and kill."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="in all (20)")
    parser.add_argument("--entries", type=int, default=2000, help="of the gallery (2000)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        faults, killed = kill_and_compare(Path(folder), args.entries, args.kills, args.seed)
    print(f"{killed.total()} kills:", ", ".join(f"{name} {count}" for name, count in killed.items()))
    print("\n".join(faults) or "verified after each; all galleries hold the same as the undisturbed one")
    sys.exit(bool(faults))


def kill_and_compare(folder: Path, entries: int, kills: int, seed: int) -> tuple[list[str], Counter[str]]:
    """The faults that were found, and how often each program was killed."""
    rng = np.random.default_rng(seed)
    steps = write_story(folder, entries)
    usual, states = [], []
    faults, killed = [], Counter()
    for words in steps:
        seconds, status = run(folder / "undisturbed", words)
        if status:
            sys.exit(f"{words[0]} failed undisturbed: {(folder / 'log.txt').read_text()}")
        if words[0] != "plan":
            usual.append(seconds)
            states.append(contents(folder / "undisturbed"))
    steps = [words for words in steps if words[0] != "plan"]
    killed.update({words[0]: 0 for words in steps})
    for attempt in range(10 * kills):
        gallery = folder / f"killed{attempt}"
        for words, seconds, state in zip(steps, usual, states):
            is_next = killed.total() < kills and killed[words[0]] == min(killed.values())
            if is_next and run(gallery, words, rng.uniform(0, seconds))[1] == -signal.SIGKILL:
                killed[words[0]] += 1
                faults += [f"{words[0]}, killed: {fault}" for fault in faults_of(gallery)]
            run(gallery, words)  # again, which is an error where it was done
            faults += [f"{words[0]}: {fault}" for fault in faults_of(gallery)]
            found = contents(gallery)
            faults += [f"{words[0]}: {part} is another" for part in state | found if found.get(part) != state.get(part)]
        shutil.rmtree(gallery)
        if killed.total() == kills:
            break
    return faults, killed


def write_story(folder: Path, entries: int) -> list[list[str]]:
    """Made data in a folder, and the commands of the story, without the gallery's place."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    write_run_folder(folder / "new", embedding_size=SIZE, image_size=PIXELS)
    parts = {"first": entries, "more": entries // 4, "late": entries // 4}
    start = 0
    for part, count in parts.items():
        names = [f"person {number}" for number in range(start, start + count)]
        for name, image in zip(names, noise(rng, count, PIXELS)):
            cv2.imwrite(str(folder / "images" / f"{name}.png"), image)
        (folder / f"{part}.txt").write_text("".join(f"{name}\n" for name in names))
        (folder / f"{part}_images.txt").write_text("".join(f"images/{name}.png\t{name}\n" for name in names))
        for model in ("old", "new"):
            np.save(folder / f"{part}_{model}.npy", rng.standard_normal((count, SIZE)).astype(np.float32))
        start += count
    identities = np.arange(200) // 5
    centres = rng.standard_normal((2, identities.max() + 1, SIZE))
    for model, of_model in zip(("old", "new"), centres):
        noisy = of_model[identities] + 0.5 * rng.standard_normal((len(identities), SIZE))
        np.save(folder / f"pairs_{model}.npy", noisy.astype(np.float32))
    (folder / "identities.txt").write_text("".join(f"{identity}\n" for identity in identities))

    def vectors(part: str, *models: str) -> list[str]:
        words = ["--ids", f"{part}.txt", "--images", f"{part}_images.txt"]
        for model in models:
            words += ["--vectors", f"{part}_{model}.npy", "--model", OLD if model == "old" else "new"]
        return words

    backfill = [
        "backfill",
        "--plan",
        "plan",
        "--road",
        "gallery_map",
        "--block",
        str(BLOCK),
        "--batch-size",
        str(BLOCK),
    ]
    backfill += ["--num-workers", "0", "--device", "cpu"]
    pairs = ["--pairs", "pairs_old.npy", "pairs_new.npy", "--labels", "identities.txt"]
    return [
        ["create", *vectors("first", "old")],
        ["plan", "--new", "new", *pairs, "--out", "plan", "--device", "cpu"],
        ["insert", *vectors("more", "old")],
        [*backfill, "--share", "0.5"],
        ["rollback"],
        [*backfill, "--share", "1"],
        ["insert", *vectors("late", "old", "new")],
        ["commit"],
    ]


def run(gallery: Path, words: list[str], kill_after: float | None = None) -> tuple[float, int]:
    """Run a command in the gallery's parent folder: its seconds, without the start of Python, and its exit status."""
    begun, begins = CONTEXT.Pipe(duplex=False)
    arguments = [words[0], gallery.name, *words[1:]]
    process = CONTEXT.Process(target=work, args=(str(gallery.parent), arguments, begins))
    process.start()
    begins.close()
    begun.recv()
    started = time.monotonic()
    process.join(kill_after)
    if process.is_alive() and kill_after is not None:
        process.kill()
    process.join()
    assert process.exitcode is not None
    return time.monotonic() - started, process.exitcode


def work(folder: str, arguments: list[str], begins: Connection) -> None:
    """In the new process: one call of tools/gallery.py."""
    os.chdir(folder)
    with open("log.txt", "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    torch.set_num_threads(1)
    tool = load_program(ROOT / "tools" / "gallery.py")
    sys.argv = ["gallery.py", *arguments]
    begins.send(None)
    run_program(tool.main)


def faults_of(gallery: Path) -> list[str]:
    """What `verify` finds; nothing where there is no gallery yet."""
    if not gallery.exists():
        return []
    store = FolderStore.open(gallery)
    try:
        return store.verify()
    finally:
        store.close()


def contents(gallery: Path) -> dict[str, object]:
    """Classes and images by id, vectors by version and id, and what the documents hold."""
    store = FolderStore.open(gallery)
    try:
        blocks = list(store.entries())
        held: dict[str, object] = {name: store.document(name) for name in ("upgrade", "calibrations", "failed")}
        for name in ("query_map", "gallery_map"):
            document = store.document(name)
            held[name] = document and map_from_document(document).fingerprint
        held["entries"] = {
            name: (label, image)
            for block in blocks
            for name, label, image in zip(block.ids, block.labels, block.images)
        }
        for key in store.versions():
            held[key] = {}
            lacking = {row for block in store.entries(lacking=key) for row in block.rows.tolist()}
            for block in blocks:
                there = [at for at, row in enumerate(block.rows.tolist()) if row not in lacking]
                vectors = store.vectors(key, block.rows[there])
                held[key] |= {block.ids[at]: vector.tobytes() for at, vector in zip(there, vectors)}
        return held
    finally:
        store.close()


if __name__ == "__main__":
    main()
