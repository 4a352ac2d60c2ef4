"""Checking outputs before the work, and errors of the disk while they are written."""

import fcntl
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import core.outputs
from core.data.lists import ListDataset
from core.data.recordio import RecordWriter
from core.errors import UserError
from core.files import reading, require_file, resolve
from core.outputs import (
    make_folder,
    remove,
    replaced_atomically,
    replaced_together,
    require_replaceable,
    require_writable,
    sweep,
    writing,
)
from core.temporary_names import is_temporary

LONG = "a" * 300


@contextmanager
def full_disk(room: int = 5000) -> Iterator[None]:
    """No file of this process can grow beyond `room` bytes: writes fail as on a full disk, with another number."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def locked() -> Iterator[Path]:
    """A folder that this process may neither write nor search for the length of the test, also when root runs it.

    `list.txt` beside it names the file in it.
    """
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    (folder / "locked").mkdir()
    (folder / "locked" / "file").write_text("x")
    (folder / "list.txt").write_text("file 0\nfile 1\n")
    (folder / "locked").chmod(0)
    folder.chmod(0o755)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield folder / "locked"
    os.seteuid(user)
    (folder / "locked").chmod(0o700)
    shutil.rmtree(folder)


def test_folders_that_can_be_written_pass_and_stay_as_they_are(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    for folder in (tmp_path, tmp_path / "full", tmp_path / "new", tmp_path / "new" / "deep", Path("new")):
        require_writable(folder)
        require_replaceable(folder, folder=True)
    require_replaceable(tmp_path / "full" / "file")
    require_replaceable(tmp_path / "full" / "new.onnx")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("check", [require_writable, lambda path: require_replaceable(path, folder=True)])
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/proc/run", "No such file or directory; check the path and its disk"),
        ("/sys/kernel/run", "(Permission denied|Read-only file system|Operation not permitted); "),
        ("{}/file/run", "{}/file is no folder; name another path"),
        ("{}/link/run", "{}/link is no folder; name another path"),
        ("{}/new/" + LONG, "File name too long; give a shorter name"),
        ("{}/" + LONG + "/run", "File name too long; give a shorter name"),
    ],
)
def test_output_that_cannot_be_written_is_one_line_before_the_work(tmp_path, path, reason, check):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    path, reason = path.format(tmp_path), reason.format(tmp_path)
    with pytest.raises(UserError, match=f"^cannot write {path}: {reason}"):
        check(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "link"]


def test_folder_without_permission_is_told_as_that(locked):
    advice = "Permission denied; change its permissions, run as a user who has them, or name another path"
    for check in (require_writable, lambda path: require_replaceable(path, folder=True)):
        for folder in (locked / "new", locked / "new" / "deep"):
            with pytest.raises(UserError, match=f"^cannot write {folder}: {advice}$"):
                check(folder)
    with (
        pytest.raises(UserError, match=f"^cannot write {locked / 'model.pt'}: {advice}$"),
        replaced_atomically(locked / "model.pt"),
    ):
        pass
    with pytest.raises(UserError, match=f"^weights cannot be read: {locked / 'file'}: {advice}$"):
        require_file(locked / "file", "weights")


def test_what_cannot_be_replaced_by_a_file_or_a_folder_is_told_before_the_work(tmp_path):
    (tmp_path / "file").write_text("x")
    for path, folder, message in (
        (tmp_path, False, f"^{tmp_path} is a folder: name a file$"),
        (tmp_path / "file", True, f"^{tmp_path / 'file'} is a file: name a folder$"),
        ("/proc", True, "^/proc is the root of a disk, which cannot be replaced: name a folder in it$"),
        ("/dev/full", False, "^cannot write /dev/full: it is a device or a pipe; name a file$"),
        (tmp_path / "new" / "x.onnx", False, f"^the folder {tmp_path / 'new'} of the output x.onnx does not exist"),
        (tmp_path / ("a" * 250), False, "File name too long; give a shorter name$"),  # with its temporary ending
    ):
        with pytest.raises(UserError, match=message):
            require_replaceable(path, folder=folder)


def test_link_as_output_stays_and_what_it_points_to_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    for target in ("disk/file", "disk/new"):
        (tmp_path / target).write_text("old") if target.endswith("file") else None
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(tmp_path / target)
        require_replaceable(tmp_path / "link")
        with replaced_atomically(tmp_path / "link") as temporary:
            temporary.write_text("new")
        assert (tmp_path / "link").is_symlink() and (tmp_path / target).read_text() == "new"
    with pytest.raises(UserError, match="it is a device or a pipe"), replaced_atomically("/dev/null"):
        pass


def write_text(path: Path) -> None:
    path.write_text("x" * 100_000)


def write_array(path: Path) -> None:
    with open(path, "wb") as file:
        np.save(file, np.zeros(100_000))


def write_tensors(path: Path) -> None:
    torch.save({"weight": torch.zeros(100_000)}, path)


def write_folder(path: Path) -> None:
    path.mkdir()
    write_text(path / "part")


@pytest.mark.parametrize("write", [write_text, write_array, write_tensors, write_folder])
def test_full_disk_is_one_line_and_leaves_what_was_there(tmp_path, write):
    (tmp_path / "output").write_text("old")
    with full_disk(), pytest.raises(UserError, match=f"^cannot write {tmp_path / 'output'}: .*; "):
        with replaced_atomically(tmp_path / "output") as temporary:
            write(temporary)
    assert [path.name for path in tmp_path.iterdir()] == ["output"] and (tmp_path / "output").read_text() == "old"


@pytest.mark.parametrize("content", [{"output.lock"}, {"output.lock", "output"}, {"output"}, {"output.old"}, set()])
def test_leftovers_of_killed_programs_go_with_the_next_write_to_the_folder_and_what_is_others_stays(tmp_path, content):
    """After a loss of power the lock may be gone."""
    for name in ("output", "another"):
        left = tmp_path / f".{name}.0123abcd.tmp"
        left.mkdir()
        for each in content:
            (left / each.replace("output", name)).touch()
    (tmp_path / "output").write_text("old")
    (tmp_path / "another").write_text("kept")
    (tmp_path / ".notes.tmp").write_text("mine")
    (tmp_path / ".mine.0123abcd.tmp").write_text("mine")  # a file
    with replaced_atomically(tmp_path / "output") as temporary:
        temporary.write_text("new")
    assert {path.name for path in tmp_path.iterdir()} == {
        "output", "another", ".notes.tmp", ".mine.0123abcd.tmp",
    }  # fmt: skip
    assert (tmp_path / "output").read_text() == "new" and (tmp_path / "another").read_text() == "kept"


def test_what_a_live_program_writes_is_not_swept(tmp_path):
    with replaced_atomically(tmp_path / "one") as one:
        one.write_text("1")
        with replaced_atomically(tmp_path / "other") as other:
            other.write_text("2")
        remove(tmp_path / "other")
        sweep(tmp_path)
        assert [is_temporary(path.name) for path in tmp_path.iterdir()] == [True]
    assert [path.read_text() for path in tmp_path.iterdir()] == ["1"]


@pytest.mark.parametrize("when", ["while the sweep holds the lock", "after the sweep"])
def test_program_whose_temporary_folder_a_sweep_takes_first_makes_another_one(tmp_path, monkeypatch, when):
    is_locked, swept = core.outputs._is_locked, []

    def sweep_first(lock):
        folder = Path(lock.name).parent
        if swept:
            return is_locked(lock)
        swept.append(folder)
        with open(lock.name, "r+b") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            locked = is_locked(lock)
            core.outputs._clear(folder)
        folder.rmdir()
        return is_locked(lock) if when == "after the sweep" else locked

    monkeypatch.setattr(core.outputs, "_is_locked", sweep_first)
    with replaced_atomically(tmp_path / "output") as temporary:
        temporary.write_text("new")
        assert temporary.parent != swept[0]
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


def test_folder_is_replaced_at_once_and_where_folders_cannot_be_exchanged_put_back_after_a_kill(tmp_path, monkeypatch):
    write_folder(tmp_path / "output")
    (tmp_path / "output" / "old").touch()
    inode = (tmp_path / "output").stat().st_ino
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda *_: pytest.fail("the old folder is moved aside"))
    with replaced_atomically(tmp_path / "output") as temporary:
        write_folder(temporary)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["output", "part"]
    assert (tmp_path / "output").stat().st_ino != inode

    def killed_between(path, target):
        rename(path, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(core.outputs, "_exchange", lambda *_: False)
    monkeypatch.setattr(Path, "rename", rename)
    with replaced_atomically(tmp_path / "output") as temporary:
        temporary.mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["output"]
    monkeypatch.setattr(Path, "rename", killed_between)
    monkeypatch.setattr(core.outputs, "_clear", lambda _: None)
    with pytest.raises(KeyboardInterrupt), replaced_atomically(tmp_path / "output") as temporary:
        write_folder(temporary)
    monkeypatch.undo()
    assert not (tmp_path / "output").exists()
    sweep(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["output"]


def test_file_that_readers_look_for_is_never_beside_files_of_another_write(tmp_path, monkeypatch):
    replace, seen = os.replace, []

    def look(source, target):
        seen.append({path.name: path.read_text() for path in (tmp_path / "x.rec", tmp_path / "x.idx") if path.exists()})
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    for content in ("old", "new"):
        with replaced_together(tmp_path / "x.rec", tmp_path / "x.idx") as (rec, idx):
            rec.write_text(content)
            idx.write_text(content)
    assert seen == [{}, {"x.rec": "old"}, {"x.rec": "old"}, {"x.rec": "new"}]
    with pytest.raises(KeyError), replaced_together(tmp_path / "x.rec", tmp_path / "x.idx") as (rec, idx):
        rec.write_text("newer")
        raise KeyError
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"x.rec": "new", "x.idx": "new"}


def test_file_folder_and_link_are_removed_and_what_is_missing_is_no_error(tmp_path):
    write_folder(tmp_path / "folder")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    write_folder(tmp_path / "kept")
    for name in ("folder", "file", "link", "nothing"):
        remove(tmp_path / name)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["kept", "part"]


def test_each_folder_that_is_made_is_flushed_with_the_one_that_it_is_in(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(core.outputs, "flush_folder", flushed.append)
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir() and flushed == [tmp_path, tmp_path / "a"]


def test_records_on_a_full_disk_are_one_line_and_leave_no_files(tmp_path):
    with full_disk(), pytest.raises(UserError, match=f"^cannot write {tmp_path / 'train'}.rec: File too large; raise"):
        with RecordWriter(tmp_path / "train") as writer:
            writer.write(0, 1.0, bytes(2_000_000))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("basic_ios::clear: iostream error"),
        RuntimeError("[enforce fail at inline_container.cc:862] . PytorchStreamWriter failed writing file data/0"),
        OSError("100 requested and 7 written"),
        OSError("No space left on device (os error 28): /output"),
    ],
)
def test_whatever_a_library_says_of_a_full_disk_becomes_the_line(tmp_path, error):
    with pytest.raises(UserError, match=f"^cannot write {tmp_path}/a: it needs more than the .* disk has free"):
        with writing(tmp_path / "a"):
            raise error


def test_errors_of_other_files_and_of_the_program_stay_as_they_are(tmp_path):
    for error in (
        FileNotFoundError(2, "No such file or directory", "/images/1.jpg"),
        OSError("no number"),
        RuntimeError("shapes differ"),
        KeyError("name"),
    ):
        with pytest.raises(type(error)) as caught, writing(tmp_path / "output"):
            raise error
        assert caught.value is error


@pytest.mark.parametrize("skip_bad", [True, False])
def test_images_in_a_folder_that_may_not_be_searched_are_not_called_missing(locked, skip_bad):
    with pytest.raises(PermissionError) as raised:
        ListDataset(locked.parent / "list.txt", locked, skip_bad=skip_bad)
    assert os.fsdecode(raised.value.filename) == str(locked / "file")


def test_missing_input_is_told_by_what_is_there_instead(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, message in (
        (tmp_path / "nothing", f"^records not found: {tmp_path}/nothing$"),
        (tmp_path / "file" / "x", f"^records not found: {tmp_path}/file/x$"),
        (tmp_path, f"^records not found: {tmp_path} is a folder$"),
        (tmp_path / "loop", f"^records cannot be read: {tmp_path}/loop: Too many levels of symbolic links; correct"),
        (tmp_path / LONG, f"^records cannot be read: {tmp_path}/{LONG}: File name too long; give a shorter name$"),
    ):
        with pytest.raises(UserError, match=message):
            require_file(path, "records")
    assert require_file(tmp_path / "file", "records") == tmp_path / "file"
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(
            UserError, match=f"records cannot be read: {path}: it is a device or a pipe; name a plain file"
        ):
            require_file(path, "records")
    with pytest.raises(UserError, match="~nobody_here/x is in the home of a user who is not known here"):
        resolve("~nobody_here/x")


@pytest.mark.parametrize(
    "error", [ValueError("no magic"), RecursionError(), MemoryError(), KeyError("shape"), OSError("cut")]
)
def test_whatever_a_parser_raises_becomes_one_line_that_names_the_file(tmp_path, error):
    with (
        pytest.raises(UserError, match=r"a\.npy is not a readable array.*; get the file again") as raised,
        reading(tmp_path / "a.npy", "array"),
    ):
        raise error
    assert raised.value.__cause__ is error


def test_reading_keeps_lines_that_are_right_already(tmp_path):
    with (
        pytest.raises(UserError, match=r"array cannot be read: .*missing\.npy: No such file"),
        reading(tmp_path / "missing.npy", "array"),
    ):
        np.load(tmp_path / "missing.npy")
    with pytest.raises(UserError, match="^already right$"), reading(tmp_path / "a.npy", "array"):
        raise UserError("already right")
    with pytest.raises(FileNotFoundError), reading(tmp_path / "a.npy", "array"):
        open(tmp_path / "another.npy")
    with reading(tmp_path / "a.npy", "array"):
        pass
