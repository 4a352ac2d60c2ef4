"""Stop programs at each system call that writes, and cut the power there; the same command must then end right.

    python ci/fault_injection.py                      each program at every call: hours
    python ci/fault_injection.py --places 5           at five of each, evenly spread
    python ci/fault_injection.py --only map gallery   programs whose names contain one of these words

A program runs once undisturbed. Then it is killed before its first call that changes the output folder, before its
second, and so on, and given again each time: it must end with status 0 (or with 2 where the work was done already and
that is a mistake) and leave exactly the files of the undisturbed run, to the byte. A loss of power is tried at the same
calls, as `ci/faults/power.py` describes it: of what was not flushed nothing is there, or a random part. And what a
finished program has written must outlive one. Prints the places by program; status 1 if anything was found.
"""

import argparse
import shutil
import signal
import sys
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("ci/faults", ".", "ci", "ci/tests", "tools")]

from power import Disk  # noqa: E402
from programs import CONTEXT, Program, files, programs, run_command  # noqa: E402
from syscalls import Call, run_supervised  # noqa: E402

from core.temporary_names import is_temporary  # noqa: E402

SHARES = (0.0, 0.5)
"""Of what was not flushed that a loss of power leaves, tried one after the other; a kill leaves everything."""
PRELOADED = ["core.program", "torch._dynamo", "core.gallery.gallery", "core.evaluation.plots", "core.models.export"]


@dataclass
class Report:
    """What was done with a program, and what was found."""

    calls: int
    """That change the output folder, in the undisturbed run."""
    kills: int = 0
    losses: int = 0
    faults: list[str] = field(default_factory=list)


def main() -> None:
    """Parse the command line, and try."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--places", type=int, metavar="N", help="so many calls of each program (all)")
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="programs with one of these words")
    parser.add_argument("--no-power", action="store_true", help="kills alone")
    parser.add_argument("--seed", type=int, default=0, help="of what a loss of power leaves, and of the first call")
    args = parser.parse_args()
    CONTEXT.set_forkserver_preload(PRELOADED)
    rng = np.random.default_rng(args.seed)
    reports = []
    with TemporaryDirectory() as folder:
        for program in programs(Path(folder) / "work"):
            if any(word in program.name for word in args.only):
                trial = Trial(program, Path(folder) / "work")
                chosen = trial.places(args.places, rng)
                for place in chosen:
                    trial.kill(place)
                    if not args.no_power:
                        trial.lose_power(place, SHARES, rng)
                if not args.no_power:
                    trial.lose_power_at_the_end()
                reports.append(trial.report)
                print(f"{program.name}: {trial.report.calls} calls, killed at {trial.report.kills}, ", end="")
                print(f"{trial.report.losses} losses of power, {len(trial.report.faults)} faults", flush=True)
                print("".join(f"    {fault}\n" for fault in trial.report.faults), end="", flush=True)
    faults = sum(len(report.faults) for report in reports)
    print(f"{sum(r.kills for r in reports)} kills, {sum(r.losses for r in reports)} losses of power, {faults} faults")
    sys.exit(bool(faults))


class Trial:
    """A program and what it leaves undisturbed, with the working folder in which it is disturbed."""

    def __init__(self, program: Program, folder: Path):
        self.program, self.folder, self.out = program, folder, folder / "out"
        self.contents = program.contents or files
        self._begin()
        self.calls: list[Call] = []
        status = self._run(lambda call: self.calls.append(call) or True)
        if status:
            raise RuntimeError(f"{program.name} failed undisturbed: {self._log()}")
        self.expected = self.contents(self.out)
        self.report = Report(len(self.calls))

    def places(self, count: int | None, rng: np.random.Generator) -> list[int]:
        """Numbers of calls, from 0: all, or `count`, evenly spread over the program; many writes to a file are one."""
        if count is None:
            return list(range(len(self.calls)))
        groups = [
            [number for number, _ in group] for _, group in groupby(enumerate(self.calls), lambda each: str(each[1]))
        ]
        edges = np.linspace(0, len(groups), min(count, len(groups)) + 1).astype(int)
        return [int(rng.choice(groups[rng.integers(begin, end)])) for begin, end in zip(edges, edges[1:])]

    def kill(self, place: int) -> None:
        """Kill the program before a call, by its number from 0, and give it again."""
        self._begin()
        seen: list[Call] = []
        status = self._run(lambda call: seen.append(call) or len(seen) <= place)
        self.report.kills += status == -signal.SIGKILL
        self._give_again(f"killed before call {place}, {seen[-1]}")

    def lose_power(self, place: int, shares: tuple[float, ...], rng: np.random.Generator) -> None:
        """Cut the power before a call, with each of the shares left of what was not flushed, and give it again."""
        self._begin()
        disk, seen = Disk(self.out), []

        def on_call(call: Call) -> bool:
            seen.append(call)
            disk.see()
            if len(seen) > place:
                return False
            disk.flush(call)
            return True

        if self._run(on_call) != -signal.SIGKILL:
            disk.see()
        for number, share in enumerate(shares):
            disk.write_after_loss(self.folder / f"after{number}", share, rng)
        for number, share in enumerate(shares):
            shutil.rmtree(self.out)
            (self.folder / f"after{number}").rename(self.out)
            self.report.losses += 1
            self._give_again(f"without power before call {place}, {seen[-1]}, a share of {share} left")

    def lose_power_at_the_end(self) -> None:
        """Cut the power when the program has ended: all that it wrote must be there, beside what a next one sweeps."""
        self._begin()
        disk = Disk(self.out)

        def on_call(call: Call) -> bool:
            disk.see()
            disk.flush(call)
            return True

        self._run(on_call)
        disk.see()
        disk.write_after_loss(self.folder / "after", 0.0, np.random.default_rng(0))
        shutil.rmtree(self.out)
        (self.folder / "after").rename(self.out)
        self.report.losses += 1
        for path in [path for path in self.out.rglob("*") if is_temporary(path.name)]:
            shutil.rmtree(path)
        self._compare("without power after the end")

    def _begin(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        self.program.start(self.out)

    def _run(self, on_call) -> int:
        arguments = (str(self.folder), self.program.file, self.program.arguments)
        return run_supervised(CONTEXT, self.out, run_command, arguments, on_call)

    def _give_again(self, fault: str) -> None:
        process = CONTEXT.Process(
            target=run_command, args=(str(self.folder), self.program.file, self.program.arguments)
        )
        process.start()
        process.join()
        if process.exitcode not in (0, self.program.done):
            self.report.faults.append(f"{fault}: status {process.exitcode}: {self._log()}")
            return
        self._compare(fault)

    def _compare(self, fault: str) -> None:
        try:
            found = self.contents(self.out)
        except Exception as error:
            self.report.faults.append(f"{fault}: {error!r}")
            return
        others = [name for name in self.expected | found if self.expected.get(name) != found.get(name)]
        if others:
            kinds = [
                f"{name} ({'missing' if name not in found else 'added' if name not in self.expected else 'another'})"
                for name in others[:5]
            ]
            self.report.faults.append(f"{fault}: {', '.join(kinds)}")

    def _log(self) -> str:
        return (self.folder / "log.txt").read_text().strip()[-300:]


if __name__ == "__main__":
    main()
