"""Orders in which a gallery is embedded again: what comes first, by numbers for its templates or images.

random           as a baseline, the mean of several
class_distance   far from the mean of its class first (Ricci et al., "lambda-Orthogonality Regularization for
                 Compatible Representation Learning", NeurIPS 2025): the stored embeddings that a class agrees least on
predicted_error  where the map of the gallery predicts the largest error of its own (Jaeckle et al., "FastFill",
                 ICLR 2023)
oracle           by the true distance of stored and new embedding, which nobody has before the work is done: a bound
"""

import numpy as np

from core.evaluation.ijb_embeddings import ImageEmbeddings
from core.evaluation.ijb_meta import IdentificationLists, IjbImages

__all__ = ["ORDERS", "class_distances", "mean_over_members", "random_order", "true_distances"]

ORDERS = ("random", "class_distance", "predicted_error", "oracle")


def random_order(count: int, repeats: int, seed: int) -> np.ndarray:
    """Priorities (repeats, count)."""
    return np.random.default_rng(seed).random((repeats, count))


def true_distances(stored: np.ndarray, refreshed: np.ndarray) -> np.ndarray:
    """Distances (T,) of stored and new unit features (T, D) of one space."""
    return np.linalg.norm(stored - refreshed, axis=1)


def class_distances(embeddings: ImageEmbeddings, images: IjbImages, lists: IdentificationLists) -> np.ndarray:
    """For each template of a gallery the mean distance of its images to the mean of its subject, (T,); others: 0.

    Embeddings are unit vectors, and a subject's mean is that of all its enrolled images. Memory: the enrolled images'
    embeddings, 4 D bytes each.
    """
    subjects = np.full(images.num_templates, -1)
    for gallery in lists.galleries.values():
        subjects[gallery.templates] = np.unique(gallery.subjects, return_inverse=True)[1] + subjects.max() + 1
    members = np.flatnonzero(subjects[images.member_template] >= 0)
    vectors = np.asarray(embeddings.plain[images.member_image[members]], dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)
    subject = subjects[images.member_template[members]]
    order = np.argsort(subject, kind="stable")
    firsts = np.flatnonzero(np.diff(subject[order], prepend=-1))
    sizes = np.diff(np.append(firsts, len(order)))
    means = np.add.reduceat(vectors[order], firsts, axis=0) / sizes[:, None]
    distances = np.linalg.norm(vectors - means[np.unique(subject, return_inverse=True)[1]], axis=1)
    return _means(distances, images.member_template[members], images.num_templates)


def mean_over_members(values: np.ndarray, images: IjbImages) -> np.ndarray:
    """Means (T,) over the images of each template of numbers (N,) for the images."""
    return _means(values[images.member_image], images.member_template, images.num_templates)


def _means(values: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """Means (count,) of values (M,) by their groups (M,); 0 for a group without any."""
    sizes = np.bincount(groups, minlength=count)
    return np.bincount(groups, values, minlength=count) / sizes.clip(min=1)
