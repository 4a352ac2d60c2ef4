"""The images of a sample: a list with lines `path identity`, a folder with one sub-folder an identity, or records."""

import re
from pathlib import Path

import numpy as np
import polars as pl

from core.builtin.find_images import find_images
from core.data.foreign_lists import plain_text, read_foreign_list
from core.data.lists import ImageList, ListDataset
from core.data.open_dataset import ImageDataset, is_list, open_dataset
from core.embeddings.cache import cached_views
from core.errors import UserError
from core.files import ROOT, require_file
from core.gallery.planning.sample import Sample
from core.models.encoder import Encoder

__all__ = ["CACHE", "SampleImages", "embed_sample"]

CACHE = ROOT / "features" / "gallery"
BLANKS = " \t\r"
LINE = re.compile(r"(.*[^ \t])[ \t]+([^ \t]+)")
FEATURES = "features"


class SampleImages:
    """The N images at `path` and the identity of each, which any text may name.

    `UserError` for a line that is not `path identity`, a folder without images, and files that are missing.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._list: ImageList | None = None
        self._names: list[str] | None = None
        if self.path.is_dir() and not any(self.path.glob("*.rec")):
            self._list, self._names = _of_folder(self.path)
        elif is_list(self.path):
            self._list, self._names = _of_list(self.path)
        self._opened: dict[int, ImageDataset] = {}

    def of_size(self, image_size: int) -> ImageDataset:
        """As squares of so many pixels."""
        if image_size not in self._opened:
            folder = self.path if self.path.is_dir() else self.path.parent
            self._opened[image_size] = (
                open_dataset(self.path, image_size)
                if self._list is None
                else ListDataset(self.path, folder, image_size, images=self._list)
            )
        return self._opened[image_size]

    def identities(self, images: ImageDataset) -> list[str]:
        """The identity of each image."""
        labels = images.labels().tolist()
        return list(map(str, labels)) if self._names is None else [self._names[label] for label in labels]


def embed_sample(
    images: SampleImages, old: Encoder, new: Encoder, batch_size: int, num_workers: int, cache: Path = CACHE
) -> Sample:
    """Embed the images with both models, or read what an earlier run has left in `cache`; `UserError` as there."""
    views = {FEATURES: lambda encoder, batch: encoder(batch["image"])}
    vectors = [
        np.asarray(
            cached_views(encoder, images.of_size(encoder.image_size), cache, views, {}, batch_size, num_workers)[
                FEATURES
            ]
        )
        for encoder in (old, new)
    ]
    source = images.of_size(new.image_size)
    names = [source.image_name(row) for row in range(source.num_images)]
    what = f"vectors of {old.name}", f"vectors of {new.name}"
    return Sample.of(vectors[0], vectors[1], images.identities(source), names, what)


def _of_folder(folder: Path) -> tuple[ImageList, list[str]]:
    found = find_images(folder).identities
    if not found:
        raise UserError(f"{folder} has no folders with images: name a folder that has one for each identity")
    paths = [
        str(file.relative_to(folder)).encode(errors="surrogateescape") for files in found.values() for file in files
    ]
    labels = np.repeat(np.arange(len(found)), [len(files) for files in found.values()])
    return ImageList(pl.Series([path.decode("latin-1") for path in paths]), labels), list(found)


def _of_list(path: Path) -> tuple[ImageList, list[str] | None]:
    text = plain_text(require_file(path, "list of the sample's images").read_bytes())
    foreign = read_foreign_list(text, path)
    if foreign is not None:
        return ImageList(foreign["path"].rechunk(), foreign["label"].to_numpy()), None
    numbers: dict[str, int] = {}
    paths, labels = [], []
    for number, line in enumerate(text.decode("latin-1").split("\n"), 1):
        if not line.strip():
            continue
        parts = LINE.fullmatch(line.strip(BLANKS))
        if parts is None:
            raise UserError(f"{path}, line {number}: {line[:100]!r} is not a path, a blank and an identity")
        paths.append(parts[1])
        labels.append(numbers.setdefault(parts[2], len(numbers)))
    if not paths:
        raise UserError(f"{path} lists no images: write a line `path identity` for each")
    names = [name.encode("latin-1").decode(errors="replace") for name in numbers]
    return ImageList(pl.Series(paths), np.array(labels, dtype=np.int64)), names
