"""What may be on a disk after a loss of power: a simple model, stricter than the file systems that are in use.

What was flushed is there: the content of a file as it was at its last fsync, the names in a folder as they were at the
folder's. Of everything since then any part may be there: each change of names (made, renamed, removed), which a rename
makes in both folders at once or not at all; and of each file the last flushed content, none if there is none, or the
present one. A file whose name is there and whose content was never flushed is empty or whole; one without its folder's
name is lost.
"""

import os
from itertools import count
from pathlib import Path

import numpy as np
from syscalls import Call

__all__ = ["Disk"]

FLUSHES = ("fsync", "fdatasync", "msync")
Names = dict[tuple[int, str], int]
"""By a folder's number and a name in it: the number of what has that name."""


class Disk:
    """Follows a process that changes a folder, from call to call."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.numbers: dict[int, int] = {}
        """By inode: a number that no file had before, as inodes of files that are gone are given again."""
        self.unused = count()
        self.is_folder: dict[int, bool] = {}
        self.present, self.paths = self._look()
        self.root = self.numbers[folder.stat().st_ino]
        self.names = dict(self.present)
        """That were flushed."""
        self.pending: list[dict[tuple[int, str], int | None]] = []
        """Changes of names that were not, in their order; None for a name that is gone."""
        self.contents = {number: self._read(number) for number in self.paths}
        """That were flushed, by number; None for a folder."""

    def see(self) -> None:
        """Take note of what the calls until now have changed: of one call, if it is called before each."""
        before = self.present
        self.present, self.paths = self._look()
        keys = before.keys() | self.present.keys()
        change = {key: self.present.get(key) for key in keys if before.get(key) != self.present.get(key)}
        if change:
            self.pending.append(change)

    def flush(self, call: Call) -> None:
        """Take note of a call that flushes, as if it were done; of others nothing."""
        if call.name in ("sync", "syncfs"):
            self._flush_names(None)
            self.contents = {number: self._read(number) for number in self.paths}
        elif call.name in FLUSHES and os.path.exists(call.paths[0]):
            number = self.numbers[os.stat(call.paths[0]).st_ino]
            if self.is_folder[number]:
                self._flush_names(number)
            self.contents[number] = self._read(number)

    def _flush_names(self, folder: int | None) -> None:
        left = []
        for change in self.pending:
            if folder is None or any(at == folder for at, _ in change):
                self._change(self.names, change)
            else:
                left.append(change)
        self.pending = left

    def write_after_loss(self, target: Path, share: float, rng: np.random.Generator) -> None:
        """Fill a new folder with what a loss of power may leave: a random share of what was not flushed."""
        names = dict(self.names)
        for change in self.pending:
            if rng.random() < share:
                self._change(names, change)
        self._write(self.root, target, names, share, rng)

    def _write(self, folder: int, target: Path, names: Names, share: float, rng: np.random.Generator) -> None:
        target.mkdir()
        for (at, name), number in sorted(names.items()):
            if at != folder:
                continue
            if self.is_folder[number]:
                self._write(number, target / name, names, share, rng)
                continue
            flushed = self.contents.get(number) or b""
            newer = number in self.paths and rng.random() < share
            (target / name).write_bytes(self._read(number) or b"" if newer else flushed)

    @staticmethod
    def _change(names: Names, change: dict[tuple[int, str], int | None]) -> None:
        for key, number in change.items():
            if number is None:
                names.pop(key, None)
            else:
                names[key] = number

    def _look(self) -> tuple[Names, dict[int, Path]]:
        """The names in all folders, and where each file and folder is."""
        inodes = {self.folder: self.folder.stat().st_ino}
        folders = [self.folder]
        for folder in folders:
            with os.scandir(folder) as entries:
                for entry in entries:
                    path = Path(entry.path)
                    inodes[path] = entry.stat(follow_symlinks=False).st_ino
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(path)
        numbers = {
            inode: self.numbers[inode] if inode in self.numbers else next(self.unused) for inode in inodes.values()
        }
        self.numbers = numbers
        self.is_folder |= {numbers[inode]: path in folders for path, inode in inodes.items()}
        names = {
            (numbers[inodes[path.parent]], path.name): numbers[inode]
            for path, inode in inodes.items()
            if path != self.folder
        }
        return names, {numbers[inode]: path for path, inode in inodes.items()}

    def _read(self, number: int) -> bytes | None:
        return None if self.is_folder[number] else self.paths[number].read_bytes()
