import argparse
import logging
import math
import os
import sys
import tempfile
from pathlib import Path

from ci.fuzz.readers import READERS
from ci.fuzz.workers import Result, fuzz, input_of, limit_memory, read_once, seeds_of


def main() -> int:
    parser = argparse.ArgumentParser(description="Damaged and hostile files for every reader of the project.")
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"all, or some of {', '.join(READERS)}")
    parser.add_argument("--count", type=int, help="inputs of all readers together (no limit)")
    parser.add_argument("--seconds", type=float, help="for each reader (60, no limit with --count)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--out", type=Path, default=Path("fuzz_findings"), help="folder of the findings")
    parser.add_argument("--input", type=int, help="read this input alone, and show what comes of it")
    args = parser.parse_args()
    if unknown := set(args.readers) - set(READERS):
        parser.error(f"no readers: {', '.join(sorted(unknown))}")
    whole = 10**9 if args.count is None else args.count
    seconds = args.seconds
    if seconds is None:
        seconds = 60.0 if args.count is None else math.inf
    logging.disable()
    readers = [READERS[name] for name in args.readers or READERS]
    if args.input is not None:
        limit_memory()
        for reader in readers:
            with tempfile.TemporaryDirectory() as folder:
                print(
                    *read_once(reader, input_of(reader, seeds_of(reader), args.seed, args.input), Path(folder)),
                    sep="\n",
                )
        return 0
    results, weights = [], sum(reader.weight for reader in readers)
    for place, reader in enumerate(readers, 1):
        count = -(-whole * reader.weight // weights)

        def report(result: Result, place: int = place, count: int = count) -> None:
            left = min(seconds - result.seconds, (count - result.inputs) * result.seconds / max(result.inputs, 1))
            print(f"{place}/{len(readers)} {_line(result)}, {left:.0f} s left", flush=True)

        results.append(fuzz(reader, count, seconds, args.out, args.seed, args.jobs, report))
        print(f"{place}/{len(readers)} {_line(results[-1])}", flush=True)
        for kind, number in results[-1].found.most_common():
            print(f"    {number} x {kind}", flush=True)
            for kept in results[-1].numbers[kind]:
                print(f"        python -m ci.fuzz {reader.name} --seed {args.seed} --input {kept}", flush=True)
    print(_table(results))
    return int(any(result.found for result in results))


def _line(result: Result) -> str:
    rate = result.inputs / max(result.seconds, 1e-9)
    return f"{result.reader}: {result.inputs} inputs, {rate:.0f}/s, {sum(result.found.values())} findings"


def _table(results: list[Result]) -> str:
    lines = [
        "",
        "| reader | inputs | refused | inputs/s | peak MB | findings |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for r in results:
        lines.append(
            f"| {r.reader} | {r.inputs} | {r.refused} | {r.inputs / max(r.seconds, 1e-9):.0f} | {r.peak / 2**20:.0f} | "
            f"{sum(r.found.values())} |"
        )
    inputs, found = sum(r.inputs for r in results), sum(sum(r.found.values()) for r in results)
    return "\n".join([*lines, f"| all | {inputs} | {sum(r.refused for r in results)} | | | {found} |"])


if __name__ == "__main__":
    sys.exit(main())
