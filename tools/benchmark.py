"""All methods side by side on built-in data: each trained from the same old model, tested by itself and against it.

    python tools/benchmark.py --dataset glyphs --scenario opclass
    python tools/benchmark.py --dataset glyphs --scenario exdata --methods mixbct bct --seeds 0 1 2

For each seed: data, split, one old model, one independent new model (the same network and data without an old model),
then every method. A benchmark that was stopped goes on where it was, and what is done is skipped: old models are shared
by the scenarios of the same data. Under --out it writes for each scenario report.md (tables), results.csv,
compatibility.png and commands.sh (the exact commands).
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from command_line import ArgumentParser, choose_device
from commands import Commands, shown

from core.engine.run_folder import RunFolder
from core.errors import UserError, run_program
from core.evaluation.comparison import Comparison, Entry
from core.evaluation.model_pairs import evaluate_pairs, evaluate_retrieval_pairs
from core.evaluation.retrieval import RetrievalOptions
from core.evaluation.revisited import SETUPS
from core.evaluation.revisited_files import read_revisited
from core.files import ROOT, replaced_atomically, require_writable
from core.logs import set_up_logging
from core.models.encoder import Encoder, load_encoder
from core.program import load_method
from core.progress import format_seconds
from core.settings import load_settings

METHODS = ("mixbct", "l2", "bct", "unibct", "nccl", "advbct", "lce", "hot_refresh")
FACE_SCENARIOS = {
    "opclass": ("class", "train_part_70_class", ()),
    "opdata": ("data", "train_part_70_data", ()),
    "exclass": ("class", "train", ("num_epoch=3",)),  # about as many steps as 4 epochs of 70 %
    "exdata": ("data", "train", ("num_epoch=3",)),
}
DEEPER = ("network_options.depth=2",)
"""Than the old model: with the same shape and seed a new network would start from the old one's first weights."""
LANDMARK_SCENARIOS = {
    "exclass": ("class", "train", DEEPER),
    "exdata": ("data", "train", DEEPER),
    "exbackbone_class": ("class", "train_part_30_class", (*DEEPER, "num_epoch=8")),
    "exbackbone_data": ("data", "train_part_30_data", (*DEEPER, "num_epoch=8")),
}
"""How the data is split, and the new models' records and other settings; the old model has the 30 % part."""
FACE_TESTS = {"1:N rank-1": ("1:N", "top1"), "1:1 TAR@FAR=1e-3": ("1:1", "tar@far=1e-03")}
LANDMARK_TESTS = {f"mAP {setup.title()}": f"map_{setup}" for setup in SETUPS}

Scores = dict[str, float]
Command = tuple[str, list[object]]
"""A program and its arguments."""


@dataclass(frozen=True)
class Bench:
    """What differs between the data sets: configs, images, scenarios, and the test of pairs of models."""

    config: str
    """Name of the config of each program."""
    scenarios: Mapping[str, tuple[str, str, tuple[str, ...]]]
    evaluate: Callable[[dict[str, Path], Sequence[str], Path], dict[str, Scores]]
    test_commands: Callable[[Path, Path, Path], Iterator[Command]]


def load_all(models: dict[str, Path]) -> dict[str, Encoder]:
    """The run folders' encoders, on the GPU if there is one."""
    return {name: load_encoder(path, device=choose_device("auto")) for name, path in models.items()}


def evaluate_faces(models: dict[str, Path], pairs: Sequence[str], data: Path) -> dict[str, Scores]:
    """Scores in per cent of pairs "query/gallery" of run folders on the IJB-C tree."""
    results = evaluate_pairs(load_all(models), pairs, data / "eval", cache=data / "embeddings")
    return {
        pair: {name: per_cent(result.metrics[task][metric]) for name, (task, metric) in FACE_TESTS.items()}
        for pair, result in results.items()
    }


def per_cent(rate: object) -> float:
    """A rate in per cent; NaN for one that the data cannot resolve."""
    return 100 * rate if isinstance(rate, int | float) else float("nan")


