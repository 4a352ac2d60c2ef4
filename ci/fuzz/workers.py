"""Processes that read one input after another, with little memory and time, and what became of each input."""

import faulthandler
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from mmap import mmap
from pathlib import Path

from ci.fuzz.changes import Tree, changed
from ci.fuzz.readers import Reader
from core.errors import _line_of

__all__ = ["MEMORY", "Result", "fuzz", "input_of", "read_once", "seeds_of"]

MEMORY = 1536 * 2**20
"""Bytes that a process may have in all."""
SECONDS = 10.0
"""Of its own time that a process may take for an input."""
WAIT = 90.0
"""Seconds after which a process is taken to wait for ever, however busy the machine is."""
AGAIN = 20
"""Inputs after which an honest file is read again: what a file leaves behind must not change how others are read."""
KEPT = 3
"""Inputs of one kind of finding that are written down."""
STATE = struct.Struct("<qqqq")
"""What a worker tells: the input it reads; and of all so far the number, the refused, the peak memory."""


@dataclass
class Result:
    """What became of the inputs of a reader."""

    reader: str
    inputs: int = 0
    refused: int = 0
    """Of `inputs`, those that were answered by the line of a mistake."""
    seconds: float = 0.0
    peak: int = 0
    """Bytes of the largest process."""
    found: Counter = field(default_factory=Counter)
    """Findings by kind."""
    numbers: dict[str, list[int]] = field(default_factory=dict)
    """Inputs of each kind that were written down."""


def seeds_of(reader: Reader) -> list[Tree]:
    """The honest files of a reader, made in a process of their own: some libraries do not survive a fork after use."""
    with tempfile.TemporaryDirectory(dir=_memory()) as temporary:
        folder = Path(temporary) / "honest"  # readers put what they need once beside it
        folder.mkdir()
        child = os.fork()
        if child == 0:
            _run(lambda: reader.write(folder))
        if os.waitpid(child, 0)[1]:
            raise RuntimeError(f"the honest files of the reader {reader.name} could not be made")
        return [
            {str(file.relative_to(seed)): file.read_bytes() for file in sorted(seed.rglob("*")) if file.is_file()}
            for seed in sorted(folder.iterdir())
        ]


def input_of(reader: Reader, seeds: list[Tree], seed: int, number: int) -> Tree:
    """Input `number`; those from 0 on are the honest files as they are."""
    if number < len(seeds):
        return seeds[number]
    rng = random.Random(f"{reader.name} {seed} {number}")
    return changed(rng, rng.choice(seeds))


def fuzz(
    reader: Reader,
    count: int,
    seconds: float,
    out: Path,
    seed: int = 0,
    jobs: int = 1,
    report: Callable[[Result], None] = lambda result: None,
) -> Result:
    """Read `count` inputs, or as many as `seconds` allow, in `jobs` processes; findings are written below `out`."""
    result, began = Result(reader.name), time.monotonic()
    seeds = seeds_of(reader)
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        workers = [
            _Worker(reader, seeds, seed, range(job, count, jobs), Path(folder) / str(job)) for job in range(jobs)
        ]
        running, reported = workers, began
        while running:
            time.sleep(0.05)
            stop = time.monotonic() - began > seconds
            running = [worker for worker in running if worker.goes_on(stop)]
            result.inputs, result.refused = (sum(getattr(w, name) for w in workers) for name in ("inputs", "refused"))
            result.peak, result.seconds = max(w.peak for w in workers), time.monotonic() - began
            if time.monotonic() - reported > 5:
                report(result)
                reported = time.monotonic()
        for worker in workers:
            for number, kind, text in worker.findings():
                result.found[kind] += 1
                if len(kept := result.numbers.setdefault(kind, [])) < KEPT:
                    kept.append(number)
                    _write(out / f"{reader.name}-{seed}-{number}", input_of(reader, seeds, seed, number), text)
    return result


def read_once(reader: Reader, tree: Tree, folder: Path) -> tuple[str, str]:
    """Whether the files give a "value", a "line", or else which kind of finding; and the line or traceback."""
    for name, content in tree.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    try:
        reader.read(folder)
    except Exception as error:
        told = "".join(traceback.format_exception(error, limit=-12))[-8000:]
        if _short_of_memory(error):
            return f"memory: {_place(error)}", told
        line = _line_of(error)
        if line is None:
            return f"{type(error).__name__}: {_place(error)}", told
        return "line", line[:2000]
    return "value", ""


