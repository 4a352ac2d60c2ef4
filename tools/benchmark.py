"""All methods and roads side by side on built-in data: each trained from the same old model, tested by itself and
against it, directly and through maps.

    python tools/benchmark.py --dataset glyphs --scenario opclass
    python tools/benchmark.py --dataset glyphs --scenario exdata --methods mixbct bct --seeds 0 1 2

For each seed: data, split, one old model, one independent new model (the same network and data without an old model),
then every method; and for each of these models maps between its space and the old one (docs/maps.md), fitted on the
images that it was trained on. A benchmark that was stopped goes on where it was, and what is done is skipped: old
models are shared by the scenarios of the same data. Under --out it writes for each scenario report.md (tables),
results.csv, compatibility.png and commands.sh (the exact commands).
"""

import argparse
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from command_line import ArgumentParser, choose_device
from commands import Commands, shown

from core.engine.run_folder import RunFolder
from core.errors import UserError, run_program
from core.evaluation.comparison import DIRECT, Comparison, Entry
from core.evaluation.model_pairs import evaluate_pairs, evaluate_retrieval_pairs
from core.evaluation.retrieval import RetrievalOptions
from core.evaluation.revisited import SETUPS
from core.evaluation.revisited_files import read_revisited
from core.files import ROOT, reading
from core.json_files import read_json
from core.logs import set_up_logging
from core.models.encoder import Encoder, load_encoder
from core.outputs import make_folder, replaced_atomically, require_writable
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

ALONE = "independent"
"""The new model that was trained without the old one."""
SELF = "self"
"""In results, beside the roads: the model's queries in its own gallery."""


@dataclass(frozen=True)
class MapProgram:
    """What fits a map between the old model's space and a new one's, and the roads that the map opens."""

    program: str
    settings: tuple[str, ...]
    roads: Mapping[str, tuple[str, str]]
    """By name, query and gallery model: "new", "old", or a folder of the map's, "" for its own."""
    published: bool = False
    """A method of its own, for models that were trained without each other: fitted on the independent model alone."""


MAPS = {
    "procrustes": MapProgram("linear_map", ("kind=procrustes",), {"query map (procrustes)": ("", "old")}),
    "ridge": MapProgram("linear_map", ("kind=ridge",), {"gallery map (ridge)": ("new", "")}),
    "fct": MapProgram("fct", ("num_epoch=40",), {"gallery map (fct)": ("new", "")}, published=True),
    "fastfill": MapProgram("fastfill", ("num_epoch=40",), {"gallery map (fastfill)": ("new", "")}, published=True),
    "lambda_orthogonality": MapProgram(
        "lambda_orthogonality",
        (),
        {
            "query map (lambda_orthogonality)": ("new_to_old", "old"),
            "both maps (lambda_orthogonality)": ("new_to_old", "old_to_new"),
        },
        published=True,
    ),
}
MAP_OVERRIDES = ("device", "num_workers")
"""Settings of trainings that hold for maps too."""

Command = tuple[str, list[object]]
"""A program and its arguments."""


@dataclass(frozen=True)
class Scores:
    """Of a query model and a gallery model, in per cent by test."""

    rates: Mapping[str, float]
    flips: Mapping[str, tuple[float, float]]
    """NFR and PFR against the search before the update, of tests whose answers are right or wrong; none of a
    self-test."""


@dataclass(frozen=True)
class Bench:
    """What differs between the data sets: configs, images, scenarios, and the test of pairs of models."""

    config: str
    """Name of the config of each program."""
    scenarios: Mapping[str, tuple[str, str, tuple[str, ...]]]
    evaluate: Callable[[dict[str, Path], Sequence[str], Path], dict[str, Scores]]
    test_commands: Callable[[Path, Path, Path, Path], Iterator[Command]]
    """The same of a query model and a gallery model one by one: their run folders, data, where the results go."""


def load_all(models: dict[str, Path]) -> dict[str, Encoder]:
    """The run folders' encoders, on the GPU if there is one."""
    return {name: load_encoder(path, device=choose_device("auto")) for name, path in models.items()}


def evaluate_faces(models: dict[str, Path], pairs: Sequence[str], data: Path) -> dict[str, Scores]:
    """Scores of pairs "query/gallery" of run folders on the IJB-C tree."""
    results = evaluate_pairs(load_all(models), pairs, data / "eval", cache=data / "embeddings")
    return {
        pair: Scores(
            {name: per_cent(result.metrics[task][metric]) for name, (task, metric) in FACE_TESTS.items()},
            flips_of("1:N rank-1", result.metrics["1:N"]),
        )
        for pair, result in results.items()
    }


