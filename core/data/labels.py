"""What a training set's labels tell about its classes."""

import logging

import numpy as np

__all__ = ["report_empty_classes"]

logger = logging.getLogger(__name__)


def report_empty_classes(source: str, labels: np.ndarray, num_classes: int | None = None) -> None:
    """Log a line if labels (N,) leave classes without images: of `num_classes`, or of those up to the largest label."""
    found, total = len(np.unique(labels)), num_classes or int(labels.max()) + 1
    if found < total:
        logger.info("%s: %d of its %d classes have images; the others get a class weight too", source, found, total)
