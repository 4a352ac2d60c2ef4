"""Run every program with its output on a disk that is too small for it, and see how each ends.

    python ci/full_disk.py                       as root, who may mount a small file system in memory
    python ci/full_disk.py --only export split --shares 0 50

Each program is run with room enough first, which tells how much of the disk it takes. Then it gets a share of that:
once as it is, when it should refuse before its work, and once with its own look at the free room blinded, as if others
took the room while it works. It has to end with status 2 and one line that names a path on the disk, to leave nothing
behind but what its next start goes on with, and to end as undisturbed when it is started again with room enough.
Status 1 if one does not.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import torch
from torch.distributed import TCPStore

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "ci"), str(ROOT / "ci" / "tests"), str(ROOT / "ci" / "tests" / "evaluation")]

from kill_gallery import contents as held  # noqa: E402
from kill_gallery import faults_of, write_story  # noqa: E402
from landmark_trees import write_revisited_tree  # noqa: E402
from launching import free_port, run_program_file  # noqa: E402
from tiny import noise, write_map_run, write_records, write_run_folder, write_verification_set  # noqa: E402
from trees import last_line  # noqa: E402

from core.models.weights import fingerprint  # noqa: E402
from core.room import require_room  # noqa: E402

SHARES = (0, 25, 50, 75, 95)
SPACE = 256 << 20
"""Bytes of the small disk before it is filled."""
SECONDS = 300
CONTEXT = multiprocessing.get_context("forkserver")
MODULES = ("core.program", "torch._dynamo", "torch.utils.tensorboard", "core.gallery.gallery", "matplotlib.pyplot")
CONTEXT.set_forkserver_preload([*MODULES, "core.models.export", "full_disk"])
STORES = r"(cache/.*|(old_|new_)?features)/[\w.]+"
TRAINED = (r"run/([\w.]+|\w+/(map\.pt|config\.json)|tensorboard/.*|checkpoints/step_\d+/.*)", STORES)
TESTED = (r"test/([\w.]+|pictures/.*)", STORES)
GALLERY = r"gallery/(gallery\.sqlite-\w+|work\.lock)"
VARYING = r"(.*/)?(tensorboard/.*|metrics\.jsonl|checkpoint\.pt|checkpoints/.*)|gallery/.*"
"""Files whose bytes differ from run to run: they hold times, or an order in which they were written."""
UNFINISHED = r"(^|/)\.(?!metadata)|\.(tmp|partial|creating)(/|$)"


@dataclass(frozen=True)
class Case:
    """A program and its words."""

    name: str
    words: str
    before: tuple[str, ...] = ()
    """Commands that are run first, with room enough."""
    keeps: tuple[str, ...] = ()
    """What may be left for the next start, beside what was there before: patterns of paths."""
    ranks: int = 1
    copies: tuple[str, ...] = ()
    """Inputs that are copied to the small disk first."""


TINY = "network=r18 network_options.width=8 network_options.depth=1 embedding_size=8 batch_size=16 num_epoch=3 "
TINY += "warmup_epoch=0 lr=0.02 frequent=2 margin_scale=16"
CLASSIFIER = {"loss": "softmax", "margin": 0.2, "margin_scale": 16.0, "classifier_bias": False}
"""Of the new model, which FastFill asks for."""
SHORT = "num_epoch=2 warmup_epoch=1 pairs_per_step=20 frequent=2"
MAP_SETTINGS = {"fct": f"hidden=8 {SHORT}", "fastfill": f"hidden=8 {SHORT}", "lambda_orthogonality": SHORT}


def cases(inputs: Path, out: Path) -> Iterator[Case]:
    """All programs; a training of each method."""
    yield Case("make_dataset", f"tools/make_dataset.py folder --src {inputs}/people --image-size 16 --out {out}/data")
    yield Case("split records", f"tools/split_dataset.py --rec {inputs}/train --mode class --out {out}")
    yield Case("split list", f"tools/split_dataset.py --rec {inputs}/list.txt --mode class --out {out}")
    yield Case("index_records", f"tools/index_records.py {out}/train", copies=("train.rec",))
    exported = (r"images/\d+/\d+\.jpg", r"images/\w+\.json")
    yield Case("export_images", f"tools/export_images.py --rec {inputs}/train --out {out}/images", keeps=exported)
    landmarks = f"tools/prepare_gldv2.py --csv {inputs}/csv --images {inputs}/gldv2 --out {out}"
    yield Case("prepare_gldv2", landmarks)
    features = f"tools/extract_features.py -m {inputs}/old --rec {inputs}/train --num-workers 0 --device cpu "
    features += f"--out {out}/features"
    yield Case("extract_features", features)
    yield Case("average_features", f"tools/average_features.py {out}/features", (features,))
    yield Case("denoise_features", f"tools/denoise_features.py {out}/features", (features,))
    yield Case("export_onnx", f"tools/export_onnx.py -m {inputs}/old -o {out}/old.onnx")
    vectors = f"--in {inputs}/vectors.npy --out {out}/mapped.npy"
    yield Case("map_embeddings", f"tools/map_embeddings.py {inputs}/map {vectors}")
    for tool, words, data in (
        ("ijbc_eval", "-m {0}/new -m_old {0}/old", "data/eval"),
        ("ijbc_eval", "-N -m {0}/new", "data/eval"),
        ("roxford_eval", "--dataset roxford5k --pictures 2 -m {0}/new -m_old {0}/old", "oxford"),
        ("verify", "-m {0}/new", "pairs.bin"),
        ("compatibility_matrix", "--models {0}/old {0}/new", "data/eval"),
        ("backfill_curve", "-m {0}/new -m_old {0}/old", "data/eval"),
    ):
        words = f"tools/{tool}.py {words.format(inputs)} --data-path {inputs}/{data} --cache {out}/cache"
        words += f" --out {out}/test --num-workers 0 --device cpu"
        yield Case(tool + " -N" * (" -N" in words), words, keeps=TESTED)
    yield from trainings(inputs, out)
    yield from gallery_cases(inputs, out)


def trainings(inputs: Path, out: Path) -> Iterator[Case]:
    """The old model, also on two ranks, and each method."""
    common = f"configs/glyphs.py rec={inputs}/train output={out}/run num_workers=0 device=cpu"
    yield Case("old_model", f"old_model/train.py {common} {TINY}", keeps=TRAINED)
    yield Case("old_model on 2 ranks", f"old_model/train.py {common} {TINY}", keeps=TRAINED, ranks=2)
    for program in sorted(ROOT.glob("methods/*/train.py")):
        words, source = f"{program.relative_to(ROOT)} {common} old_model={inputs}/old ", program.read_text()
        if "map_program" not in source:
            words += f"features={out}/features {TINY}"
        else:
            words += f"new_model={inputs}/new old_features={out}/old_features new_features={out}/new_features "
            words += MAP_SETTINGS.get(program.parent.name, "")
        yield Case(program.parent.name, words, keeps=TRAINED)


def gallery_cases(inputs: Path, out: Path) -> Iterator[Case]:
    """Each call that writes, on what the calls before it have made: the story of ci/kill_gallery.py."""
    before: tuple[str, ...] = ()
    for call, *words in json.loads((inputs / "story" / "calls.json").read_text()):
        paths = [str(inputs / "story" / word) if (inputs / "story" / word).exists() else word for word in words]
        paths = [f"{out}/plan" if word == "plan" else word for word in paths]
        command = f"tools/gallery.py {call} {out}/gallery {' '.join(paths)}"
        repeated = sum(f" {call} " in each for each in before)
        keeps = (r"gallery(/.*)?",) if call in ("backfill", "commit", "rollback") else (GALLERY,)
        yield Case(f"gallery {call}" + f" {repeated + 1}" * bool(repeated), command, before, keeps)
        before += (command,)
    for kind, name in (("npy", "vectors"), ("parquet", "vectors.parquet"), ("faiss", "index")):
        words = f"tools/gallery.py export {out}/gallery --format {kind} --out {out}/{name}"
        yield Case(f"gallery export {kind}", words, before[:1], (GALLERY,))
    words = f"tools/gallery.py search {out}/gallery --queries {inputs}/story/first_old.npy --model name:vendor-v1 -k 5"
    yield Case("gallery search", words + f" --out {out}/hits.parquet", before[:1], (GALLERY,))


def write_inputs(folder: Path) -> None:
    """What the cases read."""
    rng = np.random.default_rng(0)
    for person in range(80):
        (folder / "people" / f"{person}").mkdir(parents=True)
        for number, image in enumerate(noise(rng, 4, 24)):
            cv2.imwrite(str(folder / "people" / f"{person}" / f"{number}.jpg"), image)
    write_records(folder / "train", sorted([*range(6)] * 40))
    (folder / "list.txt").write_text("".join(f"people/{i % 80}/{i % 4}.jpg {i % 80}\n" for i in range(2000)))
    write_run_folder(folder / "old", 0)
    write_run_folder(folder / "new", 1)
    torch.save({"weight": torch.randn(6, 8)}, folder / "new" / "classifier.pt")
    config = json.loads((folder / "new" / "config.json").read_text()) | CLASSIFIER
    (folder / "new" / "config.json").write_text(json.dumps(config))
    write_map_run(folder / "map", folder / "old", folder / "new", "old_to_new")
    np.save(folder / "vectors.npy", rng.standard_normal((4000, 8)).astype(np.float32))
    write_revisited_tree(folder / "oxford")
    write_verification_set(folder / "pairs.bin")
    write_landmarks(folder)
    (folder / "story").mkdir()
    (folder / "story" / "calls.json").write_text(json.dumps(write_story(folder / "story", 400)))
    words = f"tools/make_dataset.py folder --src {folder}/people --image-size 16 --out {folder}/data"
    if run(words, folder / "log.txt")[0]:
        sys.exit((folder / "log.txt").read_text())


def write_landmarks(folder: Path) -> None:
    """GLDv2's csv files and empty images."""
    (folder / "csv").mkdir()
    train = {landmark: [f"{landmark:02d}{i:014d}" for i in range(20)] for landmark in range(40)}
    index, queries = [f"1a{i:014d}" for i in range(300)], [f"2b{i:014d}" for i in range(50)]
    lines = [f"{landmark},{' '.join(images)}" for landmark, images in train.items()]
    (folder / "csv" / "train_clean.csv").write_text("\n".join(["landmark_id,images", *lines]) + "\n")
    (folder / "csv" / "index.csv").write_text("\n".join(["id", *index]) + "\n")
    lines = [f"{query},{index[i]},Private" for i, query in enumerate(queries)]
    (folder / "csv" / "retrieval_solution_v2.1.csv").write_text("\n".join(["id,images,Usage", *lines]) + "\n")
    for part, images in (("train", sum(train.values(), [])), ("index", index), ("test", queries)):
        for image in images:
            file = folder / "gldv2" / part / image[0] / image[1] / image[2] / f"{image}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()


