"""Claims: one work at a time holds a folder, by a lock that ends with the processes that hold it."""

import errno
import fcntl
import io
import logging
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from core.errors import UserError
from core.outputs import make_folder, writing

__all__ = ["CLAIM", "claimed", "joined"]

logger = logging.getLogger(__name__)
CLAIM = "work.lock"
"""The locked file in a claimed folder. It is there while the claim lasts, and after a kill."""
_held: set[io.FileIO] = set()


@contextmanager
def claimed(folder: str | Path, work: str, *, make: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold a folder for one work, named for people; `UserError` that says which other one holds it.

    The claim ends with the context, or with the process if it is killed; where other processes have `joined` it, with
    the last of them. Processes that are forked meanwhile hold nothing. `make`: the folder if it is missing; it is
    removed again if nothing but the claim comes into it. `wait`: for the end of the other work, even if that removes
    the folder. Where the file system has no locks, a warning is logged and nobody is kept out.

    The lock is flock's, which NFS has too. It is exclusive for a moment and shared from then on, so that others can
    join; what is asked for first is always the exclusive one.
    """
    folder, made, lock = Path(folder), [], None
    while lock is None:
        if make:
            made += _make(folder)
        lock = _take(folder, work, make, wait)
        if lock is None and not make:
            raise UserError(f"another process has just finished or removed {folder}: repeat the command")
    _held.add(lock)
    try:
        yield
    finally:
        _release(lock, folder, made)


@contextmanager
def joined(folder: str | Path) -> Iterator[None]:
    """Hold a folder along with the process that has `claimed` it, for the same work.

    `UserError` if that claim has ended and another work takes the folder.
    """
    folder = Path(folder)
    _make(folder)  # which is there, but on a network disk perhaps not to be seen from here yet
    with writing(folder / CLAIM):
        lock = _open(folder / CLAIM)
    with lock:
        if not _try_to_lock(lock, fcntl.LOCK_SH) or not _is_at(lock, folder / CLAIM):
            raise _refusal(lock, folder)
        _held.add(lock)
        try:
            yield
        finally:
            _held.discard(lock)


def _take(folder: Path, work: str, make: bool, wait: bool) -> io.FileIO | None:
    """The file of the claim, locked; None if another work finished or removed the folder in the meantime."""
    path = folder / CLAIM
    with writing(path):
        try:
            lock = _open(path)
        except FileNotFoundError:
            if make and not folder.exists():
                return None
            raise
    try:
        if not _try_to_lock(lock, fcntl.LOCK_EX):
            if not wait:
                raise _refusal(lock, folder)
            logger.info("waiting for another work that holds %s (%s)", folder, _holder(lock))
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_at(lock, path):
            lock.close()
            return None
        since = datetime.now().isoformat(" ", "seconds")
        text = f"{work}, process {os.getpid()} on {socket.gethostname()} since {since}"
        with suppress(OSError):  # a full disk must not hinder a work that makes room
            lock.truncate(0)
            lock.write(text.encode())
        if not _try_to_lock(lock, fcntl.LOCK_SH):  # the change need not be atomic: another took it in between
            raise _refusal(lock, folder)
        return lock
    except BaseException:
        lock.close()
        raise


def _make(folder: Path) -> list[Path]:
    """Make the folder and those above it that are missing; those that were made, from the innermost."""
    with writing(folder):
        missing = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
        make_folder(folder)
    return missing


def _open(path: Path) -> io.FileIO:
    """The file of a claim, made if it is missing; `UserError` for a link and whatever else is no plain file.

    It is open for writing: NFS gives an exclusive lock for no other.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)

    try:
        lock = open(path, "r+b", buffering=0, opener=opener)
        status = os.fstat(lock.fileno())
        if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
            return lock
        lock.close()
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
    raise UserError(f"{path} is a link or no plain file, and is needed as one: remove it, then repeat the command")


def _try_to_lock(lock: io.FileIO, how: int) -> bool:
    """False if another process holds the file. A warning is logged for a file system without locks."""
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if how == fcntl.LOCK_EX:
            logger.warning("%s cannot be locked (%s): start no other work there", lock.name, error.strerror)
    return True


def _is_at(lock: io.FileIO, path: Path) -> bool:
    """Whether the open file is still the one at the path."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), os.lstat(path))
    except FileNotFoundError:
        return False


def _holder(lock: io.FileIO) -> str:
    """What the file says of the process that holds it."""
    return " ".join(os.pread(lock.fileno(), 500, 0).decode(errors="replace").split()) or "it does not say which"


def _refusal(lock: io.FileIO, folder: Path) -> UserError:
    return UserError(
        f"another work holds {folder} ({_holder(lock)}): wait until it ends, or stop it, then repeat the command"
    )


def _release(lock: io.FileIO, folder: Path, made: list[Path]) -> None:
    """End a claim. Its file is removed unless another process still holds it; so are empty folders that were made."""
    if lock.closed:  # in a forked process
        return
    _held.discard(lock)
    with lock, suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.truncate(0)
        if _is_at(lock, folder / CLAIM):
            (folder / CLAIM).unlink()
    for path in made:
        with suppress(OSError):
            path.rmdir()


def _let_go() -> None:
    """In a forked process: a lock lasts as long as any process has its file open."""
    for lock in _held:
        lock.close()
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
