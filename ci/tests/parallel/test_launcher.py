"""A rank ends with the torchrun that started it, and with nothing else."""

import os
import signal
import threading
import time
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from core.parallel import launcher

CONTEXT = get_context("fork")


@pytest.fixture(autouse=True)
def under_torchrun(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr(launcher, "EVERY", 0.05)


def rank(ready, out, before=lambda: None):
    """A process that would work for ever; `out` is closed when it ends."""
    os.setsid()
    before()
    launcher.end_with_launcher()
    ready.set()
    time.sleep(600)


def start(target):
    process = CONTEXT.Process(target=target)
    process.start()
    return process


def ended(out, seconds):
    """Whether every process that holds the other end of a pipe, to which nobody writes, has ended by then."""
    if not out.poll(seconds):
        return False
    with pytest.raises(EOFError):
        out.recv()
    return True


def test_ranks_end_when_torchrun_is_killed():
    ready = [CONTEXT.Event() for _ in range(2)]
    seen, kept = CONTEXT.Pipe(duplex=False)

    def torchrun():
        for event in ready:
            start(lambda event=event: rank(event, kept))
        time.sleep(600)

    process = start(torchrun)
    kept.close()
    assert all(event.wait(20) for event in ready)
    assert not seen.poll(0.3)  # while torchrun lives they do too
    process.kill()
    process.join()
    assert ended(seen, 20)


def test_rank_that_a_thread_started_lives_on_after_the_thread():
    """A launcher may start its ranks in a thread that ends: the kernel's signal for it would be the wrong one."""
    ready, done = CONTEXT.Event(), CONTEXT.Event()

    def work():
        os.setsid()
        launcher.end_with_launcher()
        ready.set()
        done.wait()

    processes = []
    thread = threading.Thread(target=lambda: processes.append(start(work)))
    thread.start()
    thread.join()
    assert ready.wait(20)
    processes[0].join(0.5)
    assert processes[0].is_alive()
    done.set()
    processes[0].join()
    assert processes[0].exitcode == 0


def test_rank_whose_torchrun_was_killed_before_it_could_look_ends_at_once():
    ready = CONTEXT.Event()
    seen, kept = CONTEXT.Pipe(duplex=False)
    adopter, adopted = CONTEXT.Pipe(duplex=False)

    def orphaned():
        torchrun = os.getppid()
        os.kill(torchrun, signal.SIGKILL)
        while os.getppid() == torchrun:
            time.sleep(0.01)
        adopted.send(os.getppid())

    process = start(lambda: (start(lambda: rank(ready, kept, orphaned)), time.sleep(600)))
    kept.close()
    process.join()
    by = adopter.recv()
    adopted.close()
    try:
        is_python = Path(os.readlink(f"/proc/{by}/exe")).name.startswith("python")
    except OSError:
        is_python = False
    if is_python:
        pytest.skip("orphans are adopted by a Python process here")
    assert ended(seen, 20) and not ready.is_set()


def test_process_that_torchrun_did_not_start_is_left_alone(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    threads = threading.active_count()
    launcher.end_with_launcher()
    assert threading.active_count() == threads


def test_one_thread_watches_however_often_it_is_asked_to():
    def work():
        for _ in range(3):
            launcher.end_with_launcher()
        names = [thread.name for thread in threading.enumerate()]
        os._exit(names.count(launcher.__name__))

    process = start(work)
    process.join()
    assert process.exitcode == 1


@pytest.mark.parametrize(
    ("variables", "own"),
    [
        ({"TORCHELASTIC_USE_AGENT_STORE": "True", "GROUP_WORLD_SIZE": "1"}, True),
        ({"TORCHELASTIC_USE_AGENT_STORE": "True", "GROUP_WORLD_SIZE": "2"}, False),
        ({"TORCHELASTIC_USE_AGENT_STORE": "False", "GROUP_WORLD_SIZE": "1"}, False),
        ({}, False),
    ],
)
def test_each_start_on_one_machine_has_its_own_part_of_the_store(monkeypatch, variables, own):
    agents = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(agents.port), **variables}.items():
        monkeypatch.setenv(name, value)
    stores = []
    for restarts in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
        stores.append(launcher.own_store(timedelta(seconds=10)))
    if not own:
        assert stores == [None, None]
        return
    first, second = stores
    first.set("address of rank 0", "a dead one")
    assert first.check(["address of rank 0"]) and not second.check(["address of rank 0"])
