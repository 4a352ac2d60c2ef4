import os
import re
import signal
from multiprocessing import get_context

import pytest

from core.errors import UserError
from core.gallery.claim import CLAIM, claimed


def hold(folder, ready, end):
    with claimed(folder, "backfill"):
        ready.set()
        end.wait()


def holding(folder):
    context = get_context("fork")
    ready, end = context.Event(), context.Event()
    process = context.Process(target=hold, args=(folder, ready, end))
    process.start()
    assert ready.wait(20)
    return process, end


def test_a_second_work_is_told_at_once_who_holds_the_gallery(tmp_path):
    process, end = holding(tmp_path)
    with pytest.raises(UserError, match=re.escape(f"holds {tmp_path} (backfill, process {process.pid} on ")) as raised:
        with claimed(tmp_path, "commit"):
            raise AssertionError
    assert "\n" not in str(raised.value)
    end.set()
    process.join()
    with claimed(tmp_path, "commit"):
        assert (tmp_path / CLAIM).read_text().startswith(f"commit, process {os.getpid()} on ")
    assert (tmp_path / CLAIM).read_text() == ""


def test_the_claim_of_a_killed_work_ends_with_it(tmp_path):
    process, _ = holding(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with claimed(tmp_path, "commit"):
        pass


def test_a_claim_ends_with_an_exception(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), claimed(tmp_path, "backfill"):
            raise ZeroDivisionError


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(UserError, match="cannot write .*No such file"), claimed(tmp_path / "no", "backfill"):
        pass


def test_a_folder_that_was_put_in_the_place_of_the_claimed_one_is_noticed(tmp_path, monkeypatch):
    import fcntl

    def lock(file, how):
        (tmp_path / CLAIM).unlink()  # as if its holder had finished and removed it

    monkeypatch.setattr(fcntl, "flock", lock)
    with pytest.raises(UserError, match="has just finished or removed"), claimed(tmp_path, "backfill"):
        pass
