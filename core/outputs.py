"""Trying outputs before the work, and writing and removing files and folders completely or not at all, through kills,
losses of power and full disks.
"""

import ctypes
import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

from core.errors import UserError, explain, number_of
from core.room import no_room
from core.temporary_names import final_path, is_temporary, name_of, temporary_name

__all__ = [
    "flush",
    "flush_folder",
    "make_folder",
    "remove",
    "replaced_atomically",
    "replaced_together",
    "require_replaceable",
    "require_writable",
    "sweep",
    "writing",
]

CUT_SHORT = re.compile(r"\d+ requested and \d+ written")
"""What NumPy says of a full disk, in an error without a number."""
CAUSE = "or than a limit such as ulimit -f allows"
"""Where NumPy and PyTorch do not say it."""
OF_TORCH = re.compile(r"inline_container\.cc|PytorchStreamWriter|basic_ios::clear")
"""What PyTorch says of a full disk."""
RENAME_EXCHANGE = 2
AT_FDCWD = -100
NO_FLUSH = (errno.EACCES, errno.EBADF, errno.EINVAL, errno.EOPNOTSUPP)
"""Errors for a folder that cannot be flushed: not all file systems can, and one that may be written need not be
readable."""


def require_writable(folder: str | Path) -> None:
    """`UserError` unless files can be written in `folder`, or in the nearest folder above it if it is still to be made.

    For the outputs of a program, before its work begins. A file is written there, and removed.
    """
    _try_to_write(Path(folder) / temporary_name("writable"), Path(folder))


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
    _try_to_write(path.with_name(temporary_name(path.name)), path)


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
            raise no_room(path, os.strerror(errno.ENOSPC) if code else CAUSE) from error
        raise UserError(f"cannot write {final_path(path)}: {explain(error)}") from error
    except RuntimeError as error:
        if not OF_TORCH.search(str(error)):
            raise
        raise no_room(path, CAUSE) from error


