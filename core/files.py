"""Paths of configs, checking paths and room before they are needed, reading files that may be damaged, and writing
files completely or not at all.
"""

import errno
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from core.errors import REMEDIES, UserError, explain, number_of

__all__ = [
    "ROOT",
    "reading",
    "replaced_atomically",
    "require_file",
    "require_replaceable",
    "require_room",
    "require_writable",
    "reserve",
    "resolve",
    "writing",
]

ROOT = Path(__file__).resolve().parent.parent
"""The repository's root: paths in configs are relative to it, wherever a command is started."""
CUT_SHORT = re.compile(r"\d+ requested and \d+ written")
"""What NumPy says of a full disk, in an error without a number."""
OF_TORCH = "[enforce fail at inline_container.cc"
"""How PyTorch begins what it says of a full disk."""

UNITS = ("bytes", "kB", "MB", "GB", "TB")


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
    return path


def require_writable(folder: str | Path) -> None:
    """`UserError` unless files can be written in `folder`, or in the nearest folder above it if it is still to be made.

    For the outputs of a program, before its work begins. A file is written there, and removed.
    """
    _try_to_write(Path(folder) / _temporary_name("writable"), Path(folder))


def require_replaceable(path: str | Path, *, folder: bool = False) -> None:
    """`UserError` unless `replaced_atomically` can write a file at `path`, or with `folder` a folder.

    For the outputs of a program, before its work begins. The parent of a folder may be still to be made.
    """
    path = _target(path)
    if not folder:
        _require_parent(path)
    with writing(path):
        if path.exists() and path.is_dir() != folder:
            raise UserError(f"{path} is a file: name a folder" if folder else f"{path} is a folder: name a file")
        if os.path.ismount(path):
            raise UserError(f"{path} is the root of a disk, which cannot be replaced: name a folder in it")
    _try_to_write(path.with_name(_temporary_name(path.name)), path)


def require_room(path: str | Path, needed: int) -> None:
    """`UserError` with what is missing, unless the disk of `path` has room for `needed` more bytes.

    For the outputs of a program, before its work begins. Others may take the room meanwhile, and quotas are not seen:
    what then finds the disk full still ends with one line.
    """
    free = _free(Path(path))
    if free < needed:
        raise UserError(
            f"cannot write {path}: it needs {_size(needed)} and its disk has {_size(free)} free, "
            f"{_size(needed - free)} are missing; {REMEDIES[errno.ENOSPC]}"
        )


def reserve(file: Path, size: int) -> None:
    """Have the disk set room aside for the first `size` bytes of a file that is there, which are then zeros.

    Where the disk is full, a write through a memory map kills the process. `OSError` without a name if there is not
    enough room; nothing on file systems that cannot reserve it.
    """
    with open(file, "r+b") as handle:
        try:
            os.posix_fallocate(handle.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise


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
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise UserError(f"{path} is not a readable {what}: {said[:500]}; {remedy}") from error


@contextmanager
def writing(path: str | Path, *others: str | Path) -> Iterator[None]:
    """Raise a `UserError` in place of an error of the disk, PyTorch's and NumPy's among them, while `path` is written.

    `others`: temporary names of the same output. Errors that name other files, which may be read meanwhile, stay.
    """
    try:
        yield
    except OSError as error:
        own = error.filename is None or os.fsdecode(error.filename).startswith((str(path), *map(str, others)))
        code = number_of(error)
        if not own or (code is None and not CUT_SHORT.search(str(error))):
            raise
        if code in (errno.ENOSPC, None):
            raise _no_room(Path(path), error) from error
        raise UserError(f"cannot write {path}: {explain(error)}") from error
    except RuntimeError as error:
        if not str(error).startswith(OF_TORCH):
            raise
        raise _no_room(Path(path), error) from error


@contextmanager
def replaced_atomically(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush what was written there and rename it to `path`.

    Works for a file and for a folder; a link stays, and what it points to is replaced. After an exception nothing is
    left behind and `path` is as it was. `UserError` if the parent does not exist or the disk refuses.
    """
    path = _target(path)
    temporary = path.with_name(_temporary_name(path.name))
    try:
        with writing(path, temporary):
            _require_parent(path)
            yield temporary
            _flush(temporary)
            if temporary.is_dir() and path.is_dir():
                shutil.rmtree(path)
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            shutil.rmtree(temporary) if os.path.isdir(temporary) else temporary.unlink(missing_ok=True)


def _require_parent(path: Path) -> None:
    if not path.parent.is_dir():
        raise UserError(f"the folder {path.parent} of the output {path.name} does not exist: make it, or name another")


def _free(path: Path) -> int:
    """Bytes that the disk of `path`, which may be still to be made, has for this user."""
    place = next(folder for folder in (path, *path.absolute().parents) if os.path.exists(folder))
    return shutil.disk_usage(place).free


def _no_room(path: Path, error: Exception) -> UserError:
    """What is raised for `error`, of a disk without room for `path`. NumPy and PyTorch do not say what cut it short."""
    room = "more room than its disk has"
    with suppress(OSError):
        room = f"more than the {_size(_free(path))} that its disk has free"
    limit = "" if isinstance(error, OSError) and number_of(error) else ", or than a limit (ulimit -f) allows"
    return UserError(f"cannot write {path}: it needs {room}{limit}; {REMEDIES[errno.ENOSPC]}")


def _size(count: int) -> str:
    """A number of bytes for people, such as 12.3 MB; never less than it is."""
    power = min((len(str(count)) - 1) // 3, len(UNITS) - 1)
    return f"{math.ceil(count / 10 ** (3 * power) * 10) / 10 if power else count:,} {UNITS[power]}"


def _target(path: str | Path) -> Path:
    """What is replaced: `path`, or what it links to. `UserError` for a device or a pipe, which would be lost."""
    path = Path(path)
    with writing(path):
        if path.is_symlink():
            path = Path(os.path.realpath(path))
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UserError(f"cannot write {path}: it is a device or a pipe; name a file")
    return path


def _temporary_name(name: str) -> str:
    return f".{name}.{secrets.token_hex(4)}.tmp"


def _try_to_write(file: Path, output: Path) -> None:
    """Write and remove `file`, in the nearest folder that exists; `UserError` naming `output` if that is impossible."""
    str(output).encode()  # TensorBoard and others take no name that is not UTF-8
    place = next(folder for folder in file.absolute().parents if os.path.lexists(folder))
    probe = place / file.name
    with writing(output, place):
        if not place.is_dir():
            raise UserError(f"cannot write {output}: {place} is no folder; name another path")
        for name in output.parts[1:]:
            (place / name).exists()  # an error for a name that is too long
        try:
            probe.write_bytes(b"\0")
        finally:
            with suppress(OSError):
                probe.unlink()


def _flush(path: Path) -> None:
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    for file in files:
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
