"""Commands of this repository that a longer program is made of: printed, run, and kept to be shown."""

import shlex
import subprocess
import sys

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
        words = [shown(argument) for argument in arguments]
        line = f"python {program} {shlex.join(words)}"
        if line not in self.lines:
            self.lines.append(line)
        if done:
            return
        print(f"\n$ {line}", flush=True)
        status = subprocess.run([sys.executable, program, *words], cwd=ROOT).returncode
        if status:
            sys.exit(status)


def shown(argument: object) -> str:
    """An argument as it is typed in the root: paths below the root are relative to it."""
    return str(argument).replace(f"{ROOT}/", "")
