"""Images that lie encoded one by one, in files or archives: their decoded batches, and what becomes of bad ones."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from core.errors import UserError
from core.images.codec import decode_image, resize_image

__all__ = ["EncodedImages"]

logger = logging.getLogger(__name__)


class EncodedImages(ABC):
    """N encoded images with classes, read by row.

    With `image_size` given, images are squashed to that square: JPEGs at least twice as large are shrunk while they are
    decoded, the rest is done by averaging over areas. Otherwise, as with records, all must have the size of the first,
    a square.

    An image that cannot be read or decoded is an error with its name, or with `skip_bad` a warning with its name, and
    the first image of its class that can be decoded takes its place (a black one if there is none): the rows stay.
    """

    def __init__(self, image_size: int | None, skip_bad: bool):
        self._size, self.skip_bad = image_size, skip_bad

    @abstractmethod
    def labels(self) -> np.ndarray:
        """Labels of all rows, int64 (N,)."""

    @abstractmethod
    def payload(self, row: int) -> bytes:
        """The encoded image of a row; `OSError`, or `UserError` if it has changed since the images were looked up."""

    @abstractmethod
    def image_name(self, row: int) -> str:
        """Where the image of a row lies, for messages."""

    @cached_property
    def image_size(self) -> int:
        """Side of the decoded images in pixels: the one given, or that of the first image."""
        if self._size is not None:
            return self._size
        try:
            height, width = decode_image(self.payload(0)).shape[:2]
        except UserError:
            raise
        except (OSError, ValueError) as error:
            raise self.undecodable(0, error) from None
        if height != width:
            raise UserError(
                f"{self.image_name(0)} is an image of {width}x{height}, not a square; set the size that images are to "
                "be resized to (image_size)"
            )
        return height

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """`batch` as arrays by name: `image` and `label`."""
        images, labels = self.batch(rows)
        return {"image": images, "label": labels}

    def batch(self, rows: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decoded images uint8 (B, H, W, 3) RGB and labels int64 (B,) of the given rows."""
        rows = np.asarray(rows, dtype=np.int64)
        size = self.image_size
        images = np.empty((len(rows), size, size, 3), np.uint8)
        for row, image in zip(rows.tolist(), images):
            try:
                self._decode(row, image)
            except UserError:
                raise
            except (OSError, ValueError) as error:
                if not self.skip_bad:
                    raise self.undecodable(row, error) from None
                logger.warning(
                    "%s cannot be decoded (%s); another image of its class is used", self.image_name(row), error
                )
                self._substitute(row, image)
        return images, self.labels()[rows]

    def _decode(self, row: int, out: np.ndarray) -> None:
        """Fill `out` (size, size, 3) with the image of a row; `OSError` or `ValueError` if that is impossible."""
        size = len(out)
        image = decode_image(self.payload(row), out, min_side=self._size)
        if image.shape == out.shape:
            return
        if self._size is None:
            height, width = image.shape[:2]
            raise UserError(
                f"{self.image_name(row)} is an image of {width}x{height}, the first one of {size}x{size}; set the size "
                "that images are to be resized to (image_size)"
            )
        out[:] = resize_image(image, size)

    def _substitute(self, row: int, out: np.ndarray) -> None:
        """Fill `out` with the first image of the row's class that can be decoded; black if there is none."""
        for candidate in np.flatnonzero(self.labels() == self.labels()[row]).tolist():
            try:
                return self._decode(candidate, out)
            except UserError:
                raise
            except (OSError, ValueError):
                continue
        out[:] = 0

    def undecodable(self, row: int, error: Exception) -> UserError:
        """The error for an image that cannot be read or decoded."""
        return UserError(
            f"{self.image_name(row)} is not an image that can be decoded ({error}); replace it, or use another image "
            "of its class (bad_images skip)"
        )