class SmallDisk:
    """A file system in memory, with a folder `out` for a program, and a file that takes the room it shall not have."""

    def __init__(self, place: Path, size: int = SPACE):
        self.place, self.size, self.out, self._filler = place, size, place / "out", place / "filler"

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """`OSError` or `CalledProcessError` where it cannot be mounted."""
        self.place.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={self.size}", "full_disk", str(self.place)], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", "--lazy", str(self.place)], check=True)

    def free(self) -> int:
        """Bytes."""
        return shutil.disk_usage(self.place).free

    def leave(self, room: int) -> None:
        """Take all the room but so many bytes."""
        with open(self._filler, "ab") as file:
            if (rest := self.free() - room) > 0:
                os.posix_fallocate(file.fileno(), file.tell(), rest)

    def make_room(self) -> None:
        """Give it all back."""
        self._filler.unlink(missing_ok=True)

    def restore(self, state: Path) -> None:
        """Put a copy of `state` in place of all that is there."""
        self.make_room()
        shutil.rmtree(self.out, ignore_errors=True)
        shutil.copytree(state, self.out)


def run(
    words: str, log: Path, ranks: int = 1, blind: bool = False, watch: Callable[[], None] = lambda: None
) -> list[int]:
    """Exit statuses by rank of a command line, with its output in `log` and, of other ranks, beside it."""
    program, *arguments = words.split()
    group, processes, store = {}, [], None
    if ranks > 1:  # with the store of a launcher, through which the ranks agree on the one that prints
        port = free_port()
        store = TCPStore("127.0.0.1", int(port), is_master=True, wait_for_workers=False)
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks)}
        group |= {"TORCHELASTIC_RUN_ID": "full_disk", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for rank in range(ranks):
        environment = {"RANK": str(rank), **group} if ranks > 1 else {}
        file = log if rank == 0 else log.with_name(f"{log.name}.{rank}")
        task = (str(ROOT / program), arguments, environment, str(file), blind)
        processes.append(CONTEXT.Process(target=work, args=task))
        processes[-1].start()
    ends = time.monotonic() + SECONDS
    while any(process.is_alive() for process in processes) and time.monotonic() < ends:
        watch()
        processes[0].join(0.002) if processes[0].is_alive() else processes[-1].join(0.002)
    for process in processes:
        process.kill()
        process.join()
    del store
    return [process.exitcode or 0 for process in processes]


def work(program: str, arguments: list[str], environment: dict[str, str], log: str, blind: bool) -> None:
    """In the new process: the program; `blind`: it never asks how much room there is."""
    if blind:
        require_room.__code__ = (lambda path, needed: None).__code__  # wherever it has been imported to
    run_program_file(program, arguments, environment, log)


def contents(folder: Path) -> dict[str, str]:
    """Checksum of each file by its path, of files of weights that of the tensors; and all that a gallery holds."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    found = {str(path.relative_to(folder)): checksum(path) for path in files}
    if "gallery/gallery.sqlite" in found:
        with TemporaryDirectory() as place:  # a full disk has no room for what SQLite makes to open it
            copy = shutil.copytree(folder / "gallery", Path(place) / "gallery")
            found["gallery"] = repr((faults_of(copy), held(copy)))
    return found


def checksum(path: Path) -> str:
    """Of a file's contents."""
    if path.name in ("model.pt", "map.pt", "classifier.pt"):  # the file has the temporary name in it
        return fingerprint(torch.load(path, weights_only=True))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def differences(found: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """Paths that are in one alone, or whose contents differ where they do not vary from run to run."""
    differing = {path for path in found.keys() & wanted.keys() if found[path] != wanted[path]}
    alone = found.keys() ^ wanted.keys()
    return sorted(path for path in differing | alone if not re.fullmatch(VARYING, path))


def check(case: Case, disk: SmallDisk, folder: Path, shares: Sequence[int]) -> Iterator[str]:
    """Run a case with all shares of room; what is wrong, a line each."""
    state, log = folder / "state", folder / "log.txt"
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir()
    for name in case.copies:
        shutil.copy(folder / "in" / name, state / name)
    disk.restore(state)
    for words in case.before:
        if any(run(words, log)):
            yield f"the command before it failed: {words}: {last_line(log)}"
            return
    shutil.rmtree(state)
    shutil.copytree(disk.out, state)
    before, free, least = contents(state), disk.free(), [disk.free()]
    if any(run(case.words, log, case.ranks, watch=lambda: least.append(disk.free()))):
        yield f"it failed with room enough: {log.read_text()}"
        return
    needed, undisturbed = free - min(*least, disk.free()), contents(disk.out)
    ended: Counter[str] = Counter()
    for share in shares:
        for blind in (False, True):
            disk.restore(state)
            disk.leave(needed * share // 100)
            statuses = run(case.words, log, case.ranks, blind)
            line, left = last_line(log), contents(disk.out)
            where = f"{share} %{', blind' * blind}"
            if not any(statuses) and not differences(left, undisturbed):
                ended["done"] += 1
                continue
            ended["refused" if not blind else "stopped"] += 1
            ended["with a size"] += bool(re.search(r"\d (bytes|[kMGT]B)\b", line))
            text = "".join(path.read_text() for path in folder.glob("log.txt*"))
            yield from (f"{where}: {fault}" for fault in faults(case, statuses, line, text, str(disk.place)))
            for path, value in left.items():
                kept = any(re.fullmatch(pattern, path) for pattern in case.keeps)
                if before.get(path) != value and (not kept or re.search(UNFINISHED, path)):
                    yield f"{where}: it leaves {path}"
            yield from (f"{where}: {path} is gone" for path in before.keys() - left.keys() if not kept_name(case, path))
            disk.make_room()
            if any(run(case.words, log, case.ranks)):
                yield f"{where}: with room again it fails: {last_line(log)}"
            else:
                found = differences(contents(disk.out), undisturbed)
                yield from (f"{where}: with room again {path} is another" for path in found)
    print(f"{case.name}: {needed} bytes;", ", ".join(f"{count} {what}" for what, count in ended.items()), flush=True)


def kept_name(case: Case, path: str) -> bool:
    return any(re.fullmatch(pattern, path) for pattern in case.keeps)


def faults(case: Case, statuses: list[int], line: str, text: str, place: str) -> Iterator[str]:
    """What is wrong with the end of a program that had too little room."""
    if any(status != 2 for status in statuses):
        yield f"status {statuses}: {text[-1500:]}"
    elif text.count("error: ") != 1 or "Traceback" in text:
        yield f"not one line: {text[-1500:]}"
    elif case.ranks == 1 and not line.startswith("error: "):
        yield f"the last line is another: {line}"
    elif place not in text[text.index("error: ") :]:
        yield f"the line names no path: {line}"


def run_cases(folder: Path, only: Sequence[str] = ("",), shares: Sequence[int] = SHARES) -> list[str]:
    """What is wrong with the cases whose names have one of the texts `only`, a line each; works in a new `folder`."""
    disk, found = SmallDisk(folder / "disk"), []
    (folder / "in").mkdir(parents=True)
    write_inputs(folder / "in")
    with disk.mounted():
        for case in cases(folder / "in", disk.out):
            if any(text in case.name for text in only):
                for fault in check(case, disk, folder, shares):
                    found.append(f"{case.name}, {fault}")
                    print(found[-1], flush=True)
    return found


def main() -> None:
    """Parse the command line, and run the cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="cases whose names have one of these")
    parser.add_argument("--shares", nargs="+", type=int, default=SHARES, metavar="N", help="per cent of what is needed")
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        found = run_cases(Path(folder) / "work", args.only, args.shares)
    print(f"{len(found)} faults")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
