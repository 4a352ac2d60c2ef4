"""The fuzzers of `ci/fuzz`: a few inputs for each reader, and what they must not miss."""

import ctypes
import json
import logging
import os
import random
import subprocess
import sys
import time

import pytest

from ci.fuzz import __main__ as program
from ci.fuzz import pickles, workers
from ci.fuzz.changes import changed
from ci.fuzz.readers import READERS, Reader
from ci.fuzz.workers import fuzz, input_of, seeds_of
from core.errors import UserError
from core.files import ROOT

INPUTS = 12
"""Changed files of each reader, beside all of its honest ones."""


@pytest.fixture(autouse=True)
def quiet():
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


ALL_READERS = """
import json, logging, sys
from pathlib import Path
from ci.fuzz.readers import READERS
from ci.fuzz.workers import MEMORY, fuzz, seeds_of
logging.disable()
for name, reader in READERS.items():
    count = len(seeds_of(reader)) + int(sys.argv[1])
    result = fuzz(reader, count, 300, Path(sys.argv[2]))
    print(json.dumps([name, count - result.inputs, result.found, result.peak < MEMORY]), flush=True)
"""


def test_readers_give_a_value_or_one_line(tmp_path):
    """In a process of its own: a fork leaves the threads behind that Polars has here from other tests."""
    command = [sys.executable, "-c", ALL_READERS, str(INPUTS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=280)
    found = {name: rest for name, *rest in map(json.loads, done.stdout.splitlines())}
    told = [path.read_text()[-2000:] for path in tmp_path.glob("*/what.txt")]
    assert found == {name: [0, {}, True] for name in READERS}, (told, done.stderr[-2000:])


def planted(fault):
    """A reader of numbers, which fails at one of them."""

    def write(folder):
        (folder / "seed").mkdir()
        (folder / "seed" / "number.txt").write_text("7")

    def read(folder):
        if (folder / "number.txt").read_text(errors="replace") != "7":
            fault()

    return Reader("planted", write, read)


def refuse():
    raise UserError("it is no number; write one")


def spin():
    while True:
        pass


def wait():
    time.sleep(1000)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (lambda: ctypes.string_at(0), "crash: SIGSEGV"),
        (lambda: os.abort(), "crash: SIGABRT"),
        (lambda: os._exit(3), "crash: it exits"),
        (spin, "hang"),
        (wait, "hang: it waits"),
        (lambda: bytearray(2 * 2**30), "memory: elsewhere"),
        (lambda: {}["key"], "KeyError: elsewhere"),
        (refuse, None),
    ],
)
def test_planted_fault_is_found_written_down_and_survived(fault, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "SECONDS", 0.2)
    monkeypatch.setattr(workers, "WAIT", 1.0 if fault is wait else 100.0)
    reader = planted(fault)
    result = fuzz(reader, 4, 300, tmp_path)
    seeds = seeds_of(reader)
    bad = [n for n in range(4) if input_of(reader, seeds, 0, n)["number.txt"].decode(errors="replace") != "7"]
    assert result.inputs == 4 and bad
    if kind is None:
        assert not result.found and result.refused == len(bad)
        return
    assert result.found == {kind: len(bad)} and result.numbers[kind] == bad[: workers.KEPT]
    for number in result.numbers[kind]:
        kept = tmp_path / f"planted-0-{number}"
        assert (kept / "files" / "number.txt").read_bytes() == input_of(reader, seeds, 0, number)["number.txt"]
        assert (kept / "what.txt").exists()


def test_honest_file_that_is_refused_is_a_finding(tmp_path):
    def read(folder):
        raise UserError("no")

    result = fuzz(Reader("planted", planted(refuse).write, read), 1, 300, tmp_path)
    assert result.found == {"an honest file is refused": 1}


def test_file_that_changes_how_honest_ones_are_read_is_a_finding(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "AGAIN", 1)
    left_behind = []

    def read(folder):
        left_behind.extend("x" * ((folder / "number.txt").read_text(errors="replace") != "7"))
        if left_behind:
            refuse()

    result = fuzz(Reader("planted", planted(refuse).write, read), 6, 300, tmp_path)
    assert set(result.found) == {"an honest file is refused after others"}


def test_inputs_follow_from_seed_and_number_and_differ():
    seeds = seeds_of(READERS["pickle"])
    inputs = [input_of(READERS["pickle"], seeds, 1, number)["data.pkl"] for number in range(200)]
    assert inputs == [input_of(READERS["pickle"], seeds, 1, number)["data.pkl"] for number in range(200)]
    assert inputs[:6] == [seed["data.pkl"] for seed in seeds] and len(set(inputs)) > 170


def test_pickles_of_the_grammar_are_followed_far():
    """Most have their opcodes in order, which random bytes never have."""
    import pickletools

    rng, whole = random.Random(0), 0
    for _ in range(300):
        try:
            whole += [opcode.name for opcode, _, _ in pickletools.genops(pickles.new_pickle(rng))][-1] == "STOP"
        except Exception:
            continue
    assert whole > 200


def test_changes_leave_the_honest_files_as_they_are():
    tree = {"a.json": b'{"a": [1, 2]}', "b.npy": b"\x93NUMPY\x01\x00\x02\x00{}", "c.txt": b"1 2\n"}
    before = dict(tree)
    assert any(changed(random.Random(number), tree) != before for number in range(20)) and tree == before


def test_program_tells_of_findings_by_its_status(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(program, "READERS", {"planted": planted(spin), "honest": planted(refuse)})
    monkeypatch.setattr(workers, "SECONDS", 0.1)
    for name, status in (("planted", 1), ("honest", 0)):
        arguments = [name, "--count", "4", "--jobs", "2", "--seconds", "300", "--out", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["ci.fuzz", *arguments])
        assert program.main() == status
        printed = capsys.readouterr().out
        assert "| planted | 4 |" in printed and ("--seed 0 --input" in printed) == bool(status)
