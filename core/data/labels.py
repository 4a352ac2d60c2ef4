"""What a training set's labels tell about its classes."""

import logging

import numpy as np

from core.errors import UserError

__all__ = ["MOST_CLASSES", "report_empty_classes", "require_classes"]

logger = logging.getLogger(__name__)
MOST_CLASSES = 1 << 24
"""More classes than images are allowed up to here: beyond, float32 labels are inexact, and so many weights absurd."""


def report_empty_classes(source: str, labels: np.ndarray, num_classes: int | None = None) -> None:
    """Log a line if labels (N,) leave classes without images: of `num_classes`, or of those up to the largest label."""
    found, total = len(np.unique(labels)), num_classes or int(labels.max()) + 1
    if found < total:
        logger.info("%s: %d of its %d classes have images; the others get a class weight too", source, found, total)


def require_classes(source: str, num_classes: int, num_images: int) -> None:
    """`UserError` for a number of classes that is absurd for so many images: each gets a class weight."""
    if num_classes > max(MOST_CLASSES, num_images):
        raise UserError(
            f"{source}: its labels go up to {num_classes - 1:,}, but it has {num_images:,} images, and each of "
            f"{num_classes:,} classes would get a class weight: number the classes from 0 on without gaps"
        )
