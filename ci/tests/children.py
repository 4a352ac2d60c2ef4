"""Work in a forked child with little memory and time: for files that might crash their reader."""

import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from core.errors import UserError

__all__ = ["line_of"]


def line_of(work: Callable[[], object], extra: int = 1 << 30, seconds: int = 20) -> str:
    """The line of the `UserError` that `work` ends with, in a child that may take `extra` bytes more.

    `AssertionError` if it raises anything else or nothing, is killed, or takes more seconds of a processor.
    """
    readable, writable = os.pipe()
    child = os.fork()
    if not child:
        os.close(readable)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # pytest has its own
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.alarm(10 * seconds)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + extra
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        said = "nothing: it was read"
        try:
            work()
        except UserError as error:
            said = f"line {error}"
        except BaseException:
            said = traceback.format_exc()
        with os.fdopen(writable, "w") as file:
            file.write(said)
        sys.stdout.flush()
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable) as file:
        said = file.read()
    status = os.waitpid(child, 0)[1]
    assert os.WIFEXITED(status), f"killed by signal {os.WTERMSIG(status)}"
    assert said.startswith("line ") and "\n" not in said, said
    return said.removeprefix("line ")
