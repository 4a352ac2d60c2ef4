import argparse
import ast
import importlib
import inspect
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType

import ci.benchmarks
from ci.benchmarks.harness.bench import Bench, SetUpError, threads_restored
from ci.benchmarks.harness.machine import busy, in_words, machine, versions
from core.errors import run_program
from core.files import ROOT
from core.outputs import make_folder, replaced_atomically, require_writable

OUT = ROOT / "work_dirs" / "benchmarks"
COMMON = ("quick", "repeats", "folder", "out")


def main(argv: Sequence[str] | None = None) -> None:
    """Run one benchmark with its options, or all of them."""
    words = list(sys.argv[1:] if argv is None else argv)
    known = first_lines()
    parser = new_parser("", ci.benchmarks)
    parser.add_argument("name", nargs="?", choices=["all", *known], metavar="NAME", help="of a benchmark, or all")
    parser.add_argument("--list", action="store_true", help="print the names")
    name = parser.parse_args(words[:1]).name
    if name is None:
        print("\n".join(f"{each:<{max(map(len, known))}}  {line}" for each, line in known.items()))
        return
    if name == "all":
        add_common(new_parser("all", ci.benchmarks)).parse_args(words[1:])
    where, made_of = machine(), versions()
    print(in_words(where, made_of))
    for each in known if name == "all" else [name]:
        print(f"\n{each}: {known[each]}", flush=True)
        try:
            run(each, words[1:], {"machine": where | {"busy": busy(where)}, "versions": made_of})
        except SetUpError as missing:
            if name != "all":
                raise
            print(f"skipped: {missing}")


def first_lines() -> dict[str, str]:
    """Of every benchmark's docstring, by its name."""
    files = sorted(path for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("__"))
    return {path.stem: (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0] for path in files}


def new_parser(name: str, module: ModuleType) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        f"python -m ci.benchmarks {name}".strip(),
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_common(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add what all benchmarks take."""
    parser.add_argument("--quick", action="store_true", help="small sizes, two rounds: does it run?")
    parser.add_argument("--repeats", type=int, metavar="N", help="rounds in which all ways run once (5)")
    parser.add_argument("--folder", type=Path, help="where to make large files (the folder of temporary ones)")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FOLDER", help=f"of <name>.json ({OUT})")
    return parser


def parse(name: str, module: ModuleType, words: Sequence[str]) -> argparse.Namespace:
    """The command line of a benchmark: its own options are the keywords of its `run`."""
    parser = add_common(new_parser(name, module))
    for option in list(inspect.signature(module.run).parameters.values())[1:]:
        flag, default = f"--{option.name.replace('_', '-')}", option.default
        if isinstance(default, bool):
            parser.add_argument(flag, action="store_true")
        elif isinstance(default, tuple):
            kind = type(default[0]) if default else str
            parser.add_argument(flag, nargs="+", type=kind, default=default, metavar="X")
        else:
            parser.add_argument(flag, type=type(default), default=default, metavar="X", help=f"({default})")
    if "--quick" in words:
        parser.set_defaults(repeats=2, **getattr(module, "QUICK", {}))
    args = parser.parse_args(words)
    args.repeats = 5 if args.repeats is None else args.repeats
    if args.repeats < 1:
        parser.error("--repeats must be 1 or more")
    return args


def run(name: str, words: Sequence[str], made_on: Mapping[str, object]) -> None:
    """Run a benchmark and keep what came of it."""
    module = importlib.import_module(f"ci.benchmarks.{name}")
    args = parse(name, module, words)
    options = {key: value for key, value in vars(args).items() if key not in COMMON}
    make_folder(args.out)
    require_writable(args.out)
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder, threads_restored():
        bench = Bench(args.repeats, Path(folder))
        module.run(bench, **options)
    kept = {"benchmark": name, "started": started, "quick": args.quick, "repeats": args.repeats, "options": options}
    kept |= {**made_on, "works": bench.works, "tables": bench.tables, "notes": bench.notes}
    file = args.out / f"{name}{'.quick' if args.quick else ''}.json"
    with replaced_atomically(file) as path:
        path.write_text(json.dumps(kept, indent=1) + "\n")
    print(f"\nkept in {file}")


if __name__ == "__main__":
    run_program(main)
