"""Calls that may take the machine's memory, crash or hang, within limits of both: in a forked child, or here."""

import os
import pickle
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from core.errors import UserError

__all__ = ["limited", "line_of", "outcome"]


def outcome(call: Callable[[], Any], megabytes: int = 1024, seconds: int = 30) -> Any:
    """What `call` returns in a child, or the exception that it raises there; what cannot be pickled by its `repr`.

    The child may reserve `megabytes` beyond what this process has. An `AssertionError` says which signal ended it
    (SIGALRM after `seconds`, SIGSEGV, SIGBUS and so on). Not for calls of Polars, whose threads a fork leaves behind.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(seconds)
            torch.set_num_threads(1)  # OpenMP's others stayed in the parent: the child would wait for them
            try:
                with limited(megabytes):
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


def line_of(call: Callable[[], Any], extra: int = 1 << 30, seconds: int = 200) -> str:
    """The line of the `UserError` that `call` ends with in a child, which may reserve `extra` bytes (see `outcome`)."""
    found = outcome(call, extra >> 20, seconds)
    assert isinstance(found, UserError), repr(found)
    assert "\n" not in str(found), found
    return str(found)


@contextmanager
def limited(megabytes: int = 1024, seconds: int = 0) -> Iterator[None]:
    """In this process: at most so many `megabytes` more than it has reserved, and a `TimeoutError` after `seconds`."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds} seconds")

    reserved = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, stop) if seconds else None
    resource.setrlimit(resource.RLIMIT_AS, (reserved + (megabytes << 20), before[1]))
    signal.alarm(seconds) if seconds else None
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        if seconds:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, handler)
