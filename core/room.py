"""Room on the disk: required before the work, set aside, and the error where there is none."""

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

from core.errors import REMEDIES, UserError
from core.sizes import size_in_words
from core.temporary_names import final_path

__all__ = ["no_room", "require_room", "reserve"]


def require_room(path: str | Path, needed: int) -> None:
    """`UserError` with what is missing, unless the disk of `path` has room for `needed` more bytes.

    For the outputs of a program, before its work begins. Others may take the room meanwhile, and quotas are not seen:
    what then finds the disk full still ends with one line.
    """
    free = _free(Path(path))
    if free < needed:
        raise UserError(
            f"cannot write {final_path(path)}: it needs {size_in_words(needed)} and its disk has {size_in_words(free)} "
            f"free, {size_in_words(needed - free)} are missing; {REMEDIES[errno.ENOSPC]}"
        )


def no_room(path: str | Path, cause: str) -> UserError:
    """What is raised where a disk refused to take all of `path`; `cause` is what it or a library said."""
    room = "more room than its disk has"
    with suppress(OSError):
        room = f"more than the {size_in_words(_free(Path(path)))} that its disk has free"
    return UserError(f"cannot write {final_path(path)}: it needs {room} ({cause}); {REMEDIES[errno.ENOSPC]}")


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


def _free(path: Path) -> int:
    """Bytes that the disk of `path`, which may be still to be made, has for this user."""
    place = next(folder for folder in (path, *path.absolute().parents) if os.path.exists(folder))
    return shutil.disk_usage(place).free
