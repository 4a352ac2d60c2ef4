"""What a model embeds: a fixed sequence of images that are read in batches and known by a fingerprint."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from core.errors import UserError

__all__ = ["ImageReader", "ImageSource", "file_stamps", "fingerprint_files"]


class ImageReader(Protocol):
    """What the loader needs of a source, which is pickled to worker processes."""

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Arrays with one entry for each of `rows` int64 (B,): images uint8 (B, H, W, 3) RGB, and labels if any.

        `UserError` naming an image that cannot be used.
        """
        ...

    def image_name(self, row: int) -> str:
        """The file, or the record of a file, that holds an image, for messages."""
        ...


class ImageSource(ImageReader, Protocol):
    """N images in a fixed order."""

    @property
    def name(self) -> str:
        """Where the images come from, for messages."""
        ...

    @property
    def num_images(self) -> int:
        """N."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 that changes with the images, their order and their labels, but not with their location."""
        ...

    def labels(self) -> np.ndarray | None:
        """The class of each image, int64 (N,); None where the images have no classes."""
        ...


def file_stamps(folder: Path, names: Sequence[str], listed_in: Path) -> np.ndarray:
    """Size in bytes and modification time, ns, of files below `folder`, int64 (N, 2). No file is opened.

    `UserError` naming a file that is missing, and the file `listed_in` that lists it.
    """
    stats = np.empty((len(names), 2), dtype="<i8")
    for row, name in enumerate(names):
        try:
            stat = os.stat(f"{folder}/{name}")
        except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # or a name that no file can have
            raise UserError(f"image not found: {folder / name}, which {listed_in} lists") from error
        stats[row] = stat.st_size, stat.st_mtime_ns
    return stats


def fingerprint_files(names: Sequence[str], stamps: np.ndarray, regions: np.ndarray | None = None) -> str:
    """Hex SHA-256 over the names of files, their `file_stamps` (N, 2), and `regions`.

    `regions` (N, ...) are the landmarks or boxes that say which part of each image is used.
    """
    digest = hashlib.sha256("\n".join(names).encode())
    if regions is not None:
        digest.update(np.asarray(regions, dtype="<f8").tobytes())
    digest.update(stamps.tobytes())
    return digest.hexdigest()
