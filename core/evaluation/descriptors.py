"""Global descriptors of images for retrieval: one or several scales, PCA whitening, query expansion.

Radenovic, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2019 (arXiv 1711.02512),
sections 4 and 5; whitening by PCA as in Jegou and Chum, "Negative evidences and co-occurences in image retrieval",
ECCV 2012.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from core.embeddings.cache import cached_embeddings
from core.errors import UserError
from core.evaluation.retrieval_images import ResizedImages, RetrievalImages
from core.files import ROOT
from core.models.encoder import Encoder
from core.models.mapped import Rows

__all__ = ["CACHE", "Whitening", "describe_images", "expand_queries", "image_sides"]

CACHE = ROOT / "features" / "retrieval"
READING_VERSION = 2
"""To be raised when cropping, resizing or decoding changes, so that older descriptors are not used any more."""
BLOCK = 1 << 14
ALPHA = 3.0
LEAST_VARIANCE = 1e-6


def image_sides(encoder: Encoder, image_size: int | None = None, scales: Sequence[float] = (1.0,)) -> list[int]:
    """Sides in pixels that images are resized to, for each scale: of `image_size`, or of the model's own.

    `UserError` if the model takes only images of its own size and another one is asked for.
    """
    sides = [max(1, round((image_size or encoder.image_size) * scale)) for scale in scales]
    if any(side != encoder.image_size for side in sides) and not encoder.any_size:
        raise UserError(
            f"the model {encoder.name} ({encoder.network}) takes only images of {encoder.image_size} pixels, not "
            f"{', '.join(str(side) for side in sides)}: leave out --scales and --image-size, or name a network that "
            "pools its features, such as resnet50"
        )
    return sides


def describe_images(
    encoder: Encoder,
    images: RetrievalImages,
    sides: Sequence[int],
    batch_size: int = 32,
    num_workers: int = 2,
    cache: Path = CACHE,
) -> Rows:
    """Unit descriptors, float32 (N, D), read from disk: the mean over `sides` of the unit embeddings, normalised again.

    Those of a map's run folder at one scale are those that the map takes, mapped when they are read: nothing is
    embedded twice.
    From the cache below `cache` if this model has described these images at these sizes before; a run that was killed
    goes on where it was. Memory: some batches; disk: 4 N D bytes. `UserError` if an image cannot be used or an
    embedding is not finite.
    """
    if encoder.base is not None and len(sides) == 1:
        taken = [describe_images(model, images, sides, batch_size, num_workers, cache) for model in encoder.sources]
        return encoder.mapped(*taken, normalized=True)
    store = cached_embeddings(
        encoder,
        ResizedImages(images, sides),
        cache,
        {"descriptors": _describe},
        {"sides": list(sides), "reading": READING_VERSION},
        batch_size,
        num_workers,
    )
    return store.view("descriptors")


def _describe(encoder: Encoder, batch: Mapping[str, Tensor]) -> Tensor:
    """Unit descriptors (B, D) from images (B, side, side, 3) of one or several sides."""
    scales = [images for name, images in batch.items() if name.startswith("image")]
    units = [functional.normalize(encoder(images), dim=1) for images in scales]
    return functional.normalize(sum(units, torch.zeros_like(units[0])), dim=1)


class Whitening:
    """PCA whitening: the descriptors (N, D) it is learned on get mean 0 and equal variances, then unit length again.

    Directions with less than a millionth of the largest variance are left out, as are those beyond N - 1. Learned in
    float64, block by block: scikit-learn's `PCA` copies all descriptors, and its `IncrementalPCA` approximates.
    `UserError` if the descriptors do not vary at all.
    """

    def __init__(self, descriptors: Rows):
        blocks = [descriptors[start : start + BLOCK] for start in range(0, len(descriptors), BLOCK)]
        self.mean = sum(block.sum(axis=0, dtype=np.float64) for block in blocks) / len(descriptors)
        centred = (block - self.mean for block in blocks)
        variances, directions = np.linalg.eigh(sum(block.T @ block for block in centred) / len(descriptors))
        kept = variances > max(LEAST_VARIANCE * variances[-1], np.finfo(np.float32).eps ** 2)
        if not kept.any():
            raise UserError("the descriptors of the gallery are all the same: there is nothing to learn whitening from")
        self.projection = directions[:, kept] / np.sqrt(variances[kept])

    def __call__(self, descriptors: Rows) -> np.ndarray:
        """Whitened unit descriptors, float32 (N, at most D)."""
        whitened = np.empty((len(descriptors), self.projection.shape[1]), dtype=np.float32)
        for start in range(0, len(descriptors), BLOCK):
            rows = slice(start, start + BLOCK)
            whitened[rows] = _unit((descriptors[rows] - self.mean) @ self.projection)
        return whitened


def expand_queries(
    queries: Rows, gallery: Rows, scores: np.ndarray, rows: np.ndarray, alpha: float = ALPHA
) -> np.ndarray:
    """Queries (Q, D) plus their best results, each weighted by its score to the power of `alpha`, as unit vectors.

    `scores` and `rows` (Q, n) are the first n results of a search in `gallery` (N, D); a score below 0 adds nothing.
    """
    weights = np.maximum(scores, 0.0).astype(np.float64) ** alpha
    expanded = np.asarray(queries) + np.einsum("qn,qnd->qd", weights, gallery[rows].astype(np.float64))
    return _unit(expanded).astype(np.float32)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return functional.normalize(torch.from_numpy(vectors), dim=1).numpy()
