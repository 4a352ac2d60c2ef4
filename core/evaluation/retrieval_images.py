"""Images of a retrieval test: read, cropped to their boxes and resized to squares in worker processes."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from core.errors import UserError
from core.files import require_file
from core.images.codec import read_image, resize_image
from core.images.ordered_loader import load_in_order

__all__ = ["RetrievalImages", "image_batches", "read_image_list"]


@dataclass(frozen=True)
class RetrievalImages:
    """N images: the files `root`/`names[i]`, listed in the file `listed_in`, of which `boxes` (N, 4) are used.

    A box is left, top, right, bottom in pixels, right and bottom exclusive; None: the whole images.
    """

    root: Path
    names: list[str]
    listed_in: Path
    boxes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)

    def path(self, row: int) -> Path:
        """The file of image `row`."""
        return self.root / self.names[row]

    def cropped(self, boxes: np.ndarray | None) -> "RetrievalImages":
        """The same images with other boxes (N, 4), or whole."""
        return replace(self, boxes=boxes)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names, boxes, and the files' sizes and times of change: what embeddings depend on.

        It reads no image. `UserError` naming the file if an image is missing.
        """
        digest = hashlib.sha256("\n".join(self.names).encode())
        if self.boxes is not None:
            digest.update(np.asarray(self.boxes, dtype="<f8").tobytes())
        stats = np.empty((len(self), 2), dtype="<i8")
        folder = str(self.root)
        for row, name in enumerate(self.names):
            try:
                stat = os.stat(f"{folder}/{name}")
            except OSError as error:
                raise UserError(f"image not found: {self.path(row)}, which {self.listed_in} lists") from error
            stats[row] = stat.st_size, stat.st_mtime_ns
        digest.update(stats.tobytes())
        return digest.hexdigest()

    def read(self, row: int) -> np.ndarray:
        """Image `row`, uint8 (H, W, 3) RGB, cropped to its box; `UserError` naming the file that cannot be used.

        Box edges are rounded to whole pixels, as the benchmark's reader does, and end at the image's edge.
        """
        path = self.path(row)
        image = read_image(path)
        if self.boxes is None:
            return image
        left, top, right, bottom = np.rint(self.boxes[row]).astype(np.int64).clip(min=0).tolist()
        cropped = image[top:bottom, left:right]
        if not cropped.size:
            height, width = image.shape[:2]
            raise UserError(
                f"the box {self.boxes[row].tolist()} of {path} in {self.listed_in} lies outside of its image of "
                f"{width}x{height} pixels"
            )
        return cropped


def read_image_list(path: Path, root: Path, what: str) -> RetrievalImages:
    """The images that the lines of the text file `path` name, relative to `root`; empty lines are skipped."""
    try:
        names = [line for line in require_file(path, what).read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}): give a {what} in UTF-8") from error
    if not names:
        raise UserError(f"{path} lists no images")
    return RetrievalImages(root, names, path)


class _ResizedBatches(Dataset):
    """Maps a range of image rows to one tensor a side; runs in the loader's workers."""

    def __init__(self, images: RetrievalImages, sides: Sequence[int]):
        self.images, self.sides = images, sides

    def __getitem__(self, rows: range) -> list[Tensor] | UserError:
        batches = [np.empty((len(rows), side, side, 3), dtype=np.uint8) for side in self.sides]
        try:
            for place, row in enumerate(rows):
                image = self.images.read(row)
                for batch, side in zip(batches, self.sides):
                    batch[place] = resize_image(image, side)
        except UserError as error:
            return error
        return [torch.from_numpy(batch) for batch in batches]


def image_batches(
    images: RetrievalImages, sides: Sequence[int], batch_size: int, num_workers: int, pin_memory: bool = False
) -> Iterator[list[Tensor]]:
    """All images in order: for each batch a tensor uint8 (B, side, side, 3) RGB for each of `sides`.

    An image is decoded once and resized to each side. `UserError` naming the file of an image that cannot be used.
    Memory: two batches a worker.
    """
    return load_in_order(_ResizedBatches(images, sides), len(images), batch_size, num_workers, pin_memory)
