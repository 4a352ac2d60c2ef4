"""A model's embeddings of the aligned faces of IJB-B or IJB-C, and of their mirror images."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.embeddings.cache import cached_views
from core.embeddings.extraction import PLAIN_AND_MIRRORED
from core.evaluation.ijb_meta import IjbImages
from core.files import ROOT
from core.images.alignment import similarity_transforms, warp
from core.images.codec import read_image
from core.models.encoder import Encoder
from core.models.mapped import Rows

__all__ = ["CACHE", "AlignedImages", "ImageEmbeddings", "embed_images"]

CACHE = ROOT / "features" / "ijb"
ALIGNMENT_VERSION = 2
"""To be raised when alignment or decoding changes, so that older embeddings are not used any more."""


@dataclass(frozen=True)
class ImageEmbeddings:
    """Float32 (N, D) each, read from disk, as the model gives them (not normalised): of the images, and mirrored."""

    plain: Rows
    mirrored: Rows


class AlignedImages:
    """The images as crops of `image_size` x `image_size` pixels, aligned by their landmarks: an image source."""

    def __init__(self, images: IjbImages, image_size: int):
        self.images, self.image_size = images, image_size
        self.transforms = similarity_transforms(images.landmarks, image_size)
        self.name, self.num_images = str(images.root), len(images.names)

    @property
    def fingerprint(self) -> str:
        """That of the files and landmarks."""
        return self.images.fingerprint

    def labels(self) -> None:
        """None: images belong to templates, not to classes."""

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """`image`: uint8 (B, `image_size`, `image_size`, 3) RGB. `UserError` naming a file that cannot be read."""
        crops = np.empty((len(rows), self.image_size, self.image_size, 3), dtype=np.uint8)
        for crop, row in zip(crops, rows.tolist()):
            image = read_image(self.images.path(row), self.images.stamps[row])
            crop[:] = warp(image, self.transforms[row], self.image_size)
        return {"image": crops}

    def image_name(self, row: int) -> str:
        """The file of image `row`."""
        return str(self.images.path(row))


def embed_images(
    encoder: Encoder, images: IjbImages, batch_size: int = 128, num_workers: int = 2, cache: Path = CACHE
) -> ImageEmbeddings:
    """The embeddings of all images, from the cache below `cache` if this model has embedded this data before.

    Those of a map's run folder are those that the map takes, mapped when they are read: nothing is embedded twice. A
    run that was killed goes on where it was. Memory: some batches; disk: 8 N D bytes. `UserError` if an image cannot be
    read or an embedding is not finite.
    """
    views = cached_views(
        encoder,
        AlignedImages(images, encoder.image_size),
        cache / images.subset.lower(),
        PLAIN_AND_MIRRORED,
        {"alignment": ALIGNMENT_VERSION},
        batch_size,
        num_workers,
    )
    return ImageEmbeddings(views["plain"], views["mirrored"])