def face_commands(run: Path, old: Path, data: Path) -> Iterator[Command]:
    """The commands that find the same scores one by one."""
    for task, flags in (("1_1", ()), ("1_n", ("-N",))):
        for name, gallery in (("self", ()), ("cross", ("-m_old", old))):
            if name == "self" or run != old:
                out = ("--data-path", data / "eval", "--out", run / f"{name}_{task}")
                yield "tools/ijbc_eval.py", ["-m", run, *gallery, *flags, *out]


def evaluate_landmarks(models: dict[str, Path], pairs: Sequence[str], data: Path) -> dict[str, Scores]:
    """Scores in per cent of pairs "query/gallery" of run folders on the tree in revisited Oxford's layout."""
    encoders = load_all(models)
    test = read_revisited(data / "eval", "roxford5k")
    options = RetrievalOptions(num_workers=0, cache=data / "embeddings")
    results = evaluate_retrieval_pairs(encoders, pairs, test, options)
    return {
        pair: {name: per_cent(metrics[metric]) for name, metric in LANDMARK_TESTS.items()}
        for pair, metrics in results.items()
    }


def landmark_commands(run: Path, old: Path, data: Path) -> Iterator[Command]:
    """The commands that find the same scores one by one."""
    test = ("--dataset", "roxford5k", "--data-path", data / "eval")
    yield "tools/roxford_eval.py", [*test, "-m", run, "--out", run / "self_roxford5k"]
    if run != old:
        yield "tools/roxford_eval.py", [*test, "-m", run, "-m_old", old, "--out", run / "cross_roxford5k"]


BENCHES = {
    "glyphs": Bench("glyphs", FACE_SCENARIOS, evaluate_faces, face_commands),
    "glyphs-retrieval": Bench("glyphs_retrieval", LANDMARK_SCENARIOS, evaluate_landmarks, landmark_commands),
}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = ArgumentParser("Train and compare all methods on built-in data.")
    parser.add_argument("--dataset", choices=BENCHES, default="glyphs", help="data set")
    scenarios = "; ".join(f"{name}: {', '.join(bench.scenarios)}" for name, bench in BENCHES.items())
    parser.add_argument("--scenario", default="exdata", help=f"what old and new model see ({scenarios})")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=METHODS, metavar="METHOD", help="which methods"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="seeds of data and trainings")
    parser.add_argument("--out", type=Path, help="folder of all results (default: work_dirs/benchmark/<dataset>)")
    overrides = "settings of every training, for example num_epoch=8 device=cuda"
    parser.add_argument("--overrides", nargs="+", default=[], metavar="key=value", help=overrides)
    args = parser.parse_args()
    known = BENCHES[args.dataset].scenarios
    if args.scenario not in known:
        raise UserError(f"unknown scenario {args.scenario!r}: {args.dataset} has {', '.join(known)}; choose one")
    args.out = (args.out or ROOT / "work_dirs" / "benchmark" / args.dataset).resolve()
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out {args.out} is a file: name a folder")
    require_writable(args.out)
    return args


def main() -> None:
    """Run what is not done yet, then write the tables."""
    args = parse_arguments()
    set_up_logging()
    bench = BENCHES[args.dataset]
    started, total, done = time.monotonic(), len(args.seeds) * (len(args.methods) + 2), 0
    commands, entries = Commands(), []
    for seed in args.seeds:
        for method in ("old", "independent", *args.methods):
            done += 1
            spent = format_seconds(time.monotonic() - started)
            print(f"\n[{done}/{total}] {args.scenario}, seed {seed}: {method} ({spent} so far)", flush=True)
            entries.append(run_method(bench, args, method, seed, commands))
    folder = args.out / args.scenario
    report = write_report(folder, Comparison(entries), args, commands)
    print(f"\n{report}\nreport: {folder / 'report.md'} ({format_seconds(time.monotonic() - started)})")


