"""Programs stopped at system calls that write, and losses of power there: a sample of `ci/fault_injection.py`."""

import os
import signal
import sqlite3
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from launching import CONTEXT, load_program

from core.files import ROOT

faults = load_program(ROOT / "ci" / "fault_injection.py")
Disk, Program = sys.modules["power"].Disk, sys.modules["programs"].Program
run_supervised, supported = (getattr(sys.modules["syscalls"], name) for name in ("run_supervised", "supported"))
pytestmark = pytest.mark.skipif(not supported(), reason="this system does not hand system calls to a supervisor")
CARELESS = """
import json, os
from pathlib import Path
done = Path("out/done.json")
if not done.exists():
    done.write_text(json.dumps({"rows": 100}))
json.loads(done.read_text())
Path("out/result").write_text("result")
"""
FLUSHLESS = CARELESS.replace("done.write_text", "Path('out/new').write_text").replace(
    "json.loads",
    """
if not done.exists():
    os.rename("out/new", done)
json.loads""",
)
"""Renames without a flush: right after a kill, and damaged after a loss of power."""


def write_in_many_ways(folder: str) -> None:
    """In a process of its own."""
    os.chdir(folder)
    os.mkdir("inner")
    with open("inner/text", "w") as file:
        file.write("x")
        file.flush()
        os.fsync(file.fileno())
    os.rename("inner/text", "text")
    os.truncate("text", 0)
    os.link("text", "link")
    os.unlink("link")
    os.rmdir("inner")
    array = np.lib.format.open_memmap("array.npy", "w+", np.float32, (4, 4))
    array[:] = 1
    array.flush()
    torch.save({"weight": torch.zeros(3)}, "tensors.pt")  # written in C++
    cv2.imwrite("image.png", np.zeros((4, 4), np.uint8))  # by C's buffered files
    database = sqlite3.connect("database")
    database.execute("CREATE TABLE t (x)")
    database.close()
    (Path(folder).parent / "elsewhere").write_text("not seen")
    open("text").close()  # nor this


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


def test_every_call_that_writes_is_seen_whatever_makes_it(folder):
    calls = []
    status = run_supervised(
        CONTEXT, folder, write_in_many_ways, (str(folder),), lambda call: calls.append(call) or True
    )
    assert status == 0 and (folder.parent / "elsewhere").exists()
    for call in calls:
        assert all(Path(path).is_relative_to(folder) for path in call.paths)
    words = [" ".join((call.name, *(str(Path(path).relative_to(folder)) for path in call.paths))) for call in calls]
    python = words[: words.index("rmdir inner") + 1]
    assert python == [
        "mkdir inner", "openat inner/text", "write inner/text", "fsync inner/text", "rename inner/text text",
        "truncate text", "link link", "unlink link", "rmdir inner",
    ]  # fmt: skip
    for word in ("msync array.npy", "write tensors.pt", "write image.png", "pwrite64 database", "fdatasync database",
                 "unlink database-journal"):  # fmt: skip
        assert word in words, words


def test_process_is_killed_before_the_call_and_after_all_those_before_it(folder):
    seen = []
    status = run_supervised(
        CONTEXT, folder, write_in_many_ways, (str(folder),), lambda call: seen.append(call) or call.name != "rename"
    )
    assert status == -signal.SIGKILL and seen[-1].name == "rename"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == ["inner", "inner/text"]


def test_loss_of_power_leaves_what_was_flushed_and_any_part_of_the_rest(folder):
    """A file is made, flushed and renamed over another one; its folder is not flushed."""
    (folder / "old").write_text("old")
    disk = Disk(folder)
    (folder / "new").write_text("new")
    disk.see()
    (folder / "unflushed").write_text("unflushed")
    disk.see()
    disk.flush(sys.modules["syscalls"].Call("fsync", (str(folder / "new"),)))
    (folder / "new").rename(folder / "old")
    disk.see()
    found = set()
    for seed in range(100):
        target = folder.parent / f"after{seed}"
        disk.write_after_loss(target, 0.5, np.random.default_rng(seed))
        found.add(tuple(sorted((path.name, path.read_text()) for path in target.iterdir())))
    of_rename = [(("old", "old"),), (("new", "new"), ("old", "old")), (("old", "new"),)]
    of_file = [(), (("unflushed", ""),), (("unflushed", "unflushed"),)]
    assert found == {(*one, *other) for one in of_rename for other in of_file}
    disk.flush(sys.modules["syscalls"].Call("fsync", (str(folder),)))
    disk.write_after_loss(folder.parent / "flushed", 0.0, np.random.default_rng(0))
    assert {path.name: path.read_text() for path in (folder.parent / "flushed").iterdir()} == {
        "old": "new", "unflushed": "",
    }  # fmt: skip


def test_program_that_a_fault_stops_for_ever_is_found(tmp_path):
    (tmp_path / "work").mkdir()
    for name, code in (("careless", CARELESS), ("flushless", FLUSHLESS)):
        (tmp_path / f"{name}.py").write_text(code)
    careless, flushless = (
        faults.Trial(Program(name, str(tmp_path / f"{name}.py"), ()), tmp_path / "work")
        for name in ("careless", "flushless")
    )
    careless.kill(1)
    assert careless.report.kills == 1 and "killed before call 1, write done.json: status 1" in careless.report.faults[0]
    for place in range(len(flushless.calls)):
        flushless.kill(place)
    assert not flushless.report.faults
    for seed in range(4):
        flushless.lose_power(4, (0.5,), np.random.default_rng(seed))
    assert any("status 1" in fault for fault in flushless.report.faults)
    flushless.lose_power_at_the_end()
    assert "missing" in flushless.report.faults[-1]


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    """All programs by name, and the working folder with their inputs."""
    folder = tmp_path_factory.mktemp("faults") / "work"
    return {program.name: program for program in faults.programs(folder)}, folder


@pytest.mark.parametrize(
    "name",
    ["training", "extraction over another's", "evaluation with a damaged cache", "split of records again",
     "data set again", "gallery: backfill"],
)  # fmt: skip
def test_program_that_was_stopped_or_lost_its_power_ends_right_when_it_is_given_again(every, name):
    """At calls that rename or remove something: the places between two states."""
    programs, folder = every
    trial = faults.Trial(programs[name], folder)
    between = [number for number, call in enumerate(trial.calls) if call.name.startswith(("rename", "unlink", "rmdir"))]
    rng = np.random.default_rng(0)
    trial.kill(between[len(between) // 2])
    trial.lose_power(between[-1], (0.5,), rng)
    assert trial.report.kills == 1 and trial.report.losses == 1 and not trial.report.faults
