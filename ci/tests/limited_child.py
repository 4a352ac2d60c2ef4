"""Calls that may take the machine's memory, crash or hang, in a forked child with limits of both."""

import os
import pickle
import resource
import signal
from collections.abc import Callable
from typing import Any

__all__ = ["outcome"]


def outcome(call: Callable[[], Any], megabytes: int = 1024, seconds: int = 30) -> Any:
    """What `call` returns in a child, or the exception that it raises there; what cannot be pickled by its `repr`.

    The child may reserve `megabytes` beyond what this process has. An `AssertionError` says which signal ended it
    (SIGALRM after `seconds`, SIGSEGV, SIGBUS and so on).
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(seconds)
            used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + (megabytes << 20),) * 2)
            try:
                found = call()
            except BaseException as error:
                found = error
            try:
                answer = pickle.dumps(found)
                pickle.loads(answer)
            except Exception:
                answer = pickle.dumps(repr(found))
            os.write(writer, answer[: 1 << 16])
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        answer = pipe.read()
    status = os.waitpid(child, 0)[1]
    assert os.WIFEXITED(status), f"the child was ended by {signal.Signals(os.WTERMSIG(status)).name}"
    return pickle.loads(answer)
