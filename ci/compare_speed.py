"""Time the same works with two revisions of this repository in turn, and compare their results.

    python ci/compare_speed.py 71db8f1                     a revision, and the working tree as it is
    python ci/compare_speed.py 71db8f1 b80fded --rounds 5
    python ci/compare_speed.py main --works class_means pair_file partial_fc
    python ci/compare_speed.py main --works class_means_from_disk --folder /scratch     10.6 GB more

Each work of each round runs in a process of its own, first with one revision, then with the other, and in the next
round in the other order. Times are those of a first call in a process: files are opened and data prepared before it,
what a library does at its first call is included. The results of the two revisions are compared number by number. The
data, of real size, take up to 5 GB; works from disk need 10.6 GB more and run only if they are named. At the end there
are a table and `work_dirs/compare_speed.json`. If a work fails, the program stops with status 2 and keeps nothing.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from ci.benchmarks import class_statistics, ijb_scoring, records  # noqa: E402
from ci.benchmarks.harness.machine import busy, in_words, machine, versions  # noqa: E402
from ci.timed_works import STATISTICS, WORKS  # noqa: E402
from ci.trees import last_line, start, write_tree  # noqa: E402
from core.errors import UserError, run_program  # noqa: E402
from core.evaluation.tables import format_table  # noqa: E402
from core.outputs import make_folder, replaced_atomically, require_replaceable  # noqa: E402

SIDES = ("before", "after")
OUT = ROOT / "work_dirs" / "compare_speed.json"
READ_BY = {
    "store": (*STATISTICS,),
    "large": tuple(f"{name}_from_disk" for name in STATISTICS),
    "IJBC": ("ijb_test", "ijb_stored", "pair_file"),
    "train": ("records", "records_to_network"),
}
"""Data, and the works that read them."""


@dataclass(frozen=True)
class Sizes:
    """Of the data."""

    images: int = 517_951
    classes: int = 9_343
    size: int = 512
    large_images: int = 5_179_510
    large_classes: int = 93_431
    shrink: int = 1
    """IJB-C's numbers are divided by it."""
    records: int = 10_000
    head_classes: int = 500_000
    image_size: int = 112
    step_images: int = 32


QUICK = Sizes(
    images=2_000, classes=40, size=32, large_images=4_000, large_classes=80, shrink=2_000, records=200,
    head_classes=500, image_size=16, step_images=4,
)  # fmt: skip


@dataclass
class Timed:
    """What the rounds of one work took, in order, and how the results of the last one compare."""

    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)
    results: str = ""

    @property
    def times_faster(self) -> float:
        """Median over the rounds of before / after."""
        return median(b / a for b, a in zip(self.before, self.after))


def main(argv: Sequence[str] | None = None) -> None:
    """Time the works, print the table and keep it."""
    args = parse_arguments(argv)
    make_folder(args.out.parent)
    require_replaceable(args.out)
    where, made_of = machine(), versions()
    print(in_words(where, made_of), flush=True)
    where["busy"] = busy(where)
    sizes = QUICK if args.quick else Sizes()
    with tempfile.TemporaryDirectory(prefix="compare_speed_", dir=args.folder) as temporary:
        folder = Path(temporary)
        for side, revision in zip(SIDES, (args.before, args.after)):
            write_tree(revision, folder / side)
        write_data(folder / "data", sizes, args.works)
        timed = {name: Timed() for name in args.works}
        total = len(SIDES) * len(args.works) * args.rounds
        for done, (name, side, seconds) in enumerate(runs(folder, args.works, args.rounds), 1):
            getattr(timed[name], side).append(seconds)
            print(f"[{done}/{total}] {name}, {side}: {seconds:.3f} s", file=sys.stderr, flush=True)
        for name in args.works:
            timed[name].results = difference(*(load(folder, name, side)["value"] for side in SIDES))
    print(f"\n{table(timed)}")
    kept = {"before": args.before, "after": args.after or "the working tree", "quick": args.quick}
    kept |= {"rounds": args.rounds, "machine": where, "versions": made_of}
    kept["works"] = {name: vars(each) | {"times_faster": each.times_faster} for name, each in timed.items()}
    with replaced_atomically(args.out) as path:
        path.write_text(json.dumps(kept, indent=1) + "\n")
    print(f"\nkept in {args.out}")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", help="a git revision, 71db8f1 or later")
    parser.add_argument("after", nargs="?", help="another one (default: the working tree as it is)")
    default = [name for name in WORKS if name not in READ_BY["large"]]
    parser.add_argument(
        "--works", nargs="+", choices=list(WORKS), default=default, metavar="WORK", help=f"of {', '.join(WORKS)}"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="(%(default)s)")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run?")
    parser.add_argument("--folder", type=Path, help="where to write the data (the folder of temporary ones)")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE", help="(%(default)s)")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error("--rounds must be 1 or more")
    return args


