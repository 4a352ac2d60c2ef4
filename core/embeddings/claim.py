"""The claim of one run to a folder that it fills."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from core.errors import UserError

__all__ = ["LOCK", "claimed"]

logger = logging.getLogger(__name__)
LOCK = "lock"


@contextmanager
def claimed(partial: Path, wait: bool) -> Iterator[None]:
    """Claim the folder of an extraction under way, made if it is missing, for this run alone.

    The claim ends with the context, or with the process if it is killed.
    """
    lock = _lock(partial, wait)
    while lock is None:
        lock = _lock(partial, wait)
    with lock:
        yield


def _lock(partial: Path, wait: bool) -> TextIO | None:
    """The locked lock file of the folder; None if another run finished or removed the folder in the meantime.

    The file is open for writing: NFS gives an exclusive lock for no other.
    """
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder of the embedding store {partial}: {error.strerror}") from error
    try:
        lock = open(partial / LOCK, "w")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot make the folder of the embedding store {partial}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            raise UserError(
                f"another run is making the embedding store in {partial}: wait for it or name another folder"
            ) from None
        logger.info("waiting for another run that is making the embedding store in %s", partial)
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        logger.warning("%s cannot be locked (%s): let no other run make the same store", partial, error.strerror)
    try:
        if os.path.samestat(os.fstat(lock.fileno()), os.stat(partial / LOCK)):
            return lock
    except FileNotFoundError:
        pass
    lock.close()
    return None
