"""A folder is held by one work at a time, whoever is killed, and nothing but the claim's own file is touched for it."""

import errno
import fcntl
import logging
import os
import re
import signal
from contextlib import ExitStack
from multiprocessing import get_context

import pytest

from core.claims import CLAIM, claimed, joined
from core.errors import UserError

CONTEXT = get_context("fork")


def hold(folder, ready, end, how, *works):
    with how(folder, *works):
        ready.set()
        end.wait()


@pytest.fixture
def holding():
    """Start a process that holds a folder until it is told to end."""
    with ExitStack() as processes:

        def start(folder, how=claimed, *works):
            ready, end = CONTEXT.Event(), CONTEXT.Event()
            process = CONTEXT.Process(target=hold, args=(folder, ready, end, how, *works))
            process.start()
            processes.callback(process.kill)
            assert ready.wait(20)
            return process, end

        yield start


def test_a_second_work_is_told_at_once_who_holds_the_folder(tmp_path, holding):
    process, end = holding(tmp_path, claimed, "backfill")
    told = re.escape(f"holds {tmp_path} (backfill, process {process.pid} on ") + r"\S+ since \d{4}-\S+ \S+\): wait"
    with pytest.raises(UserError, match=told) as raised, claimed(tmp_path, "commit"):
        raise AssertionError
    assert "\n" not in str(raised.value)
    end.set()
    process.join()
    with claimed(tmp_path, "commit"):
        assert (tmp_path / CLAIM).read_text().startswith(f"commit, process {os.getpid()} on ")
    assert list(tmp_path.iterdir()) == []


def test_the_claim_of_a_killed_work_ends_with_it(tmp_path, holding):
    process, _ = holding(tmp_path, claimed, "backfill")
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert (tmp_path / CLAIM).exists()
    with claimed(tmp_path, "commit"):
        pass


def test_a_claim_that_others_have_joined_ends_with_the_last_of_them(tmp_path, holding):
    first, _ = holding(tmp_path, claimed, "training")
    others = [holding(tmp_path, joined) for _ in range(2)]
    first.kill()
    first.join()
    for process, end in others:
        with pytest.raises(UserError, match=rf"training, process {first.pid} on "), claimed(tmp_path, "another"):
            pass
        end.set()
        process.join()
    with claimed(tmp_path, "another"):
        pass


