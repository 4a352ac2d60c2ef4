"""Train tiny epochs for minutes, with checkpoints and tests all the while, and see that memory and handles do not grow.

    python ci/soak.py --minutes 10

Every ten seconds prints the epochs done, resident memory, open files and threads of the training and of its loader's
workers, the highest since the line before. Status 1 if in the last third of the time the memory is by more than 24 MiB,
or files, threads or processes by more than 2, above what they were in the third before. Reads /proc: Linux alone.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import astuple, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "ci" / "tests")]

from tiny import write_records, write_verification_set  # noqa: E402

SETTINGS = [
    "network=r18", "network_options.width=8", "network_options.depth=1", "embedding_size=8", "batch_size=16", "lr=1e-4",
    "num_epoch=1000000", "num_workers=1", "device=cpu", "frequent=4", "margin_scale=16", "checkpoint_steps=3",
    "val_targets=['pairs']", "verbose=20", "augment=['flip','noise']",
]  # fmt: skip
EVERY = 10
"""Seconds between two lines."""
BOUNDS = (24 * 2**20, 2, 2, 2)
"""By how much the highest values of `Held` may rise."""


@dataclass(frozen=True)
class Held:
    """What a training and its children hold."""

    memory: int
    """Bytes of resident memory; what processes share counts for each."""
    files: int
    threads: int
    processes: int


def main() -> None:
    """Parse the command line, and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="without the start (10)")
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        seen = soak(Path(folder), 60 * args.minutes)
    third = len(seen) // 3
    if third == 0:
        sys.exit("too short to compare anything")
    before, after = highest(seen[third : 2 * third]), highest(seen[2 * third :])
    faults = [
        f"{name} rose from {old:,} to {new:,}"
        for name, old, new, bound in zip(Held.__annotations__, astuple(before), astuple(after), BOUNDS)
        if new > old + bound
    ]
    print("\n".join(faults) or f"nothing rises: {before}, and then {after}")
    sys.exit(bool(faults))


def soak(folder: Path, seconds: float) -> list[Held]:
    """Train for a time; the highest values of each interval from the first logged step on."""
    write_records(folder / "train", sorted(list(range(6)) * 12))
    write_verification_set(folder / "pairs.bin")
    (folder / "config.py").write_text("from easydict import EasyDict\nconfig = EasyDict()\n")
    command = [sys.executable, "train.py", str(folder / "config.py"), f"rec={folder / 'train'}", *SETTINGS]
    command += [f"output={folder / 'run'}", f"rec_val={folder}"]
    metrics, seen = folder / "run" / "metrics.jsonl", []
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(folder / "log.txt", "w") as log:
        training = subprocess.Popen(command, cwd=ROOT / "old_model", stdout=log, stderr=log, env=environment)
    try:
        while training.poll() is None and not (metrics.exists() and metrics.stat().st_size):
            time.sleep(0.5)
        end = time.monotonic() + seconds
        while training.poll() is None and time.monotonic() < end:
            samples, until = [held(training.pid)], time.monotonic() + EVERY
            while training.poll() is None and time.monotonic() < until:
                time.sleep(0.2)
                samples.append(held(training.pid))
            seen.append(highest(samples))
            steps = [line for line in metrics.read_text().splitlines() if '"epoch"' in line]
            print(f"epoch {json.loads(steps[-1])['epoch']:6.0f}: {described(seen[-1])}", flush=True)
        if training.poll() is not None:
            sys.exit(
                f"the training ended with status {training.returncode}: {(folder / 'log.txt').read_text()[-3000:]}"
            )
    finally:
        training.kill()
        training.wait()
    return seen


def held(pid: int) -> Held:
    """What a process and its children hold; less of those that end meanwhile."""
    values = [0, 0, 0, 0]
    for process in (pid, *children(pid)):
        try:
            status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
            files = len(os.listdir(f"/proc/{process}/fd"))
        except OSError:
            continue
        memory = 1024 * int(status.get("VmRSS", "0 kB").split()[0])
        values = [total + own for total, own in zip(values, (memory, files, int(status["Threads"]), 1))]
    return Held(*values)


def children(pid: int) -> list[int]:
    """The numbers of a process's children, whichever of its threads started them."""
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, file.read_text().split())
        except OSError:
            pass
    return found


def highest(samples: list[Held]) -> Held:
    """The highest of each value."""
    return Held(*map(max, zip(*map(astuple, samples))))


def described(values: Held) -> str:
    """For people."""
    memory = f"{values.memory / 2**20:7.1f} MiB"
    return f"{memory}, {values.files} files, {values.threads} threads, {values.processes} processes"


if __name__ == "__main__":
    main()
