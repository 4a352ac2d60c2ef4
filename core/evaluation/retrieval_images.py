"""Images of a retrieval test: cropped to their boxes and resized to squares."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from core.errors import UserError
from core.files import require_file
from core.images.codec import read_image, resize_image
from core.images.source import file_stamps, fingerprint_files

__all__ = ["ResizedImages", "RetrievalImages", "read_image_list"]


@dataclass(frozen=True)
class RetrievalImages:
    """N images: the files `root`/`names[i]`, listed in the file `listed_in`, cropped to `boxes` (N, 4).

    A box is left, top, right, bottom in pixels of the upright image, right and bottom exclusive; without boxes whole
    images are used.
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
    def stamps(self) -> np.ndarray:
        """`file_stamps` of the images (N, 2), of when they are asked for first."""
        return file_stamps(self.root, self.names, self.listed_in)

    @cached_property
    def fingerprint(self) -> str:
        """`fingerprint_files` of the images and their boxes: what embeddings depend on."""
        return fingerprint_files(self.names, self.stamps, self.boxes)

    def read(self, row: int) -> np.ndarray:
        """Image `row`, uint8 (H, W, 3) RGB, cropped to its box; `UserError` naming the file that cannot be used.

        Box edges are rounded to whole pixels, as the benchmark's reader does, and end at the image's edge.
        """
        path = self.path(row)
        image = read_image(path, self.stamps[row])
        if self.boxes is None:
            return image
        left, top, right, bottom = np.rint(self.boxes[row]).astype(np.int64).clip(min=0).tolist()
        cropped = image[top:bottom, left:right]
        if not cropped.size:
            height, width = image.shape[:2]
            raise UserError(
                f"the box {self.boxes[row].tolist()} of {path} in {self.listed_in} lies outside its image of "
                f"{width}x{height} pixels"
            )
        return cropped


def read_image_list(path: Path, root: Path, what: str) -> RetrievalImages:
    """The images that the lines of the text file `path` name, relative to `root`.

    Blanks around a name are dropped, empty lines are skipped.
    """
    try:
        text = require_file(path, what).read_text(encoding="utf-8-sig")
        names = [name for line in text.splitlines() if (name := line.strip())]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}): give a {what} in UTF-8") from error
    if "\0" in text:
        raise UserError(f"{path} has NUL bytes in it, which no path has: it is no {what}, or damaged")
    if not names:
        raise UserError(f"{path} lists no images")
    return RetrievalImages(root, names, path)


class ResizedImages:
    """The images as squares of one or several sides, in pixels: an image source."""

    def __init__(self, images: RetrievalImages, sides: Sequence[int]):
        self.images, self.sides = images, sides
        self.name, self.num_images = str(images.listed_in), len(images)

    @property
    def fingerprint(self) -> str:
        """That of the files and boxes."""
        return self.images.fingerprint

    def labels(self) -> None:
        """None: the images have no classes."""

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """For each of `sides` an array uint8 (B, side, side, 3) RGB, under the name `image0`, `image1` ...

        An image is decoded once and resized to each side. `UserError` naming the file of an image that cannot be used.
        """
        batches = [np.empty((len(rows), side, side, 3), dtype=np.uint8) for side in self.sides]
        for place, row in enumerate(rows.tolist()):
            image = self.images.read(row)
            for batch, side in zip(batches, self.sides):
                batch[place] = resize_image(image, side)
        return {f"image{scale}": batch for scale, batch in enumerate(batches)}

    def image_name(self, row: int) -> str:
        """The file of image `row`."""
        return str(self.images.path(row))
