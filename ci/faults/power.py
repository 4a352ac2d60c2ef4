"""What may be on a disk after a loss of power: a simple model, stricter than the file systems that are in use.

What was flushed is there: the content of a file as it was at its last fsync, the names in a folder as they were at the
folder's. Of everything since then any part may be there: each change of names (made, renamed, removed), which a rename
makes in both folders at once or not at all; and of each file the last flushed content, none if there is none, or the
present one. A file whose name is there and whose content was never flushed is empty or whole; one without its folder's
name is lost.
"""

import os
from pathlib import Path

import numpy as np
from syscalls import Call

__all__ = ["Disk"]

FLUSHES = ("fsync", "fdatasync", "msync")
Names = dict[tuple[int, str], int]
"""By a folder's inode and a name in it: the inode of that name."""


class Disk:
    """Follows a process that changes a folder, from call to call."""

    def __init__(self, folder: Path):
        self.folder, self.root = folder, folder.stat().st_ino
        self.present, self.paths = self._look()
        self.names = dict(self.present)
        """That were flushed."""
        self.pending: list[dict[tuple[int, str], int | None]] = []
        """Changes of names that were not, in their order; None for a name that is gone."""
        self.contents = {inode: self._read(inode) for inode in self.paths}
        """That were flushed, by inode; None for a folder."""

    def see(self) -> None:
        """Take note of what the calls until now have changed: of one call, if it is called before each."""
        before = self.present
        self.present, self.paths = self._look()
        keys = before.keys() | self.present.keys()
        change = {key: self.present.get(key) for key in keys if before.get(key) != self.present.get(key)}
        if change:
            self.pending.append(change)
        for inode in set(self.present.values()) - set(before.values()):  # perhaps the number of a file that is gone
            self.contents.pop(inode, None)

    def flush(self, call: Call) -> None:
        """Take note of a call that flushes, as if it were done; of others nothing."""
        if call.name in ("sync", "syncfs"):
            self._flush_names(None)
            self.contents = {inode: self._read(inode) for inode in self.paths}
        elif call.name in FLUSHES and os.path.exists(call.paths[0]):
            inode = os.stat(call.paths[0]).st_ino
            if os.path.isdir(call.paths[0]):
                self._flush_names(inode)
            self.contents[inode] = self._read(inode)

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
        for (at, name), inode in sorted(names.items()):
            if at != folder:
                continue
            if self.kinds[inode]:
                self._write(inode, target / name, names, share, rng)
                continue
            flushed = self.contents.get(inode) or b""
            newer = inode in self.paths and rng.random() < share
            (target / name).write_bytes(self._read(inode) or b"" if newer else flushed)

    @staticmethod
    def _change(names: Names, change: dict[tuple[int, str], int | None]) -> None:
        for key, inode in change.items():
            if inode is None:
                names.pop(key, None)
            else:
                names[key] = inode

    def _look(self) -> tuple[Names, dict[int, Path]]:
        names: Names = {}
        paths = {self.root: self.folder}
        self.kinds = {**getattr(self, "kinds", {}), self.root: True}
        left = [self.folder]
        while left:
            folder = left.pop()
            above = folder.stat().st_ino
            with os.scandir(folder) as found:
                for entry in found:
                    inode = entry.stat(follow_symlinks=False).st_ino
                    names[above, entry.name], paths[inode] = inode, Path(entry.path)
                    self.kinds[inode] = entry.is_dir(follow_symlinks=False)
                    if self.kinds[inode]:
                        left.append(Path(entry.path))
        return names, paths

    def _read(self, inode: int) -> bytes | None:
        return None if self.kinds[inode] else self.paths[inode].read_bytes()
