"""Copies of the repository's files that a check may run or change without touching the repository itself."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def write_tree(revision: str | None, folder: Path) -> Path:
    """Write the files of `revision`, or of the working tree as it is if that is None, to the new `folder`."""
    folder.mkdir(parents=True)
    if revision is None:
        names = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard").decode().split("\0")
        for name in filter(None, names):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
    else:
        with tarfile.open(fileobj=io.BytesIO(_git("archive", "--format=tar", revision))) as archive:
            archive.extractall(folder, filter="data")
    return folder


def start(tree: Path, log: Path, *words: object, folder: str = ".", threads: int | None = 1) -> subprocess.Popen:
    """Start `python words` in a folder of the tree, with the tree's own `core`, `threads` (None: PyTorch's default)
    and no GPU.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(tree), "CUDA_VISIBLE_DEVICES": ""}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    with open(log, "w") as output:
        return subprocess.Popen(
            [sys.executable, *map(str, words)],
            cwd=tree / folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def last_line(log: Path) -> str:
    """The last line of a program's output that is not empty."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def _git(*words: str) -> bytes:
    result = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True)
    if result.returncode:
        sys.exit(f"git {' '.join(words)}: {result.stderr.decode().strip()}")
    return result.stdout
