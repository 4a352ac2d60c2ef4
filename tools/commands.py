"""Commands of this repository that a longer program is made of: printed, run, and kept to be shown."""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from core.files import ROOT

__all__ = ["Commands"]


class Commands:
    """Runs programs of this repository in its root, one after another; `lines` are the commands as they are typed."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def run(self, program: str, *arguments: object, done: bool = False) -> None:
        """Print a command and run it, unless it is `done`: then it is only kept.

        A failure, which the command has reported itself, ends this program with the same status.
        """
        words = self._keep(program, arguments)
        if done:
            return
        print(f"\n$ {shlex.join(['python', *words])}", flush=True)
        status = subprocess.run([sys.executable, *words], cwd=ROOT).returncode
        if status:
            sys.exit(status)

    def run_together(self, commands: Sequence[tuple[str, Sequence[object]]]) -> None:
        """Print commands, each a program and its arguments, and run them at the same time.

        Each gets an equal share of this machine's threads: small networks use one thread far better than two. Their
        lines come as they are written, behind the number of the command. After a failure the others are stopped.
        """
        kept = [self._keep(program, arguments) for program, arguments in commands]
        print(
            "\nTogether:", *(f"[{n}] $ {shlex.join(['python', *words])}" for n, words in enumerate(kept, 1)), sep="\n"
        )
        threads = {"OMP_NUM_THREADS": str(max(torch.get_num_threads() // len(kept), 1))}
        started = [
            subprocess.Popen(
                [sys.executable, *words], cwd=ROOT, env=os.environ | threads, text=True, errors="replace",
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
            for words in kept
        ]  # fmt: skip

        def follow(number: int, command: subprocess.Popen[str]) -> int:
            assert command.stdout is not None
            for line in command.stdout:
                print(f"[{number}] {line}", end="", flush=True)
            status = command.wait()
            if status:
                for other in started:
                    other.terminate()
            return status

        try:
            with ThreadPoolExecutor(len(started)) as readers:
                statuses = list(readers.map(follow, range(1, len(started) + 1), started))
        finally:
            for command in started:
                command.terminate()
        failed = [status for status in statuses if status]
        if failed:
            sys.exit(max(failed))  # one that was stopped has a negative status

    def _keep(self, program: str, arguments: Sequence[object]) -> list[str]:
        """The words of a command, which is added to `lines`."""
        words = [program, *(shown(argument) for argument in arguments)]
        line = shlex.join(["python", *words])
        if line not in self.lines:
            self.lines.append(line)
        return words


def shown(argument: object) -> str:
    """An argument as it is typed in the root: paths below the root are relative to it."""
    return str(argument).replace(f"{ROOT}/", "")