def per_cent(rate: object) -> float:
    """A rate in per cent; NaN for one that the data cannot resolve."""
    return 100 * rate if isinstance(rate, int | float) else float("nan")


def flips_of(test: str, metrics: Mapping[str, object]) -> dict[str, tuple[float, float]]:
    """NFR and PFR of a cross-test by the test that they belong to; none of a self-test."""
    return {test: (per_cent(metrics["nfr"]), per_cent(metrics["pfr"]))} if "nfr" in metrics else {}


def face_commands(query: Path, gallery: Path, data: Path, out: Path) -> Iterator[Command]:
    """The commands that find the same scores."""
    models = ["-m", query, *(() if query == gallery else ("-m_old", gallery))]
    for task, flags in (("1_1", ()), ("1_n", ("-N",))):
        folder = out.with_name(f"{out.name}_{task}")
        yield "tools/ijbc_eval.py", [*models, *flags, "--data-path", data / "eval", "--out", folder]


def evaluate_landmarks(models: dict[str, Path], pairs: Sequence[str], data: Path) -> dict[str, Scores]:
    """Scores of pairs "query/gallery" of run folders on the tree in revisited Oxford's layout."""
    encoders = load_all(models)
    test = read_revisited(data / "eval", "roxford5k")
    options = RetrievalOptions(num_workers=0, cache=data / "embeddings")
    results = evaluate_retrieval_pairs(encoders, pairs, test, options)
    return {
        pair: Scores(
            {name: per_cent(metrics[metric]) for name, metric in LANDMARK_TESTS.items()},
            flips_of("mAP Medium", metrics),
        )
        for pair, metrics in results.items()
    }


def landmark_commands(query: Path, gallery: Path, data: Path, out: Path) -> Iterator[Command]:
    """The command that finds the same scores."""
    models = ["-m", query, *(() if query == gallery else ("-m_old", gallery))]
    folder = out.with_name(f"{out.name}_roxford5k")
    test = ("--dataset", "roxford5k", "--data-path", data / "eval")
    yield "tools/roxford_eval.py", [*test, *models, "--out", folder]


BENCHES = {
    "glyphs": Bench("glyphs", FACE_SCENARIOS, evaluate_faces, face_commands),
    "glyphs-retrieval": Bench("glyphs_retrieval", LANDMARK_SCENARIOS, evaluate_landmarks, landmark_commands),
}


@dataclass(frozen=True)
class Seed:
    """The trainings and tests of one seed."""

    number: int
    bench: Bench
    args: argparse.Namespace
    commands: Commands

    @property
    def folder(self) -> Path:
        """Of the data, and of the models that the scenarios share."""
        return self.args.out / f"seed_{self.number}"

    @property
    def data(self) -> Path:
        """Of the images."""
        return self.folder / "data"

    @property
    def mode(self) -> str:
        """How the images are split: by class or by data."""
        return self.bench.scenarios[self.args.scenario][0]

    @property
    def records(self) -> str:
        """The new models' images."""
        return self.bench.scenarios[self.args.scenario][1]

    def run(self, method: str) -> Path:
        """A model's run folder: "old" is shared by the scenarios that have its images, the others are their own."""
        return self.folder / f"old_{self.mode}" if method == "old" else self.folder / self.args.scenario / method

    def features(self, method: str) -> Path:
        """Where a model's embeddings of the new models' images are kept."""
        return self.run(method) / f"features_{self.records}"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = ArgumentParser("Train and compare all methods and roads on built-in data.")
    parser.add_argument("--dataset", choices=BENCHES, default="glyphs", help="data set")
    scenarios = "; ".join(f"{name}: {', '.join(bench.scenarios)}" for name, bench in BENCHES.items())
    parser.add_argument("--scenario", default="exdata", help=f"what old and new model see ({scenarios})")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=METHODS, metavar="METHOD", help="which methods"
    )
    parser.add_argument(
        "--maps", nargs="*", choices=MAPS, default=list(MAPS), metavar="MAP",
        help=f"which maps ({', '.join(MAPS)}), all by default; without names none",
    )  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="seeds of data and trainings")
    parser.add_argument("--out", type=Path, help="folder of all results (default: work_dirs/benchmark/<dataset>)")
    overrides = "settings of every training, for example num_epoch=8 device=cuda"
    parser.add_argument("--overrides", nargs="+", default=[], metavar="key=value", help=overrides)
    args = parser.parse_args()
    known = BENCHES[args.dataset].scenarios
    if args.scenario not in known:
        raise UserError(f"unknown scenario {args.scenario!r}: {args.dataset} has {', '.join(known)}; choose one")
    args.out = Path(os.path.realpath(args.out or ROOT / "work_dirs" / "benchmark" / args.dataset))
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
        for method in ("old", ALONE, *args.methods):
            done += 1
            spent = format_seconds(time.monotonic() - started)
            print(f"\n[{done}/{total}] {args.scenario}, seed {seed}: {method} ({spent} so far)", flush=True)
            entries += run_method(Seed(seed, bench, args, commands), method)
    folder = args.out / args.scenario
    report = write_report(folder, Comparison(entries), args, commands)
    print(f"\n{report}\nreport: {folder / 'report.md'} ({format_seconds(time.monotonic() - started)})")


