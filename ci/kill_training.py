"""Kill trainings at random moments, and see that the same command ends in the weights of an unbroken run.

    python ci/kill_training.py --kills 20 --ranks 2
    python ci/kill_training.py --kills 10 --ranks 2 --elastic

A tiny training with very many checkpoints runs undisturbed. Then others are killed (SIGKILL): torchrun itself, or one
of its ranks. Where torchrun was killed, the same command follows at once, again and again while the folder is refused,
which may be for seconds; ranks that outlive their torchrun by more than that are a fault. After two kills a run may
end, and its files of weights must be those of the undisturbed one, bit for bit. With --elastic ranks alone are killed,
and torchrun starts them again by itself (--max-restarts). Prints what was killed in which state, and how often the
folder was refused; status 1 if anything was found. Reads /proc: Linux alone.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "ci" / "tests")]

from launching import free_port  # noqa: E402
from tiny import write_records  # noqa: E402

SETTINGS = [
    "network=r18", "network_options.width=8", "network_options.depth=1", "embedding_size=8", "num_epoch=10", "lr=0.02",
    "num_workers=1", "device=cpu", "frequent=2", "margin_scale=16", "checkpoint_steps=3", "sample_rate=0.7",
    "augment=['flip','noise']",
]  # fmt: skip
PATIENCE = 30
"""Seconds for which a folder may be refused, and for which ranks may outlive their torchrun."""
KILLS = 2
"""Of a run before it may end."""


class Training:
    """A torchrun with its ranks."""

    def __init__(self, folder: Path, output: str, ranks: int, port: str, restarts: int = 0):
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}", f"--master_port={port}"]
        command += [f"--max-restarts={restarts}", "train.py", str(folder / "config.py"), f"rec={folder / 'train'}"]
        command += [f"output={folder / output}", f"batch_size={24 // ranks}", *SETTINGS]
        self.log = folder / "log.txt"
        with open(self.log, "w") as log:
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(
                command, cwd=ROOT / "old_model", stdout=log, stderr=subprocess.STDOUT, env=environment
            )

    def ranks(self) -> list[int]:
        """The process numbers of its ranks."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if parent_of(pid) == self.process.pid]

    def state(self) -> str:
        """How far it is."""
        text = self.log.read_text()
        return "training" if re.search(r"training .*epochs of", text) else "starting"

    def until_it_trains(self) -> None:
        """Wait for its first step, or for its end."""
        while self.state() == "starting" and self.process.poll() is None:
            time.sleep(0.1)

    def wait(self) -> int:
        """Its status."""
        return self.process.wait(600)


def parent_of(pid: int) -> int | None:
    """The parent of a process that is alive."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state in "ZX" else int(parent)


def main() -> None:
    """Parse the command line, and kill."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="in all (20)")
    parser.add_argument("--ranks", type=int, default=2, help="processes of a training (2)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--elastic", action="store_true", help="kill ranks alone; torchrun restarts them by itself")
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        faults, killed = kill_and_compare(Path(folder), args.ranks, args.kills, args.seed, args.elastic)
    print(f"{args.ranks} ranks:", ", ".join(f"{name} {count}" for name, count in sorted(killed.items())))
    print("\n".join(faults) or "all runs ended in the weights of the undisturbed one")
    sys.exit(bool(faults))


def kill_and_compare(folder: Path, ranks: int, kills: int, seed: int, elastic: bool) -> tuple[list[str], Counter[str]]:
    """The faults that were found, and how often what was killed or refused, by what it was doing."""
    rng = np.random.default_rng(seed)
    write_records(folder / "train", sorted(list(range(6)) * 12))
    (folder / "config.py").write_text("from easydict import EasyDict\nconfig = EasyDict()\n")
    port = free_port()
    times = [time.monotonic()]
    undisturbed = Training(folder, "undisturbed", ranks, port)
    undisturbed.until_it_trains()
    times.append(time.monotonic())
    if undisturbed.wait():
        sys.exit(f"the training failed undisturbed: {undisturbed.log.read_text()}")
    start, steps = np.diff([*times, time.monotonic()])
    print(f"undisturbed: {start:.0f} s until it trains, then {steps:.0f} s", flush=True)
    faults: list[str] = []
    counts: Counter[str] = Counter()
    left, number = kills, 0
    while left > 0:
        number += 1
        output, killed = f"killed{number}", 0
        training = Training(folder, output, ranks, port, restarts=KILLS if elastic else 0)
        while killed < KILLS and left > 0:
            if rng.random() < 0.25:
                time.sleep(rng.uniform(0, start))
            else:
                training.until_it_trains()
                time.sleep(rng.uniform(0, steps))
            pids = training.ranks()
            victims = pids if elastic else [*pids, *[training.process.pid] * max(1, len(pids))]
            if training.process.poll() is not None:
                break
            if not victims:  # between two starts
                continue
            victim = victims[rng.integers(len(victims))]
            counts[f"{'rank' if victim in pids else 'torchrun'} while {training.state()}"] += 1
            os.kill(victim, signal.SIGKILL)
            killed, left = killed + 1, left - 1
            if elastic:
                continue
            training.wait()
            training, refused = go_on(folder, output, ranks, port, pids, faults)
            counts["refusals"] += refused
        if training.wait():
            faults.append(f"{output}: status {training.process.returncode}: {training.log.read_text()[-3000:]}")
        faults += [f"{output}: {name} is another" for name in others(folder / "undisturbed", folder / output)]
        print(f"{kills - left} kills: {dict(counts)}, {len(faults)} faults", flush=True)
    return faults, counts


def go_on(folder: Path, output: str, ranks: int, port: str, old: list[int], faults: list[str]) -> tuple[Training, int]:
    """Give the same command until it is not refused: the training, and how often it was refused."""
    deadline, refused = time.monotonic() + PATIENCE, 0
    while True:
        training = Training(folder, output, ranks, port)
        training.until_it_trains()
        if training.process.poll() and "another work holds" in training.log.read_text():
            refused += 1
            if time.monotonic() < deadline:
                continue
        faults += [f"{output}: rank {pid} outlives its torchrun" for pid in old if parent_of(pid) is not None]
        return training, refused


def others(right: Path, found: Path) -> list[str]:
    """The files of weights that are missing, or not bit for bit the same."""
    names = []
    for name in ("model.pt", "classifier.pt"):
        if not (found / name).exists():
            names.append(name)
            continue
        expected, there = (torch.load(path / name, weights_only=True) for path in (right, found))
        if there.keys() != expected.keys() or any(not torch.equal(there[key], expected[key]) for key in expected):
            names.append(name)
    return names


if __name__ == "__main__":
    main()