def write_data(data: Path, sizes: Sizes, works: Sequence[str]) -> None:
    """What these works read; made by the working tree."""
    data.mkdir()
    (data / "sizes.json").write_text(json.dumps(vars(sizes)))
    wanted = {name for name, readers in READ_BY.items() if not set(readers).isdisjoint(works)}
    if "store" in wanted:
        class_statistics.write_store(data / "store", sizes.images, sizes.classes, sizes.size, False)
    if "large" in wanted:
        class_statistics.write_store(data / "large", sizes.large_images, sizes.large_classes, sizes.size, False)
    if "IJBC" in wanted:
        ijb_scoring.write_meta(data / "IJBC", sizes.shrink)
        ijb_scoring.write_embeddings(data, ijb_scoring.NUM_IMAGES // sizes.shrink)
        lists = ijb_scoring.make_lists(sizes.shrink)
        for name, part in {**lists.galleries, "probes": lists.probes}.items():
            np.save(data / f"{name}.npy", np.stack([part.templates, part.subjects]))
    if "train" in wanted:
        records.write_images(data / "train", sizes.records)


def runs(folder: Path, works: Sequence[str], rounds: int) -> Iterator[tuple[str, str, float]]:
    """Work, side and seconds of each run, as they end; what came of the last round's stays in the folder."""
    for number in range(rounds):
        for name in works:
            for side in SIDES[:: -1 if number % 2 else 1]:
                log, result = folder / "log.txt", folder / f"{name}_{side}.npz"
                words = (ROOT / "ci" / "timed_works.py", name, folder / "data", result)
                if start(folder / side, log, *words, threads=None).wait():
                    raise UserError(f"{name} failed with the revision {side}: {last_line(log)}")
                yield name, side, float(load(folder, name, side)["seconds"])


def load(folder: Path, name: str, side: str) -> dict[str, np.ndarray]:
    """What the last run of a work left."""
    with np.load(folder / f"{name}_{side}.npz") as arrays:
        return {key: arrays[key] for key in ("seconds", "value")}


def difference(before: np.ndarray, after: np.ndarray) -> str:
    """How two results compare; a number and none (NaN) are infinitely far apart."""
    if before.shape != after.shape:
        return f"{before.shape} and {after.shape} numbers"
    before, after = before.astype(np.float64), after.astype(np.float64)
    unequal = ~((before == after) | (np.isnan(before) & np.isnan(after)))
    if not unequal.any():
        return "the same"
    apart = np.nan_to_num(np.abs(before[unequal] - after[unequal]), nan=np.inf, posinf=np.inf)
    return f"differ in {np.count_nonzero(unequal):,} of {before.size:,} numbers, by up to {apart.max():.1e}"


def table(timed: Mapping[str, Timed]) -> str:
    """A line for each work."""

    def seconds(taken: list[float]) -> list[str]:
        return [f"{number:.3f}" for number in (median(taken), min(taken), max(taken))]

    header = ["work", "before, s", "from", "to", "after, s", "from", "to", "times faster", "results"]
    rows = [
        [name, *seconds(each.before), *seconds(each.after), f"{each.times_faster:.2f}", each.results]
        for name, each in timed.items()
    ]
    return format_table(header, rows)


if __name__ == "__main__":
    run_program(main)