def run_method(seed: Seed, method: str) -> list[Entry]:
    """Train one model, fit its maps, test it on every road; what an earlier benchmark did and found is only read."""
    run, old = seed.run(method), seed.run("old")
    tested = _read_result(run / "result.json")
    make_data(seed)
    train(seed, method, done=bool(tested))
    roads = {SELF: (run, run), DIRECT: (run, old)}
    for name in [] if method == "old" else seed.args.maps:
        if method == ALONE or not MAPS[name].published:
            done = all(road in tested for road in MAPS[name].roads)
            roads |= fit_map(seed, method, name, done)
    untested = {road: pair for road, pair in roads.items() if road not in tested}
    if untested:
        tested |= test_roads(seed, untested)
        _write_result(run / "result.json", tested)
    for road, (query, gallery) in roads.items():
        if road == SELF or query != gallery:
            out = run / re.sub(r"\W+", "_", road).strip("_")
            for program, arguments in seed.bench.test_commands(query, gallery, seed.data, out):
                seed.commands.run(program, *arguments, done=True)
    own = tested.pop(SELF).rates
    return [Entry(method, seed.number, own, tested[road].rates, tested[road].flips, road) for road in [*roads][1:]]


def make_data(seed: Seed) -> None:
    """The images and their parts."""
    made = (seed.data / "dataset.json").exists()
    seed.commands.run("tools/make_dataset.py", "glyphs", "--out", seed.data, "--seed", seed.number, done=made)
    split = ("--rec", seed.data / "train", "--mode", seed.mode, "--ratio", 0.3, "--seed", seed.number)
    made = (seed.data / f"train_part_70_{seed.mode}.idx").exists()
    seed.commands.run("tools/split_dataset.py", *split, done=made)


def train(seed: Seed, method: str, done: bool) -> None:
    """Train one model; `done`: only keep the command, and see that the settings are those of the model there."""
    records = f"train_part_30_{seed.mode}" if method == "old" else seed.records
    settings = [f"rec={seed.data / records}", f"seed={seed.number}", f"output={seed.run(method)}"]
    if method == "old":
        program, config = "old_model/train.py", f"old_model/configs/{seed.bench.config}.py"
    elif method == ALONE:
        program, config = "old_model/train.py", f"old_model/configs/{seed.bench.config}_independent.py"
    else:
        program, config = f"methods/{method}/train.py", f"methods/{method}/configs/{seed.bench.config}.py"
    if method != "old":
        settings += seed.bench.scenarios[seed.args.scenario][2]
    if method not in ("old", ALONE):
        settings += [f"old_model={seed.run('old')}", f"features={seed.features('old')}"]
    settings += seed.args.overrides
    _require_same_settings(seed.run(method), program, config, settings)
    seed.commands.run(program, config, *settings, done=done)


def fit_map(seed: Seed, method: str, name: str, done: bool) -> dict[str, tuple[Path, Path]]:
    """Fit a map between a new model's space and the old one; returns query and gallery model of its roads."""
    fitted, folder = MAPS[name], seed.run(f"{method}+{name}")
    program = f"methods/{fitted.program}/train.py"
    config = f"methods/{fitted.program}/configs/{seed.bench.config}.py"
    settings = [f"rec={seed.data / seed.records}", f"seed={seed.number}", f"output={folder}"]
    for which, model in (("old", "old"), ("new", method)):
        settings += [f"{which}_model={seed.run(model)}", f"{which}_features={seed.features(model)}"]
    settings += fitted.settings
    settings += [setting for setting in seed.args.overrides if setting.partition("=")[0] in MAP_OVERRIDES]
    models = {"old": seed.run("old"), "new": seed.run(method)}
    roads = {
        road: (models.get(query, folder / query), models.get(gallery, folder / gallery))
        for road, (query, gallery) in fitted.roads.items()
    }
    for run in {path for pair in roads.values() for path in pair} - set(models.values()):
        _require_same_settings(run, program, config, settings)
    seed.commands.run(program, config, *settings, done=done)
    return roads


