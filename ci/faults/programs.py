"""Programs that write, each tiny, with what they start from and how their results are compared."""

import json
import multiprocessing
import os
import runpy
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import kill_gallery
import numpy as np
import torch
from tiny import noise, write_map_run, write_records, write_run_folder, write_verification_set

from core.files import ROOT

__all__ = ["Program", "files", "programs", "run_command"]

Contents = dict[str, object]
CONTEXT = multiprocessing.get_context("forkserver")
CPU = ("--num-workers", "0", "--device", "cpu")
TINY = (
    "network=r18", "network_options.width=8", "network_options.depth=1", "embedding_size=8", "batch_size=16",
    "num_epoch=2", "lr=0.02", "frequent=2", "margin_scale=16", "checkpoint_steps=3",
)  # fmt: skip
MAP = ("hidden=8", "num_epoch=2", "warmup_epoch=1", "pairs_per_step=40", "frequent=1")


@dataclass(frozen=True)
class Program:
    """A command line, given again after a fault."""

    name: str
    file: str
    """Below the repository's root."""
    arguments: tuple[str, ...]
    """Paths are relative to the working folder; outputs lie in `out`."""
    start: Callable[[Path], None] = lambda out: None
    """Fills `out` before, in the working folder."""
    contents: Callable[[Path], Contents] | None = None
    """What `out` holds, to be compared; None: `files`."""
    done: int = 0
    """Status of the command where its work is done already: 2 if it is then a mistake."""


