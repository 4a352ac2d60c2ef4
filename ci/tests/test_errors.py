"""How a program ends: one line for what the user or the operating system did, a traceback for a fault of its own."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch

import core
import core.errors
from core.errors import UserError, run_program
from core.files import ROOT


@pytest.fixture
def end(monkeypatch, capfd) -> Callable[[Callable[[], object]], tuple[int, str]]:
    """Run a program to its end: its status and what it wrote to stderr."""

    def leave(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(core.errors, "_leave", leave)

    def end_program(main: Callable[[], object]) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            run_program(main)
        return ended.value.code, capfd.readouterr().err

    return end_program


def fail(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EACCES, "change its permissions, run as a user who has them, or name another path"),
        (errno.EROFS, "name a path on a disk that can be written to"),
        (errno.ENOSPC, "make room there, or name a path on another disk"),
        (errno.EDQUOT, "make room there, or name a path on another disk"),
        (errno.ENAMETOOLONG, "give a shorter name"),
        (errno.ENOTDIR, "a part of the path is a file: correct it"),
        (errno.EISDIR, "name a file, not a folder"),
        (errno.ELOOP, "correct the links, which lead in a circle"),
        (errno.ESTALE, "mount the network disk again, then repeat the command"),
        (errno.EIO, "check the disk, or name a path on another one"),
        (errno.EBUSY, "check the path and its disk"),
    ],
)
def test_error_of_the_system_on_a_path_is_one_line_and_status_2(end, number, advice):
    text = os.strerror(number)
    line = f"error: cannot use /data/a b: {text}; {advice}\n"
    assert end(fail(OSError(number, text, "/data/a b"))) == (2, line)
    assert end(fail(OSError(number, text, b"/data/a b"))) == (2, line)
    both = end(fail(OSError(number, text, "/data/a", None, "/data/b")))
    assert both == (2, f"error: cannot use /data/a and /data/b: {text}; {advice}\n")


@pytest.mark.parametrize(
    ("program", "start"),
    [
        (lambda: open("/proc/x", "w"), "cannot use /proc/x: No such file or directory; "),
        (lambda: open("/sys/kernel/x", "w"), "cannot use /sys/kernel/x: "),
        (lambda: Path("/tmp", "a" * 300).is_file(), f"cannot use /tmp/{'a' * 300}: File name too long; "),
        (lambda: os.listdir("/proc/version"), "cannot use /proc/version: Not a directory; "),
        (lambda: torch.load("/proc/self", weights_only=True), "cannot use /proc/self: Is a directory; "),
        (lambda: pl.read_csv("/proc/1/nothing.csv"), "cannot use /proc/1/nothing.csv: No such file or directory; "),
        (
            fail(OSError(errno.EIO, "Input/output error")),
            "cannot read or write a file: Input/output error; check the disk",
        ),
        (lambda: Path("/dev/full").write_text("x"), "cannot read or write a file: No space left on device; make room"),
        (lambda: "a\udcff".encode(), "a name is not UTF-8: 'a\\udcff'; rename the file or folder"),
        (fail(UserError("two\nlines  of text")), "two lines of text"),
        (
            fail(OSError(errno.ENOMEM, "Cannot allocate memory")),
            "the memory is used up ([Errno 12] Cannot allocate memory): ",
        ),
    ],
)
def test_what_the_system_and_libraries_raise_on_paths_is_one_line_and_status_2(end, program, start):
    status, errors = end(program)
    assert status == 2 and errors.startswith(f"error: {start}") and errors.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        KeyError("name"),
        ValueError("shapes differ"),
        RuntimeError("CUDA error"),
        OSError("no number and no path"),
        OSError(errno.EADDRINUSE, "Address already in use"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", os.path.join(core.__path__[0], "table.json")),
        FileNotFoundError(errno.ENOENT, "No such file or directory", os.path.join(torch.__path__[0], "x.so")),
        UnicodeEncodeError("ascii", "\u00e4", 0, 1, "ordinal not in range(128)"),
    ],
)
def test_fault_of_the_program_keeps_its_traceback(error):
    with pytest.raises(type(error)) as raised:
        run_program(fail(error))
    assert raised.value is error


STUCK = """
import time, core.errors
core.errors.SECONDS_TO_CLEAN_UP = {seconds}

def main():
    try:
        print("working", flush=True)
        time.sleep(100)
    finally:
        print("cleaning up", flush=True)
        time.sleep({cleaning})
        print("clean", flush=True)

core.errors.run_program(main)
"""


@pytest.mark.parametrize(
    ("seconds", "cleaning", "presses", "clean"), [(60, 0, 1, True), (0.3, 100, 1, False), (60, 100, 2, False)]
)
def test_ctrl_c_ends_a_program_with_130_also_one_whose_cleaning_up_does_not_end(seconds, cleaning, presses, clean):
    code = STUCK.format(seconds=seconds, cleaning=cleaning)
    with subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True, cwd=ROOT) as program:
        assert program.stdout.readline() == "working\n"
        for _ in range(presses):
            program.send_signal(signal.SIGINT)
            if program.stdout.readline() != "cleaning up\n":
                break
        assert program.stdout.read() == ("clean\n" if clean else "")
        assert program.wait(60) == 130 and program.stderr.read() == ""


@pytest.mark.parametrize("lines", [2, 100_000])
def test_output_that_nobody_reads_to_its_end_is_no_fault(lines):
    main = f"[print('a line') for _ in range({lines})]"
    code = f"import core.errors, time; core.errors.run_program(lambda: (time.sleep(0.5), {main}))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True, cwd=ROOT) as program:
        program.stdout.close()
        assert program.stderr.read() == "" and program.wait(60) == 141


def test_closed_pipe_of_something_else_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(core.errors, "_output_is_closed", lambda: False)
    with pytest.raises(BrokenPipeError):
        run_program(fail(BrokenPipeError(errno.EPIPE, "Broken pipe")))
