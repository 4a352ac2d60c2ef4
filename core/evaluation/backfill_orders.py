"""Orders in which a gallery is embedded again: what comes first, by numbers for its templates or images.

random           as a baseline, the mean of several
class_distance   far from the mean of its class first (Ricci et al., "lambda-Orthogonality Regularization for
                 Compatible Representation Learning", NeurIPS 2025): the stored embeddings that a class agrees least on
predicted_error  where the map of the gallery predicts the largest error of its own (Jaeckle et al., "FastFill",
                 ICLR 2023)
length           where that map gives short vectors, as least squares does where it is unsure; of a template the mean of
                 its images, which is short too where they do not agree
margin           which the stored gallery tells apart worst from somebody else (`margins`): a small error suffices there
oracle           by the true distance of stored and new embedding, which nobody has before the work is done

An entry that is far from all others is found by its old embedding too, however wrong that is: so `margin` can be better
than `oracle`, which knows the errors and not the others.
"""

import numpy as np

from core.evaluation.ijb_embeddings import ImageEmbeddings
from core.evaluation.ijb_meta import IdentificationLists, IjbImages

__all__ = ["ORDERS", "class_distances", "margins", "mean_over_members", "random_order", "true_distances"]

ORDERS = ("random", "class_distance", "predicted_error", "length", "margin", "oracle")
BLOCK = 1024
"""Entries that are compared with all others at a time."""


def random_order(count: int, repeats: int, seed: int) -> np.ndarray:
    """Priorities (repeats, count)."""
    return np.random.default_rng(seed).random((repeats, count))


def true_distances(stored: np.ndarray, refreshed: np.ndarray) -> np.ndarray:
    """Distances (T,) of stored and new unit features (T, D) of one space."""
    return np.linalg.norm(stored - refreshed, axis=1)


def margins(stored: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """How much better each entry is expected to match itself than one of another class, (G,) float64.

    `stored` (G, D) are what its query is expected to be: unit vectors, or a map's plain outputs f_i, of which the
    uncertain ones are short; a template's is the mean of its images. Entries are searched as unit vectors, so

        margin_i = f_i.f_i / |f_i| - max f_i.f_j / |f_j| = |f_i| (1 - max cos(f_i, f_j)),

    j over the entries of other `classes` (G,). Work: G² D products; memory: a block of 1,024 rows of G cosines, and
    the unit vectors.
    """
    lengths = np.linalg.norm(stored, axis=1)
    units = (stored / lengths.clip(min=1e-12)[:, None]).astype(np.float32)
    nearest = np.empty(len(units))
    for start in range(0, len(units), BLOCK):
        block = slice(start, start + BLOCK)
        cosines = units[block] @ units.T
        cosines[classes[block][:, None] == classes] = -1
        nearest[block] = cosines.max(axis=1)
    return lengths * (1 - nearest)


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