def test_roads(seed: Seed, roads: Mapping[str, tuple[Path, Path]]) -> dict[str, Scores]:
    """Scores by road, of which query and gallery model are given."""
    names = {path: str(number) for number, path in enumerate(dict.fromkeys(sum(roads.values(), ())))}
    pairs = {road: f"{names[query]}/{names[gallery]}" for road, (query, gallery) in roads.items()}
    models = {name: path for path, name in names.items()}
    found = seed.bench.evaluate(models, list(dict.fromkeys(pairs.values())), seed.data)
    return {road: found[pair] for road, pair in pairs.items()}


def _require_same_settings(run: Path, program: str, config: str, settings: Sequence[str]) -> None:
    """`UserError` if the run folder has a training that was begun with other settings than these give today."""
    typed = [shown(setting) for setting in settings]
    now = load_settings(ROOT / config, typed, load_method(ROOT / program).settings_type)
    changed = RunFolder(run).changed_settings(now)
    if changed:
        raise UserError(f"{run} was trained with other settings ({', '.join(changed)}): name another --out")


def _write_result(path: Path, tested: Mapping[str, Scores]) -> None:
    with replaced_atomically(path) as temporary:
        temporary.write_text(json.dumps({road: asdict(scores) for road, scores in tested.items()}, indent=2) + "\n")


def _read_result(path: Path) -> dict[str, Scores]:
    """Scores by road; empty if the model was not tested yet. Of an older file without flips only the self-test."""
    if not path.is_file():
        return {}
    remedy = "delete it, and the benchmark tests that model again"
    result = read_json(path, "result of the benchmark", remedy, finite=False)  # NaN: what the data cannot resolve
    with reading(path, "result of the benchmark", remedy):
        if "self_test" in result:
            return {SELF: Scores(result["self_test"], {})}
        flips = {road: {test: (nfr, pfr) for test, (nfr, pfr) in result[road]["flips"].items()} for road in result}
        return {road: Scores(dict(result[road]["rates"]), flips[road]) for road in (SELF, *result)}


def write_report(folder: Path, comparison: Comparison, args: argparse.Namespace, commands: Commands) -> str:
    """Write report.md, results.csv, compatibility.png and commands.sh; returns the tables."""
    make_folder(folder)
    comparison.write_csv(folder / "results.csv")
    comparison.plot(folder / "compatibility.png")
    tables = comparison.tables()
    with replaced_atomically(folder / "report.md") as temporary:
        facts = {"dataset": args.dataset, "scenario": args.scenario, "seeds": ", ".join(map(str, args.seeds))}
        overrides = f"All trained with {' '.join(args.overrides)}." if args.overrides else ""
        temporary.write_text(REPORT.format(**facts, overrides=overrides, tables=tables, summary=comparison.summary()))
    with replaced_atomically(folder / "commands.sh") as temporary:
        temporary.write_text("\n".join(["#!/bin/sh", "# From the root of the repository", *commands.lines]) + "\n")
    return tables


REPORT = """# {dataset}, {scenario}, seeds {seeds}

{summary}

What the tables do not show: the images are drawn characters and the trainings take minutes; they tell what works from
what does not, and the order of what works may be another one after a full training. All networks are of one family and
were trained on similar images, which flatters maps: between models that have little in common a map may find next to
nothing. Maps were fitted on all images that the new model was trained on.

Query model / gallery model. "independent" is the new network trained without an old model: its new/new is star, the
measure of what compatibility costs. Update gain = (new/old - old/old) / (star - old/old). NFR and PFR: the share of
queries that the old service answers rightly and the new one wrongly, and the reverse. Roads: directly, the model's
queries in the old gallery as it is; with a query map, they are mapped into the old space; with a gallery map, the
stored vectors are mapped into the new space. No road embeds an image of the gallery again; new/new is the model's
self-test, when all are. Where there are several seeds: mean ± sample deviation. {overrides}

{tables}
![Compatibility against discrimination](compatibility.png)

The commands are in [commands.sh](commands.sh).
"""


if __name__ == "__main__":
    run_program(main)