def _short_of_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError) or (
            isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def _place(error: BaseException) -> str:
    """The last line of the project's own that the exception came through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/core/" in frame.filename]
    return f"{frames[-1].filename.partition('/core/')[2]}:{frames[-1].lineno}" if frames else "elsewhere"


class _Worker:
    """A process that reads some of the inputs, and is started again after one that it did not survive."""

    def __init__(self, reader: Reader, seeds: list[Tree], seed: int, numbers: range, folder: Path):
        self.reader, self.seeds, self.seed, self.numbers, self.folder = reader, seeds, seed, numbers, folder
        folder.mkdir()
        self.state, self.log, self.ended = mmap(-1, STATE.size), folder / "log", False
        self.inputs = self.refused = self.peak = 0
        self.number, self.waited, self.looked = -1, 0.0, time.monotonic()
        self._start()

    def _start(self) -> None:
        STATE.pack_into(self.state, 0, -1, self.inputs, self.refused, self.peak)
        self.child = os.fork()
        if self.child == 0:
            _run(self._work, self.log)

    def goes_on(self, stop: bool) -> bool:
        """Look after the process; False once it has read all of its inputs, or was told to stop."""
        died, status = os.waitpid(self.child, os.WNOHANG)
        number, self.inputs, self.refused, self.peak = STATE.unpack_from(self.state)
        now = time.monotonic()
        # a machine that stood still for a while is not held against the process
        self.waited = self.waited + min(now - self.looked, 1.0) if number == self.number else 0.0
        self.number, self.looked = number, now
        hung = not died and self.waited > WAIT
        if not died and not hung and not stop:
            return True
        if not died:
            os.kill(self.child, signal.SIGKILL)
            status = os.waitpid(self.child, 0)[1]
        if status == 0 or (stop and not died and not hung):
            return False
        self.inputs += 1
        kind = "hang: it waits" if hung else "hang" if os.WTERMSIG(status) == signal.SIGPROF else _fate(status)
        self._note(number, kind, _tail(self.log))
        done = self.numbers.index(number) + 1 if number in self.numbers else len(self.numbers)
        self.numbers = self.numbers[done:]
        if self.numbers:
            self._start()
        return len(self.numbers) > 0

    def findings(self) -> list[tuple[int, str, str]]:
        """Number, kind and text of each."""
        notes = self.folder / "notes"
        return [tuple(json.loads(line)) for line in notes.read_text().splitlines()] if notes.exists() else []

    def _note(self, number: int, kind: str, text: str) -> None:
        with open(self.folder / "notes", "a") as notes:
            notes.write(json.dumps([number, kind, text]) + "\n")

    def _work(self) -> None:
        inputs, refused, peak = self.inputs, self.refused, 0
        limit_memory()
        place = self.folder / "files"
        for number in self.numbers:
            STATE.pack_into(self.state, 0, number, inputs, refused, peak)
            tree = input_of(self.reader, self.seeds, self.seed, number)
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            forget_peak()
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            kind, text = read_once(self.reader, tree, place)
            signal.setitimer(signal.ITIMER_PROF, 0)
            taken = peak_memory()
            peak = max(peak, taken)
            if kind in ("value", "line") and taken > MEMORY:
                kind, text = "memory: the process", f"{taken / 2**20:.0f} MB"
            if kind == "line" and number < len(self.seeds):
                kind = "an honest file is refused"
            elif kind in ("value", "line") and inputs % AGAIN == AGAIN - 1:
                kind, text = self._after(place, kind, text)
            if kind not in ("value", "line"):
                self._note(number, kind, text)
            inputs, refused = inputs + 1, refused + (kind == "line")
            if inputs % 1000 == 0:
                os.truncate(self.log, 0)
        STATE.pack_into(self.state, 0, -1, inputs, refused, peak)

    def _after(self, place: Path, kind: str, text: str) -> tuple[str, str]:
        """What became of an input, or that the first honest file is not read after it as it was before."""
        shutil.rmtree(place)
        again, told = read_once(self.reader, self.seeds[0], place)
        return (kind, text) if again == "value" else ("an honest file is refused after others", told)


def limit_memory() -> None:
    """Let this process have no more than `MEMORY`, beside what of its address space it never touched."""
    pages, resident = map(int, Path("/proc/self/statm").read_text().split()[:2])
    room = MEMORY - resident * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def forget_peak() -> None:
    """Let `peak_memory` begin anew: making an input may have taken more than reading it will."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """The most bytes that this process had in memory since `forget_peak`."""
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024


def _run(work: Callable[[], object], log: Path | None = None) -> None:
    """Do the work of a forked process, quietly, and end it."""
    status = 1
    try:
        if log is not None:
            opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(opened, 1)
            os.dup2(opened, 2)
            faulthandler.enable(opened, all_threads=False)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _memory() -> str | None:
    """A folder in memory, if there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _fate(status: int) -> str:
    return f"crash: {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else "crash: it exits"


def _tail(log: Path) -> str:
    return log.read_bytes()[-4000:].decode(errors="replace") if log.exists() else ""


def _write(folder: Path, tree: Tree, text: str) -> None:
    for name, content in tree.items():
        (folder / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "files" / name).write_bytes(content)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "what.txt").write_text(text + "\n")
