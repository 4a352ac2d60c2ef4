"""What a rank has from the torchrun that started it: a place to meet the others, and an end."""

import logging
import os
import threading
import time
from datetime import timedelta
from pathlib import Path

from torch import distributed

__all__ = ["end_with_launcher", "own_store"]

logger = logging.getLogger(__name__)
EVERY = 0.5
"""Seconds between two looks at the parent process."""


def end_with_launcher() -> None:
    """Under torchrun, end this process as soon as torchrun has ended, however that was; without torchrun do nothing.

    torchrun stops its ranks unless it is killed: then they would train on, beside those of the next torchrun. A thread
    looks at the parent's number, which changes when the parent ends. (Linux could send a signal instead, but it sends
    it at the end of the thread that started this process, which a launcher may end early.)
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or any(thread.name == __name__ for thread in threading.enumerate()):
        return
    parent = os.getppid()
    if _is_orphan(parent):
        _end()
    threading.Thread(target=_watch, args=(parent,), name=__name__, daemon=True).start()


def own_store(timeout: timedelta) -> distributed.Store | None:
    """The store by which this start's ranks find each other; None to leave it to PyTorch.

    torchrun keeps one store for all its restarts (`--max-restarts`), with the addresses of ranks that are dead by then:
    PyTorch's new ranks try those and wait for an answer. Here each start has a part of the store for itself. On several
    machines the agents count restarts apart, so that there is no common number.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or os.environ.get("GROUP_WORLD_SIZE") != "1":
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = distributed.TCPStore(address, port, is_master=False, timeout=timeout, wait_for_workers=False)
    return distributed.PrefixStore(f"start {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)


def _is_orphan(parent: int) -> bool:
    """True if torchrun was killed while this rank was still importing its modules, so that it has another parent now.

    torchrun is a Python process, and a rank that it started itself leads a session; what adopts orphans is neither a
    launcher nor, as a rule, Python, and often of another user, so that its program may not be looked at.
    """
    if not Path("/proc/self/exe").exists() or os.getsid(0) != os.getpid():
        return False
    try:
        return not Path(os.readlink(f"/proc/{parent}/exe")).name.startswith("python")
    except OSError:
        return True


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(EVERY)
    _end()


def _end() -> None:
    logger.error("torchrun, which started this process, has ended: so does this process")
    os._exit(1)