def run_method(bench: Bench, args: argparse.Namespace, method: str, seed: int, commands: Commands) -> Entry:
    """Train and test one model of one seed, or read what an earlier benchmark found.

    "old" is shared by the scenarios that have its part of the data; all others are the scenario's own.
    """
    mode, records, extension = bench.scenarios[args.scenario]
    folder = args.out / f"seed_{seed}"
    data, old = folder / "data", folder / f"old_{mode}"
    run = old if method == "old" else folder / args.scenario / method
    done = (run / "result.json").is_file()

    made = (data / "dataset.json").exists()
    commands.run("tools/make_dataset.py", "glyphs", "--out", data, "--seed", seed, done=made)
    split = ("--rec", data / "train", "--mode", mode, "--ratio", 0.3, "--seed", seed)
    commands.run("tools/split_dataset.py", *split, done=(data / f"train_part_70_{mode}.idx").exists())
    settings = [f"rec={data / records}", f"seed={seed}", f"output={run}"]
    if method == "old":
        program, config = "old_model/train.py", f"old_model/configs/{bench.config}.py"
        settings[0] = f"rec={data / f'train_part_30_{mode}'}"
    elif method == "independent":
        program, config = "old_model/train.py", f"old_model/configs/{bench.config}_independent.py"
        settings += extension
    else:
        program, config = f"methods/{method}/train.py", f"methods/{method}/configs/{bench.config}.py"
        settings += [*extension, f"old_model={old}", f"features={old / f'features_{records}'}"]
    settings += args.overrides
    _require_same_settings(run, program, config, [shown(setting) for setting in settings])
    commands.run(program, config, *settings, done=done)
    if not done:
        tested = bench.evaluate({"new": run, "old": old}, ["new/new", "new/old"], data)
        result = {"self_test": tested["new/new"], "cross_test": tested["new/old"]}
        with replaced_atomically(run / "result.json") as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n")
    for program, arguments in bench.test_commands(run, old, data):
        commands.run(program, *arguments, done=True)
    return Entry(method, seed, **_read_result(run / "result.json"))


def _require_same_settings(run: Path, program: str, config: str, settings: list[str]) -> None:
    """`UserError` if the run folder has a training that was begun with other settings than these give today."""
    folder = RunFolder(run)
    now = load_settings(ROOT / config, settings, load_method(ROOT / program).settings_type)
    changed = folder.changed_settings(now)
    if changed:
        raise UserError(f"{run} was trained with other settings ({', '.join(changed)}): name another --out")


def _read_result(path: Path) -> dict:
    try:
        result = json.loads(path.read_text())
        return {name: result[name] for name in ("self_test", "cross_test")}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it, and the benchmark tests that model again") from error


def write_report(folder: Path, comparison: Comparison, args: argparse.Namespace, commands: Commands) -> str:
    """Write report.md, results.csv, compatibility.png and commands.sh; returns the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    comparison.write_csv(folder / "results.csv")
    comparison.plot(folder / "compatibility.png")
    tables = [f"**{test}** (%)\n\n{comparison.table(test)}\n" for test in comparison.tests]
    tables = "\n".join([*tables, f"**All tests together**\n\n{comparison.overall()}\n"])
    with replaced_atomically(folder / "report.md") as temporary:
        facts = {"dataset": args.dataset, "scenario": args.scenario, "seeds": ", ".join(map(str, args.seeds))}
        overrides = f"All trained with {' '.join(args.overrides)}." if args.overrides else ""
        temporary.write_text(REPORT.format(**facts, overrides=overrides, tables=tables))
    with replaced_atomically(folder / "commands.sh") as temporary:
        temporary.write_text("\n".join(["#!/bin/sh", "# From the root of the repository", *commands.lines]) + "\n")
    return tables


REPORT = """# {dataset}, {scenario}, seeds {seeds}

Query model / gallery model. "independent" is the new network trained without an old model: its new/new is star, the
measure of what compatibility costs. Update gain = (new/old - old/old) / (star - old/old). Where there are several
seeds: mean ± sample deviation. {overrides}

{tables}
![Compatibility against discrimination](compatibility.png)

The commands are in [commands.sh](commands.sh).
"""


if __name__ == "__main__":
    run_program(main)
