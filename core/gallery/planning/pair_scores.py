"""Scores of the images of a sample with each other, by what is compared: "new/old", "new/gallery_map" and so on."""

from typing import Protocol

import numpy as np

from core.gallery.planning.cross_fitting import Mapped

__all__ = ["MappedGallery", "MappedQueries", "PairScores", "Plain"]


class PairScores(Protocol):
    """Called with rows of the sample (Q,) as queries and others (G,) as entries: their cosines (Q, G), float32, new."""

    def __call__(self, queries: np.ndarray, entries: np.ndarray) -> np.ndarray: ...  # noqa: D102


class Plain:
    """Of two models' vectors, or one's, as they are: unit vectors (N, D)."""

    def __init__(self, queries: np.ndarray, gallery: np.ndarray):
        self._queries, self._gallery = queries, gallery

    def __call__(self, queries: np.ndarray, entries: np.ndarray) -> np.ndarray:
        """As `PairScores`."""
        return self._queries[queries] @ self._gallery[entries].T


class MappedGallery:
    """Of vectors (N, D) with mapped ones, each pair through a map that has seen the identities of neither."""

    def __init__(self, queries: np.ndarray, gallery: Mapped):
        self._queries, self._gallery = queries, gallery

    def __call__(self, queries: np.ndarray, entries: np.ndarray) -> np.ndarray:
        """As `PairScores`."""
        scores = np.empty((len(queries), len(entries)), np.float32)
        folds = self._gallery.folds[queries]
        for fold in np.unique(folds):
            own = folds == fold
            scores[own] = self._queries[queries[own]] @ self._gallery.by_fold[fold, entries].T
        return scores


class MappedQueries:
    """Of mapped vectors with vectors (N, D), likewise."""

    def __init__(self, queries: Mapped, gallery: np.ndarray):
        self._reversed = MappedGallery(gallery, queries)

    def __call__(self, queries: np.ndarray, entries: np.ndarray) -> np.ndarray:
        """As `PairScores`."""
        return self._reversed(entries, queries).T.copy()