def test_a_claim_that_its_first_process_ends_before_others_still_says_whose_it_is(tmp_path, holding):
    first, end_of_first = holding(tmp_path, claimed, "training")
    other, end = holding(tmp_path, joined)
    end_of_first.set()
    first.join()
    with pytest.raises(UserError, match=rf"training, process {first.pid} on "), claimed(tmp_path, "another"):
        pass
    end.set()
    other.join()
    with claimed(tmp_path, "another"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_joining_a_folder_that_another_work_is_taking_is_refused(tmp_path):
    with open(tmp_path / CLAIM, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another work holds"), joined(tmp_path):
            pass


def test_a_process_forked_meanwhile_holds_nothing(tmp_path):
    """As a loader's worker, which outlives a killed rank by some seconds."""
    end = CONTEXT.Event()
    with claimed(tmp_path, "training"):
        worker = CONTEXT.Process(target=end.wait)
        worker.start()
    with claimed(tmp_path, "another"):
        pass
    end.set()
    worker.join()
    assert worker.exitcode == 0


def test_a_forked_process_that_leaves_the_context_ends_no_claim(tmp_path):
    with claimed(tmp_path, "training"):
        child = os.fork()
        if child:
            assert os.waitpid(child, 0)[1] == 0
            with pytest.raises(UserError, match="another work holds"), claimed(tmp_path, "another"):
                pass
    if not child:
        os._exit(0)


def test_a_claim_ends_with_an_exception(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), claimed(tmp_path, "backfill"):
            raise ZeroDivisionError


def test_only_one_of_many_that_ask_at_the_same_instant_gets_the_folder(tmp_path):
    barrier, results = CONTEXT.Barrier(4), CONTEXT.SimpleQueue()

    def ask():
        for turn in range(25):
            barrier.wait()
            try:
                with claimed(tmp_path / str(turn), "training", make=True):
                    results.put(1)
                    barrier.wait()  # all have asked
            except UserError:
                results.put(0)
                barrier.wait()

    processes = [CONTEXT.Process(target=ask) for _ in range(4)]
    for process in processes:
        process.start()
    taken = sum(results.get() for _ in range(100))
    for process in processes:
        process.join()
    assert taken == 25 and [process.exitcode for process in processes] == [0] * 4


def test_a_folder_that_is_not_there_is_told_or_made(tmp_path):
    with pytest.raises(UserError, match="cannot write .*No such file"), claimed(tmp_path / "no", "backfill"):
        pass
    with claimed(tmp_path / "a" / "b", "training", make=True):
        assert os.listdir(tmp_path / "a" / "b") == [CLAIM]
    assert list(tmp_path.iterdir()) == []
    with claimed(tmp_path / "a" / "b", "training", make=True):
        (tmp_path / "a" / "b" / "result").touch()
    assert os.listdir(tmp_path / "a" / "b") == ["result"]


def test_a_folder_in_which_no_file_can_be_made_is_told():
    with pytest.raises(UserError, match=f"^cannot write /proc/{CLAIM}: "), claimed("/proc", "training", make=True):
        pass


@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link", "folder", "pipe"])
def test_what_is_no_plain_file_is_refused_and_left_alone(tmp_path, kind):
    folder, precious = tmp_path / "folder", tmp_path / "precious"
    folder.mkdir()
    lock = folder / CLAIM
    if kind != "dangling link":
        precious.write_text("precious")
    if kind in ("link", "dangling link"):
        lock.symlink_to(precious)
    elif kind == "hard link":
        lock.hardlink_to(precious)
    elif kind == "folder":
        lock.mkdir()
    else:
        os.mkfifo(lock)
    for how in (lambda: claimed(folder, "training", make=True), lambda: joined(folder)):
        with pytest.raises(UserError, match=f"{CLAIM} is a link or no plain file, .*: remove it") as raised, how():
            pass
        assert "\n" not in str(raised.value)
    assert precious.exists() == (kind != "dangling link")
    assert not precious.exists() or precious.read_text() == "precious"
    assert os.path.lexists(lock)


def test_a_file_system_without_locks_keeps_nobody_out_and_is_told_once(tmp_path, monkeypatch, caplog):
    def lock(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", lock)
    with claimed(tmp_path, "training"), joined(tmp_path):
        pass
    (message,) = caplog.messages
    assert message == f"{tmp_path / CLAIM} cannot be locked (No locks available): start no other work there"


def removing(flock, path, times):
    """flock, and as if the holder had finished and removed the folder while it was waited for."""
    left = iter(range(times))

    def lock(file, how):
        if next(left, None) is not None:
            path.unlink()
        flock(file, how)

    return lock


def test_a_folder_that_was_put_in_the_place_of_the_claimed_one_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", removing(fcntl.flock, tmp_path / CLAIM, 1))
    with pytest.raises(UserError, match="has just finished or removed"), claimed(tmp_path, "backfill"):
        pass
    monkeypatch.setattr(fcntl, "flock", removing(fcntl.flock, tmp_path / CLAIM, 3))
    with claimed(tmp_path, "training", make=True):
        with pytest.raises(UserError, match="another work holds"), claimed(tmp_path, "training", make=True):
            pass


def test_waiting_ends_with_the_other_work_and_with_its_folder(tmp_path, holding, caplog):
    caplog.set_level(logging.INFO)
    folder = tmp_path / "store.partial"
    folder.mkdir()
    process, end = holding(folder, claimed, "extraction")

    class EndIt(logging.Handler):
        def emit(self, record):
            folder.rename(tmp_path / "store")
            end.set()

    handler = EndIt()
    logging.getLogger("core.claims").addHandler(handler)
    with claimed(folder, "extraction", make=True, wait=True):
        assert (folder / CLAIM).read_text().startswith(f"extraction, process {os.getpid()} on ")
    logging.getLogger("core.claims").removeHandler(handler)
    assert [f"(extraction, process {process.pid} on" in message for message in caplog.messages] == [True]
