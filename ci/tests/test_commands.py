"""Programs that are run one after another, or at the same time."""

import time

import pytest
from commands import Commands

PROGRAM = """
import os, sys, time
name, seconds, status = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
print(name, "threads", os.environ.get("OMP_NUM_THREADS"), flush=True)
time.sleep(seconds)
print(name, "ends", file=sys.stderr, flush=True)
sys.exit(status)
"""


@pytest.fixture
def program(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    return str(tmp_path / "program.py")


def test_lines_of_programs_that_run_together_say_whose_they_are(program, capfd, monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 4)
    commands = Commands()
    commands.run_together([(program, ["one", 0, 0]), (program, ["two", 0, 0])])
    printed = capfd.readouterr().out.splitlines()
    assert commands.lines == [f"python {program} one 0 0", f"python {program} two 0 0"]
    assert all(f"[{n}] $ {line}" in printed for n, line in enumerate(commands.lines, 1))
    for line in ("[1] one threads 2", "[1] one ends", "[2] two threads 2", "[2] two ends"):
        assert line in printed


def test_a_failure_stops_the_other_and_keeps_its_status(program, capfd):
    started = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        Commands().run_together([(program, ["long", 60, 0]), (program, ["broken", 0.2, 2])])
    assert ended.value.code == 2 and time.monotonic() - started < 30
    assert "[1] long ends" not in capfd.readouterr().out


def test_a_command_that_is_done_is_kept_and_not_run(program, capfd):
    commands = Commands()
    commands.run(program, "one", 0, 0, done=True)
    assert commands.lines == [f"python {program} one 0 0"] and capfd.readouterr().out == ""
    with pytest.raises(SystemExit) as ended:
        commands.run(program, "one", 0, 3)
    assert ended.value.code == 3
