"""The claim of one long work on a gallery folder: creation, backfill, commit, rollback."""

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from core.errors import UserError
from core.files import writing

__all__ = ["CLAIM", "claimed"]

logger = logging.getLogger(__name__)
CLAIM = "work.lock"


@contextmanager
def claimed(folder: str | Path, work: str) -> Iterator[None]:
    """Hold a gallery folder for one long work, named for people; `UserError` that says which other one holds it.

    The claim ends with the context, or with the process if it is killed. It keeps out other long works alone: entries
    may be enrolled, changed and deleted meanwhile.
    """
    path = Path(folder) / CLAIM
    with writing(path):
        lock = open(path, "a+b", buffering=0)  # for writing: NFS gives an exclusive lock for no other
    with lock:
        _lock(lock, path)
        since = datetime.now().isoformat(" ", "seconds")
        with suppress(OSError):  # a full disk must not hinder a work that makes room
            lock.truncate(0)
            lock.write(f"{work}, process {os.getpid()} on {socket.gethostname()} since {since}".encode())
        try:
            yield
        finally:
            with suppress(OSError):
                lock.truncate(0)


def _lock(lock: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().decode(errors="replace") or "it does not say which"
        raise UserError(
            f"another work holds {path.parent} ({holder}): wait until it ends, or stop it, then repeat the command"
        ) from None
    except OSError as error:
        logger.warning("%s cannot be locked (%s): start no other work on the gallery", path, error.strerror)
    try:
        held = os.path.samestat(os.fstat(lock.fileno()), os.stat(path))
    except FileNotFoundError:
        held = False
    if not held:
        raise UserError(f"another process has just finished or removed {path.parent}: repeat the command")