@contextmanager
def replaced_atomically(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path of the same name; on success flush what was written there and rename it to `path`.

    Works for a file and for a folder; a link stays, and what it points to is replaced. After an exception nothing is
    left behind and `path` is as it was; after a kill or a loss of power `path` is as it was or as it was to be, and the
    next program that writes to the same folder removes what is left. When the context has ended, `path` outlives a
    loss of power. `UserError` if the parent does not exist or the disk refuses.
    """
    with replaced_together(path) as (temporary,):
        yield temporary


@contextmanager
def replaced_together(*paths: str | Path) -> Iterator[list[Path]]:
    """`replaced_atomically` with files that belong together, of which readers look for the last one.

    An older last one is removed before any other is replaced and the new one appears after all others: at no time is
    there one beside files of another write.
    """
    targets = [_target(path) for path in paths]
    with ExitStack() as stack:
        folders = {}
        for path in reversed(targets):  # an error that names no file is the first one's
            stack.enter_context(writing(path, path.with_name(f".{path.name}.")))
            _require_parent(path)
            folders[path] = stack.enter_context(_temporary_folder(path))
        yield [folders[path] / path.name for path in targets]
        for path in targets:
            flush(folders[path] / path.name)
        if len(targets) > 1 and os.path.lexists(targets[-1]):
            targets[-1].unlink()
            flush_folder(targets[-1].parent)
        for path in targets:
            _replace(folders[path] / path.name, path)
            flush_folder(path.parent)


def remove(path: str | Path) -> None:
    """Remove a file or a folder, if it is there: a killed program leaves it whole, or nothing of that name.

    `UserError` if the disk refuses.
    """
    path = Path(path)
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_dir():
        with writing(path):
            path.unlink()  # which needs no room
            flush_folder(path.parent)
        return
    sweep(path.parent)
    left = path.with_name(temporary_name(path.name))  # without a lock: whoever sweeps it removes what is removed here
    with writing(path, left):
        path.rename(left)
        flush_folder(path.parent)  # or a loss of power could keep the name and lose a part of what is in it
    shutil.rmtree(left, ignore_errors=True)


def sweep(place: str | Path) -> None:
    """Remove what killed programs left in a folder that they wrote to; put back what was moved aside, not yet replaced.

    `replaced_atomically` and `remove` do so with the folder that they write to; nothing is done where it is refused.
    """
    with suppress(OSError):
        for folder in [Path(place) / name for name in os.listdir(place) if is_temporary(name)]:
            with suppress(OSError):
                if folder.is_symlink() or not folder.is_dir():
                    continue
                with suppress(FileNotFoundError), open(_lock_of(folder), "r+b") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _clear(folder)
                if os.listdir(folder) and not os.path.lexists(_lock_of(folder)):
                    _clear(folder)  # left by a loss of power: of a live program the lock is there before all else
                folder.rmdir()  # left empty, or just made, and its program makes another one


def make_folder(path: str | Path) -> None:
    """Make a folder, and those above it, where they are missing, so that they outlive a loss of power. `OSError`."""
    path = Path(path)
    missing = [folder for folder in (path, *path.absolute().parents) if not os.path.lexists(folder)]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        flush_folder(folder.parent)


def flush(path: str | Path) -> None:
    """Wait until a file, or a folder with all that is in it, is on the disk; its own name is not."""
    path = Path(path)
    if not path.is_dir():
        _flush_file(path)
    for folder, _, files in os.walk(path, topdown=False):
        for name in files:
            _flush_file(Path(folder, name))
        flush_folder(folder)


def flush_folder(folder: str | Path) -> None:
    """Wait until the names in a folder are on the disk."""
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
    except OSError as error:
        if error.errno not in NO_FLUSH:
            raise


def _require_parent(path: Path) -> None:
    if not path.parent.is_dir():
        raise UserError(f"the folder {path.parent} of the output {path.name} does not exist: make it, or name another")


def _target(path: str | Path) -> Path:
    """What is replaced: `path`, or what it links to. `UserError` for a device or a pipe, which would be lost."""
    path = Path(path)
    with writing(path):
        if path.is_symlink():
            path = Path(os.path.realpath(path))
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UserError(f"cannot write {path}: it is a device or a pipe; name a file")
    return path


@contextmanager
def _temporary_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, removed at the end with all that is in it; those that were left there are removed.

    Names are random: a process number may be another one's in another container. As long as its program lives, the
    folder holds a locked file, so nobody takes it for left behind, however long the program writes or sleeps; a kill
    frees the lock, and the next program need not wait for a day to have the room back. The lock is a file's and not the
    folder's, which NFS does not lock for other machines. Where nothing can be locked, nothing is removed.
    """
    sweep(path.parent)
    while True:
        folder = path.with_name(temporary_name(path.name))
        folder.mkdir()
        try:
            lock = open(_lock_of(folder), "xb")
        except FileNotFoundError:  # a sweep took the folder before it had its lock
            continue
        if _is_locked(lock) and os.path.lexists(_lock_of(folder)):
            break
        lock.close()
    try:
        yield folder
    finally:
        with suppress(OSError):
            _clear(folder)
        lock.close()
        with suppress(OSError):
            folder.rmdir()


def _is_locked(lock: BinaryIO) -> bool:
    """Lock a file that was just made; False if a sweep has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks, for sweeps too
        pass
    return True


def _lock_of(folder: Path) -> Path:
    return folder / f"{name_of(folder)}.lock"


def _aside_of(folder: Path) -> Path:
    """Where the folder that is being replaced is meanwhile, if two folders cannot be exchanged."""
    return folder / f"{name_of(folder)}.old"


def _clear(folder: Path) -> None:
    """Empty a temporary folder whose lock is held; the lock goes last, or what is left would have none."""
    output, aside, lock = folder.with_name(name_of(folder)), _aside_of(folder), _lock_of(folder)
    if os.path.lexists(aside) and not os.path.lexists(output):
        aside.rename(output)
    for path in folder.iterdir():
        if path != lock:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    lock.unlink(missing_ok=True)


def _replace(temporary: Path, path: Path) -> None:
    """Give `temporary` the name `path`. What was there is left in the temporary folder."""
    if not (temporary.is_dir() and path.is_dir()):
        os.replace(temporary, path)
    elif not _exchange(temporary, path):
        path.rename(_aside_of(temporary.parent))
        temporary.rename(path)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders at once; False where the system or its C library cannot."""
    call = getattr(ctypes.CDLL(None), "renameat2", None)
    return call is not None and call(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0


def _try_to_write(file: Path, output: Path) -> None:
    """Write where `file` would be, in the nearest folder that exists; `UserError` naming `output` if it is impossible.

    What is written has no name, so that a kill leaves nothing.
    """
    str(output).encode()  # TensorBoard and others take no name that is not UTF-8
    place = next(folder for folder in file.absolute().parents if os.path.lexists(folder))
    with writing(output, place):
        if not place.is_dir():
            raise UserError(f"cannot write {output}: {place} is no folder; name another path")
        for name in (*output.parts[1:], file.name):
            (place / name).exists()  # an error for a name that is too long
        with TemporaryFile(dir=place, prefix=".writable.", suffix=temporary_name(""), buffering=0) as probe:
            probe.write(b"\0")


def _flush_file(path: Path) -> None:
    if not path.is_file() or path.is_symlink():
        return
    with open(path, "rb") as handle:
        os.fsync(handle.fileno())
