"""Train and evaluate with two revisions of this repository and compare every number, for changes that may move none.

    python ci/compare_revisions.py main                        a revision against the working tree as it is
    python ci/compare_revisions.py df92676 3eb900c --ranks 1 2  two revisions, on one process and on two
    python ci/compare_revisions.py main --methods lce --keep outputs
    python ci/compare_revisions.py main --demo                 also the demo of seed 0, some minutes for each revision

Both revisions make the built-in glyphs, a few hundred images, which must come out byte for byte the same. On those of
the first revision each trains old models and then, from its own old model, the eight methods: with the config of the
faces on other classes, and with that of the landmarks on extended data and other settings of the method. Compared are
the weights bit for bit, the losses, learning rate and gradient norm of every step, and the metrics of cross-tests. All
runs on the CPU with one thread. Prints a table and exits with status 1 if anything differs or fails, else with 0.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from trees import last_line, start, write_tree

METHODS = ("advbct", "bct", "hot_refresh", "l2", "lce", "mixbct", "nccl", "unibct")
SIDES = ("first", "second")
TRAINING = ("device=cpu", "num_workers=0", "frequent=1", "batch_size=32", "num_epoch=2")
FACES = {"unibct": ("refine_epochs=(1,)",), "nccl": ("queue_size=256",)}
LANDMARKS = {
    "advbct": ("sample_rate=0.5", "loss=arcface"),
    "bct": (),
    "hot_refresh": ("new_to_new=False", "gradient_acc=2"),
    "l2": ("threshold=0.2", "optimizer=adamw", "lr=0.001"),
    "lce": ("transform_blocks=2",),
    "mixbct": ("scale_dimensions=True", "loss=cosface"),
    "nccl": ("credible_only=True", "queue_size=256"),
    "unibct": ("schedule=cosine", "warmup_epoch=1"),
}
"""Settings that take other branches of the code than the configs do."""
COMPARED = ("step", "epoch", "loss", "lr", "grad_norm")


@dataclass
class Outcome:
    """What came of one run of both revisions: an empty `difference` if it was the same."""

    name: str
    detail: str = ""
    difference: str = ""


@dataclass
class Comparison:
    """The trees of the two revisions, the folder of what they write, and the outcomes so far."""

    trees: tuple[Path, Path]
    folder: Path
    outcomes: list[Outcome] = field(default_factory=list)

    def run(self, name: str, *words: object, folder: str = ".") -> bool:
        """Run `python words` in both trees at once, `{out}` in a word being the revision's output folder.

        A failure of either is an outcome; returns whether both succeeded.
        """
        started, processes = time.monotonic(), []
        for side, tree in zip(SIDES, self.trees):
            log = self.folder / side / "logs" / f"{name.replace('/', '_').replace(' ', '_')}.txt"
            own = [str(word).format(out=self.folder / side) for word in words]
            processes.append((side, log, start(tree, log, *own, folder=folder)))
        failed = [f"{side}: status {status}, {last_line(log)}" for side, log, p in processes if (status := p.wait())]
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        if failed:
            self.outcomes.append(Outcome(name, difference="; ".join(failed)))
        return not failed

    def compare(self, name: str, path: str, read, difference) -> None:
        """Add the outcome of comparing what `read` makes of the file or folder at `path` of both outputs."""
        try:
            first, second = (read(self.folder / side / path) for side in SIDES)
        except (OSError, ValueError, KeyError) as error:
            self.outcomes.append(Outcome(name, difference=f"{type(error).__name__}: {error}"))
            return
        self.outcomes.append(Outcome(name, summary(first), difference(first, second)))


def main() -> int:
    """Run both revisions, print the table, and return the exit status."""
    args = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="compare_revisions_") as temporary:
        trees = tuple(
            write_tree(revision, Path(temporary) / side) for side, revision in zip(SIDES, (args.first, args.second))
        )
        comparison = Comparison(trees, (args.keep or Path(temporary) / "outputs").resolve())
        compare_data(comparison)
        for ranks in args.ranks:
            compare_trainings(comparison, args.methods, ranks)
        if 1 in args.ranks:
            compare_evaluations(comparison, args.methods[0])
        if args.demo and comparison.run("demo", "tools/demo.py", "--seed", 0, "--out", "{out}/demo"):
            comparison.compare("demo", "demo/results.json", read_numbers, number_difference)
    print_table(comparison.outcomes)
    return int(any(outcome.difference for outcome in comparison.outcomes))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compare what two revisions of this repository compute.")
    parser.add_argument("first", help="a git revision")
    parser.add_argument("second", nargs="?", help="another one (default: the working tree as it is)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, metavar="METHOD", help="only these")
    parser.add_argument(
        "--ranks", nargs="+", type=int, default=[1], metavar="N", help="numbers of processes to train on"
    )
    parser.add_argument("--demo", action="store_true", help="compare the demo's results.json of seed 0 too")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep all outputs and logs in this new folder")
    args = parser.parse_args()
    if args.keep and args.keep.exists():
        parser.error(f"--keep {args.keep} exists already: name a new folder")
    return args


def compare_data(comparison: Comparison) -> None:
    """Make and split the glyphs."""
    data = ("glyphs", "--out", "{out}/data", "--identities", 60)
    split = ("--rec", "{out}/data/train", "--mode", "class", "--ratio", 0.3)
    if comparison.run("data", "tools/make_dataset.py", *data) and comparison.run(
        "split", "tools/split_dataset.py", *split
    ):
        comparison.compare("data", "data", read_files, number_difference)


def compare_trainings(comparison: Comparison, methods: tuple[str, ...], ranks: int) -> None:
    """The old models of the two configs, and the methods with each of them."""
    for config, new_part, own in (("glyphs", "train_part_70_class", FACES), ("glyphs_retrieval", "train", LANDMARKS)):
        old = f"ranks{ranks}/{config}/old"
        if not train(comparison, "old_model", config, old, ranks, "train_part_30_class"):
            continue
        for method in methods:
            output = f"ranks{ranks}/{config}/{method}"
            old_model = (f"old_model={{out}}/{old}", f"features={{out}}/{old}/features")
            train(comparison, f"methods/{method}", config, output, ranks, new_part, *old_model, *own.get(method, ()))


def train(
    comparison: Comparison, program: str, config: str, output: str, ranks: int, part: str, *settings: str
) -> bool:
    """One training of both revisions, and the comparison of what it leaves."""
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}") if ranks > 1 else ()
    paths = (f"rec={comparison.folder / SIDES[0] / 'data' / part}", f"output={{out}}/{output}")
    command = (*launcher, "train.py", f"configs/{config}.py", *paths, *TRAINING, *settings)
    if not comparison.run(output, *command, folder=program):
        return False
    comparison.compare(f"{output} weights", output, read_weights, weight_difference)
    comparison.compare(f"{output} log", f"{output}/metrics.jsonl", read_log, number_difference)
    return True


def compare_evaluations(comparison: Comparison, method: str) -> None:
    """Cross-tests of a method's trained models against the old ones: 1:1, 1:N and retrieval."""
    data = comparison.folder / SIDES[0] / "data" / "eval"
    faces, landmarks = ("tools/ijbc_eval.py",), ("tools/roxford_eval.py", "--dataset", "roxford5k")
    for task, config, program in (
        ("1_1", "glyphs", faces),
        ("1_n", "glyphs", (*faces, "-N")),
        ("roxford5k", "glyphs_retrieval", landmarks),
    ):
        folder = f"{{out}}/ranks1/{config}"
        models = ("-m", f"{folder}/{method}", "-m_old", f"{folder}/old")
        output = f"cross_{task}"
        if comparison.run(
            output, *program, *models, "--data-path", data, "--device", "cpu", "--out", f"{{out}}/{output}"
        ):  # fmt: skip
            comparison.compare(output, f"{output}/results.json", read_metrics, number_difference)


