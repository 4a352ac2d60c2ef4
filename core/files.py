"""Paths of configs, and reading files that may be missing or damaged."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import UserError, explain

__all__ = ["ROOT", "first_line", "reading", "require_file", "resolve"]

ROOT = Path(__file__).resolve().parent.parent
"""The repository's root: paths in configs are relative to it, wherever a command is started."""
LONGEST_LINE = 1 << 16
"""Bytes: a table that begins with a longer one has more columns than can be read in reasonable time."""


def resolve(path: str | Path) -> Path:
    """A path of a config: an absolute one as it is, any other below the repository's root."""
    try:
        return ROOT / Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path} is in the home of a user who is not known here: name the path in full") from error


def require_file(path: str | Path, what: str) -> Path:
    """The path, if a file is there; `UserError` naming `what` and the path otherwise."""
    path = Path(path)
    try:
        kind = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{what} not found: {path}") from None
    except OSError as error:
        raise UserError(f"{what} cannot be read: {path}: {explain(error)}") from error
    if stat.S_ISDIR(kind):
        raise UserError(f"{what} not found: {path} is a folder")
    if not stat.S_ISREG(kind):  # a pipe without a writer and /dev/zero would be read for ever
        raise UserError(f"{what} cannot be read: {path}: it is a device or a pipe; name a plain file")
    return path


def first_line(path: str | Path, what: str) -> bytes:
    """The first line of a table, `what` being its kind.

    `UserError` if it is longer than that of any table, or if the table ends in a byte of zero, which no text has: a
    file of zeros as large as the disk would fill the memory of what parses it.
    """
    with open(require_file(path, what), "rb") as file:
        line = file.readline(LONGEST_LINE + 1)
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        if file.read(1) == b"\0":
            raise UserError(f"{path} is no {what}: it ends in zeros, as an unfinished copy does; get the file again")
    if len(line) > LONGEST_LINE:
        raise UserError(f"{path} is no {what}: its first line has more than {LONGEST_LINE} bytes; get the file again")
    return line


@contextmanager
def reading(path: str | Path, what: str, remedy: str = "get the file again") -> Iterator[None]:
    """Raise a `UserError` in place of whatever a parser raises on a damaged file, `what` being its kind.

    For calls of parsers alone, which fail on damaged bytes with exceptions of any type (NumPy's header parser, JSON
    nested too deeply, sizes beyond the memory). A `UserError` stays as it is, as do errors of the operating system that
    name another file.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if error.filename is not None and os.fsdecode(error.filename) != str(path):
            raise
        if error.errno is not None:
            raise UserError(f"{what} cannot be read: {path}: {explain(error)}") from error
        raise UserError(f"{path} is not a readable {what}: {error}; {remedy}") from error
    except Exception as error:
        text = " ".join(str(error).split())
        said = f"{type(error).__name__}: {text}" if text else type(error).__name__
        raise UserError(f"{path} is not a readable {what}: {said[:500]}; {remedy}") from error
