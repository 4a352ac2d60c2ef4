"""Where the images of a gallery's entries are read from, when it is embedded again."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from core.data.record_files import record_prefix
from core.data.records import RecordDataset
from core.errors import UserError, explain
from core.files import require_file
from core.gallery.text_lists import read_image_list
from core.images.codec import decode_image, resize_image

__all__ = ["REASON_BYTES", "EntryImages", "Given", "Place", "image_place", "reasons_as_text"]

Given: TypeAlias = Callable[[Sequence[str]], Sequence[np.ndarray | None]]
"""A function of the user: from ids to images, uint8 (H, W, 3) RGB; None for one that there is not."""
SUFFIXES = ("", ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".jp2", ".avif")
REASON_BYTES = 256


class Stored:
    """Images at the paths that are stored with the entries."""

    def data(self, name: str, stored: str | None) -> bytes:
        """The encoded image of the entry `name`; `OSError` or `ValueError` if there is none."""
        if stored is None:
            raise ValueError("no path of its image is stored: name the images' place")
        return Path(stored).read_bytes()


class Listed:
    """Images in a list with a line `path id` each (`core.gallery.text_lists`). Memory: some 200 bytes an image."""

    def __init__(self, path: Path):
        table = read_image_list(path)
        self._paths = dict(zip(table["id"].to_list(), table["image"].to_list()))

    def data(self, name: str, stored: str | None) -> bytes:
        """As of `Stored`."""
        if name not in self._paths:
            raise ValueError("it is not in the list of images")
        return Path(self._paths[name]).read_bytes()


class Folder:
    """Images in a folder: that of the id `a/b` is the file `a/b` below it, or `a/b.jpg` and so on."""

    def __init__(self, folder: Path):
        self._folder = folder

    def data(self, name: str, stored: str | None) -> bytes:
        """As of `Stored`."""
        for suffix in SUFFIXES:
            try:
                return (self._folder / (name + suffix)).read_bytes()
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                continue
        raise ValueError(f"there is no image of it in {self._folder}")


class Records:
    """Images in records: the id is the number of the image, counted from 0 as in an embedding store."""

    def __init__(self, path: Path):
        self._records = RecordDataset(record_prefix(path))

    def data(self, name: str, stored: str | None) -> bytes:
        """As of `Stored`."""
        if not (name.isascii() and name.isdecimal() and int(name) < len(self._records)):
            raise ValueError(f"{self._records.name} has no image of this number, only 0 to {len(self._records) - 1}")
        return bytes(self._records.payload(int(name)))


Place: TypeAlias = Stored | Listed | Folder | Records


def image_place(images: str | Path | None) -> Place:
    """Where `--images` says that the images are: a list, a folder, records, or None for the stored paths.

    A folder that holds `train.rec` is one of records. `UserError` if there is nothing.
    """
    if images is None:
        return Stored()
    path = Path(images)
    if (
        path.suffix in (".rec", ".idx")
        or path.with_name(path.name + ".rec").is_file()
        or (path / "train.rec").is_file()
    ):
        return Records(path)
    if path.is_dir():
        return Folder(path)
    return Listed(require_file(path, "images (a list, a folder or records)"))


class EntryImages:
    """The images of N entries as a source for the loader: uint8 (B, S, S, 3), squashed to the side S.

    An image that cannot be read is black, and `reason` says why.
    """

    def __init__(self, names: Sequence[str], stored: Sequence[str | None], place: Place | Given, size: int):
        self.names, self.stored, self.place, self.size = names, stored, place, size

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """`image` uint8 (B, S, S, 3) and `reason` uint8 (B, 256): text in UTF-8, zeros where the image was read."""
        images = np.zeros((len(rows), self.size, self.size, 3), np.uint8)
        reasons = np.zeros((len(rows), REASON_BYTES), np.uint8)
        given = self._given(rows) if callable(self.place) else None
        for at, row in enumerate(rows.tolist()):
            try:
                image = self._decoded(row, images[at]) if given is None else _checked(given[at])
                images[at] = image if image.shape == images[at].shape else resize_image(image, self.size)
            except (OSError, ValueError) as error:
                line = explain(error) if isinstance(error, OSError) else str(error)
                if isinstance(error, OSError) and error.filename:
                    line = f"{error.filename}: {error.strerror}"
                text = line.encode(errors="replace")[:REASON_BYTES]
                reasons[at, : len(text)] = np.frombuffer(text, np.uint8)
        return {"image": images, "reason": reasons}

    def image_name(self, row: int) -> str:
        """The image's entry."""
        return f"the image of {self.names[row]}"

    def _given(self, rows: np.ndarray) -> Sequence[np.ndarray | None]:
        assert callable(self.place)
        names = [self.names[row] for row in rows.tolist()]
        given = self.place(names)
        if len(given) != len(names):
            raise UserError(f"the function of the images was asked for {len(names)} and gave {len(given)}: correct it")
        return given

    def _decoded(self, row: int, out: np.ndarray) -> np.ndarray:
        assert not callable(self.place)
        return decode_image(self.place.data(self.names[row], self.stored[row]), out, min_side=self.size)


def _checked(image: np.ndarray | None) -> np.ndarray:
    """An image that a user's function gave; `ValueError` if it is none."""
    if image is None:
        raise ValueError("the function of the images gave none for it")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"the function of the images gave {image.dtype} {image.shape}, not uint8 (height, width, 3)")
    return image


def reasons_as_text(reasons: np.ndarray) -> list[str]:
    """The `reason` (B, 256) of a batch as text, empty where the image was read."""
    return [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in reasons]