def read_files(folder: Path) -> dict[str, object]:
    """The contents of all files but the JSON, which names the command and the revision."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def read_weights(run: Path) -> dict[str, torch.Tensor]:
    """The tensors of model.pt and, where the run has one, classifier.pt."""
    files = [run / "model.pt", *run.glob("classifier.pt")]
    loaded = {path.stem: torch.load(path, map_location="cpu", weights_only=True) for path in files}
    return {f"{stem}.{name}": tensor for stem, tensors in loaded.items() for name, tensor in tensors.items()}


def read_log(path: Path) -> dict[str, object]:
    """Losses, learning rate and gradient norm by step."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {
        f"step {line['step']} {key}": value
        for line in lines
        for key, value in line.items()
        if key in COMPARED or key.startswith("loss/")
    }


def read_metrics(path: Path) -> dict[str, object]:
    """The metrics of an evaluation's results.json."""
    return dict(leaves(json.loads(path.read_text())["metrics"]))


def read_numbers(path: Path) -> dict[str, object]:
    """All values of a JSON file by where they stand."""
    return dict(leaves(json.loads(path.read_text())))


def leaves(value: object, place: str = "") -> Iterator[tuple[str, object]]:
    """Each value that is neither a dict nor a list, with the keys on the way to it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield place, value
    for key, part in items or ():
        yield from leaves(part, f"{place}/{key}" if place else str(key))


def number_difference(first: dict[str, object], second: dict[str, object]) -> str:
    """Empty if the values are the same under the same names, else how many differ and which is the first."""
    if first.keys() != second.keys():
        return f"names differ: {', '.join(sorted(first.keys() ^ second.keys())[:4])}"
    differing = [name for name in first if first[name] != second[name]]
    if not differing:
        return ""
    name = differing[0]
    values = "" if isinstance(first[name], bytes) else f": {first[name]} / {second[name]}"
    return f"{len(differing)} of {len(first)} differ, first {name}{values}"


def weight_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> str:
    """Empty if the tensors have the same names, types, shapes and bits, else how they differ."""
    if first.keys() != second.keys():
        return f"names differ: {', '.join(sorted(first.keys() ^ second.keys())[:4])}"
    pairs = {name: (first[name], second[name]) for name in first}
    shapes = [name for name, (a, b) in pairs.items() if (a.dtype, a.shape) != (b.dtype, b.shape)]
    if shapes:
        return f"type or shape of {shapes[0]} differs"
    differing = [name for name, (a, b) in pairs.items() if a.numpy().tobytes() != b.numpy().tobytes()]
    if not differing:
        return ""
    largest = max(float((pairs[name][0].double() - pairs[name][1].double()).abs().max()) for name in differing)
    return f"{len(differing)} of {len(first)} tensors differ, by up to {largest:.1e}"


def summary(values: dict[str, object]) -> str:
    """How much was compared."""
    tensors = [value for value in values.values() if isinstance(value, torch.Tensor)]
    if tensors:
        return f"{len(tensors)} tensors, {sum(tensor.numel() for tensor in tensors)} numbers"
    if any(isinstance(value, bytes) for value in values.values()):
        return f"{len(values)} files"
    losses = [value for name, value in values.items() if name.endswith(" loss")]
    return f"{len(values)} numbers" + (f", {len(losses)} steps, last loss {losses[-1]:.4f}" if losses else "")


def print_table(outcomes: list[Outcome]) -> None:
    """A line for each outcome, and how many were the same."""
    width = max(len(outcome.name) for outcome in outcomes)
    for outcome in outcomes:
        print(f"{outcome.name:<{width}}  {outcome.difference or 'same':<10}  {outcome.detail}".rstrip())
    same = sum(not outcome.difference for outcome in outcomes)
    print(f"\n{same} of {len(outcomes)} comparisons are the same")


if __name__ == "__main__":
    sys.exit(main())
