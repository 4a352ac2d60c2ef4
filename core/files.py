"""Paths of configs, and writing files completely or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import UserError

__all__ = ["ROOT", "replaced_atomically", "require_file", "resolve"]

ROOT = Path(__file__).resolve().parent.parent
"""The repository's root: paths in configs are relative to it, wherever a command is started."""


def resolve(path: str | Path) -> Path:
    """A path of a config: an absolute one as it is, any other below the repository's root."""
    return ROOT / Path(path).expanduser()


def require_file(path: str | Path, what: str) -> Path:
    """The path, if a file is there; `UserError` naming `what` and the path otherwise."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{what} not found: {path}")
    return path


@contextmanager
def replaced_atomically(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush what was written there and rename it to `path`.

    Works for a file and for a folder. After an exception nothing is left behind and `path` is as it was.
    The parent must exist: `UserError` otherwise.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise UserError(f"the folder {path.parent} of the output {path.name} does not exist: make it, or name another")
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        yield temporary
        _flush(temporary)
        if temporary.is_dir() and path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    for file in files:
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
