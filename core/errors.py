"""How a program ends: with status 0, or with one line that says what the user has to correct."""

import errno
import os
import re
import select
import signal
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import NoReturn

__all__ = ["REMEDIES", "UserError", "explain", "number_of", "run_program"]

ERROR_STATUS, INTERRUPTED, CLOSED_PIPE = 2, 130, 141
STDOUT = 1
SECONDS_TO_CLEAN_UP = 5.0
"""After Ctrl-C."""
LONGEST_LINE = 4000
"""Characters: parsers quote the files that they cannot read."""
REMEDIES = {
    errno.EACCES: "change its permissions, run as a user who has them, or name another path",
    errno.EPERM: "change its permissions, run as a user who has them, or name another path",
    errno.EROFS: "name a path on a disk that can be written to",
    errno.ENOSPC: "make room there, or name a path on another disk",
    errno.EDQUOT: "make room there, or name a path on another disk",
    errno.EFBIG: "raise the limit (ulimit -f), or name a path on another disk",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOTDIR: "a part of the path is a file: correct it",
    errno.EISDIR: "name a file, not a folder",
    errno.ELOOP: "correct the links, which lead in a circle",
    errno.EMFILE: "raise the limit (ulimit -n)",
    errno.ENFILE: "raise the limit (ulimit -n)",
    errno.EIO: "check the disk, or name a path on another one",
    **dict.fromkeys(
        (errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.ETIMEDOUT, errno.EREMOTEIO),
        "mount the network disk again, then repeat the command",
    ),
}
"""What to do about an error of the operating system."""
OF_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE)
"""Errors that no fault of a program causes, whether a path is named or not."""
CODE = (str(Path(__file__).resolve().parent), *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")))
"""Folders of programs: a file that is missing there is no mistake of the user."""
OF_MEMORY = re.compile(r"out of memory|can't allocate memory")
"""In the text of PyTorch's errors when the memory of a GPU or of the machine is used up."""
OF_RUST = re.compile(r"\(os error (\d+)\)(?:: (.+))?")
"""In the text of an error from Polars, which has neither `errno` nor `filename`."""


class UserError(ValueError):
    """A mistake that the user can correct. The text says what is wrong, where, and what to do, in one line."""


def run_program(main: Callable[[], None]) -> NoReturn:
    """Run `main` and exit: 0, or 2 after one `error: ` line on stderr.

    The line is for a `UserError`, for memory that is used up, and for whatever the operating system refuses to do with
    a path (permissions, a full disk, a name that is too long). Any other exception is a fault of the program and keeps
    its traceback.

    Under torchrun the failing ranks agree, through torchrun's own store, on the one that prints; a rank whose
    collective broke because another rank has already reported its error exits silently.

    Whatever reads its output may close it (`| head`): status 141, and no word.

    Ctrl-C ends it with status 130, some seconds later at most; a second one at once.
    """
    try:
        with _interruptible():
            main()
            sys.stdout.flush()
    except KeyboardInterrupt:
        _leave(INTERRUPTED)
    except BrokenPipeError:
        if not _output_is_closed():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)  # for what is still to be written
        _leave(CLOSED_PIPE)
    except Exception as error:
        line = _line_of(error)
        if line is not None:
            if _claim_report():
                sys.stdout.flush()
                print("error: " + " ".join(line.split())[:LONGEST_LINE], file=sys.stderr, flush=True)  # noqa: T201
            _leave(ERROR_STATUS)
        if _was_reported():
            _leave(ERROR_STATUS)
        raise
    sys.exit(0)


def _output_is_closed() -> bool:
    """Whether nobody reads what is written to stdout any more."""
    output = select.poll()
    output.register(STDOUT, select.POLLOUT)
    return any(event & select.POLLERR for _, event in output.poll(0))


@contextmanager
def _interruptible() -> Iterator[None]:
    """Meanwhile Ctrl-C leaves `SECONDS_TO_CLEAN_UP` for temporary files to be removed and workers to be ended.

    Workers that are interrupted while they start may hold what the clean-up waits for.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGALRM):
            signal.signal(each, lambda number, frame: os._exit(INTERRUPTED))
        signal.setitimer(signal.ITIMER_REAL, SECONDS_TO_CLEAN_UP)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise
    finally:
        signal.signal(signal.SIGINT, before)


def explain(error: OSError) -> str:
    """What the operating system says and what to do about it, such as "Permission denied; change its permissions".

    The path is not in it.
    """
    code = number_of(error)
    text = error.strerror or (str(error) if code is None else os.strerror(code))
    remedy = REMEDIES.get(code or 0, "check the path and its disk")
    return f"{text}; {remedy}"


def number_of(error: OSError) -> int | None:
    """The number of what the operating system refused, also from Polars, which has it in its text alone."""
    found = OF_RUST.search(str(error))
    return int(found[1]) if error.errno is None and found else error.errno


def _line_of(error: Exception) -> str | None:
    """The line for a mistake that the user can correct, None for a fault of the program."""
    if isinstance(error, UserError):
        return str(error)
    if _is_of_memory(error):
        said = str(error).splitlines()[0][:300] if str(error) else "MemoryError"
        return f"the memory is used up ({said}): set a smaller batch size, image size or network"
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        return f"a name is not UTF-8: {error.object[:500]!a}; rename the file or folder"
    if not isinstance(error, OSError):
        return None
    if (found := OF_RUST.search(str(error))) and error.errno is None:
        return f"cannot use {found[2] or 'a file'}: {explain(error)}"
    if error.filename is None and error.errno in OF_DISK:
        return f"cannot read or write a file: {explain(error)}"
    if error.errno is None or error.filename is None or isinstance(error.filename, int):
        return None
    path, other = os.fsdecode(error.filename), error.filename2
    if os.path.abspath(path).startswith(tuple(f"{folder}{os.sep}" for folder in CODE)):
        return None
    also = f" and {os.fsdecode(other)}" if other is not None else ""
    return f"cannot use {path}{also}: {explain(error)}"


def _is_of_memory(error: Exception) -> bool:
    """Whether Python, PyTorch or the system, which names no file then, says that the memory is used up."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM and error.filename is None
    return isinstance(error, RuntimeError) and OF_MEMORY.search(str(error)) is not None


def _leave(status: int) -> NoReturn:
    """Exit at once: destroying a process group would wait for other ranks, and may print after the error line."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _launcher_store():
    """The store that torchrun's agent keeps for its workers, or None outside torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    from torch.distributed import TCPStore

    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10), wait_for_workers=False)
    except RuntimeError:
        return None


def _report_key() -> str:
    return "bctlab/error/" + os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def _claim_report() -> bool:
    """True on the first rank that asks. The others wait a moment, so that its line is printed before they exit."""
    store = _launcher_store()
    if store is None or store.add(_report_key(), 1) == 1:
        return True
    import time

    time.sleep(1.0)
    return False


def _was_reported() -> bool:
    store = _launcher_store()
    return store is not None and store.add(_report_key(), 0) > 0