def run_command(folder: str, file: str, arguments: tuple[str, ...]) -> None:
    """In a process of its own: run a command line in a folder; what it prints goes to `log.txt` there."""
    os.chdir(folder)
    with open("log.txt", "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    torch.set_num_threads(1)
    import core.embeddings.extraction

    core.embeddings.extraction.BLOCK = 16
    program = str(ROOT / file)
    sys.argv = [program, *arguments]
    sys.path.insert(0, str(Path(program).parent))
    runpy.run_path(program, run_name="__main__")


def files(out: Path) -> Contents:
    """Every file's bytes by path, but for what depends on the clock, and means of losses since a run was resumed."""
    found: Contents = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if "tensorboard" in path.parts:
            continue
        if path.is_dir():
            found[name] = "folder"
        elif path.name == "metrics.jsonl":
            lines = map(json.loads, path.read_text().splitlines())
            found[name] = [[line[key] for key in ("step", "epoch", "lr")] for line in lines]
        elif path.name == ".metadata":
            found[name] = "file"  # of torch.distributed.checkpoint: it has times in it
        else:
            found[name] = path.read_bytes()
    return found


def galleries(out: Path) -> Contents:
    """What the gallery in `out` holds, and what is damaged."""
    if not (out / "gallery").exists():
        return {}
    return {**kill_gallery.contents(out / "gallery"), "faults": kill_gallery.faults_of(out / "gallery")}


def programs(folder: Path) -> list[Program]:
    """All programs, with their inputs in the working folder `folder`, which is new."""
    folder.mkdir()
    write_records(folder / "train", sorted(list(range(6)) * 12))
    for seed, (name, size) in enumerate((("old", 8), ("new", 5))):
        write_run_folder(folder / name, seed=seed, embedding_size=size)
    write_map_run(folder / "map", folder / "new", folder / "old")
    write_verification_set(folder / "pairs.bin")
    np.save(folder / "vectors.npy", np.random.default_rng(0).standard_normal((50, 5)).astype(np.float32))
    (folder / "list.txt").write_text("".join(f"{row}.jpg {row // 4}\n" for row in range(40)))
    _write_people(folder / "people")
    return [*_trainings(folder), *_tools(), *_gallery_steps(folder / "story")]


def _trainings(folder: Path) -> list[Program]:
    def training(name: str, file: str, *words: str, **options) -> Program:
        config = str(ROOT / Path(file).parent / "configs" / "glyphs.py")
        common = (f"rec={folder}/train", f"output={folder}/out/run", "num_workers=0", "device=cpu")
        return Program(name, file, (config, *common, *words), **options)

    old = (f"old_model={folder}/old", f"features={folder}/out/features")
    models = [f"{which}_model={folder}/{which}" for which in ("old", "new")]
    models += [f"{which}_features={folder}/out/{which}_features" for which in ("old", "new")]
    over = (*TINY, "resume=false", "num_epoch=1")
    return [
        training("training", "old_model/train.py", *TINY),
        training("training over another one", "old_model/train.py", *over, start=_write_earlier_run),
        training("training with old features", "methods/mixbct/train.py", *old, *TINY),
        training("training with its own features", "methods/unibct/train.py", *old, *TINY, "refine_epochs=[1]"),
        training("linear map", "methods/linear_map/train.py", *models),
        training("trained map", "methods/fct/train.py", *models, *MAP),
    ]


def _write_earlier_run(out: Path) -> None:
    """A run folder with checkpoints of later steps than the new run has, and what belongs to them."""
    for step in (40, 80):
        (out / "run" / "checkpoints" / f"step_{step}").mkdir(parents=True)
        (out / "run" / "checkpoints" / f"step_{step}" / "position.json").write_text("{}")
    for name in ("config.json", "model.pt", "classifier.pt", "metrics.jsonl"):
        (out / "run" / name).write_text("{}\n")


def _tools() -> list[Program]:
    extract = ("--model", "old", "--rec", "train", "--out", "out/store", *CPU)
    verify = ("--data-path", "pairs.bin", "-m", "new", "--cache", "out/cache", "--out", "out/results", *CPU)
    split = ("--mode", "class", "--out", "out/parts")
    people = ("folder", "--src", "people", "--image-size", "16", "--out", "out/data")
    return [
        Program("extraction", "tools/extract_features.py", extract),
        Program("extraction over another's", "tools/extract_features.py", extract, start=_leave_extraction),
        Program("evaluation", "tools/verify.py", verify),
        Program("evaluation with a damaged cache", "tools/verify.py", verify, start=_leave_damaged_cache),
        Program("class means", "tools/average_features.py", ("out/store",), start=_copy_store),
        Program("credible rows", "tools/denoise_features.py", ("out/store", "--keep", "0.9"), start=_copy_store),
        Program("split of records", "tools/split_dataset.py", ("--rec", "train", *split)),
        Program("split of records again", "tools/split_dataset.py", ("--rec", "train", *split), start=_leave_parts),
        Program("split of a list", "tools/split_dataset.py", ("--rec", "list.txt", *split)),
        Program("data set", "tools/make_dataset.py", people),
        Program("data set again", "tools/make_dataset.py", people, start=_leave_dataset),
        Program("index", "tools/index_records.py", ("out/train",), start=_copy_records),
        Program("images", "tools/export_images.py", ("--rec", "train", "--out", "out/images")),
        Program("ONNX", "tools/export_onnx.py", ("-m", "new", "-o", "out/new.onnx")),
        Program("mapped vectors", "tools/map_embeddings.py", ("map", "--in", "vectors.npy", "--out", "out/mapped.npy")),
    ]


def _leave_extraction(out: Path) -> None:
    """A killed extraction by another model, with all blocks marked as done."""
    _copy_store(out)
    partial = out / "store.partial"
    (out / "store").rename(partial)
    described = json.loads((partial / "store.json").read_text())
    (partial / "plan.json").write_text(json.dumps({**described, "model_fingerprint": "another"}))
    (partial / "store.json").unlink()
    np.save(partial / "done.npy", np.ones(5, bool))
    features = np.load(partial / "features.npy")
    np.save(partial / "features.npy", features + 1)


def _leave_damaged_cache(out: Path) -> None:
    _run(out.parent, "tools/verify.py", "--data-path", "pairs.bin", "-m", "new", "--cache", "out/cache",
         "--out", "out/results", *CPU)  # fmt: skip
    (array,) = out.glob("cache/*/*/plain.npy")
    array.write_bytes(array.read_bytes()[:-20])


def _copy_store(out: Path) -> None:
    if not (out.parent / "store").exists():
        _run(out.parent, "tools/extract_features.py", "--model", "old", "--rec", "train", "--out", "store", *CPU)
    shutil.copytree(out.parent / "store", out / "store")


def _copy_records(out: Path) -> None:
    shutil.copy(out.parent / "train.rec", out / "train.rec")


def _leave_parts(out: Path) -> None:
    """Of another seed and mode."""
    _run(out.parent, "tools/split_dataset.py", "--rec", "train", "--mode", "data", "--seed", "3", "--out", "out/parts")
    for path in sorted((out / "parts").iterdir()):
        path.rename(path.with_name(path.name.replace("_data", "_class")))


def _leave_dataset(out: Path) -> None:
    """Of another seed, with its parts."""
    _run(out.parent, "tools/make_dataset.py", "folder", "--src", "people", "--image-size", "16", "--seed", "5",
         "--out", "out/data")  # fmt: skip
    (out / "data" / "train_part_30_class.idx").write_text("")


def _write_people(folder: Path) -> None:
    """A folder of images: 24 people of 5 images."""
    rng = np.random.default_rng(0)
    for person in range(24):
        (folder / f"person{person}").mkdir(parents=True)
        for number, image in enumerate(noise(rng, 5, 32)):
            cv2.imwrite(str(folder / f"person{person}" / f"{number}.png"), image)


def _gallery_steps(story: Path) -> list[Program]:
    """The steps of an upgrade, each from the gallery that those before it leave."""
    story.mkdir()
    steps: list[Program] = []
    for name, *words in kill_gallery.write_story(story, 150):
        arguments = tuple(
            f"{story.name}/{word}" if (story / word).exists() or word == "plan" else word for word in words
        )
        start = partial(_leave_gallery, story, tuple(steps))
        step = Program(f"gallery: {name}", "tools/gallery.py", (name, "out/gallery", *arguments), start, galleries, 2)
        steps.append(step)
    return [step for step in steps if step.name != "gallery: plan"]


def _leave_gallery(story: Path, steps: tuple[Program, ...], out: Path) -> None:
    """The gallery after some steps."""
    if not steps:
        return
    kept = story / f"after_{len(steps)}"
    if not kept.exists():
        _leave_gallery(story, steps[:-1], out)
        _run(story.parent, steps[-1].file, *steps[-1].arguments)
        shutil.copytree(out, kept)
    shutil.copytree(kept, out, dirs_exist_ok=True)


def _run(folder: Path, file: str, *arguments: str) -> None:
    """Run a command undisturbed."""
    process = CONTEXT.Process(target=run_command, args=(str(folder), file, arguments))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{file} {arguments}: {(folder / 'log.txt').read_text()}")
