"""The splits of the released code, number by number: MixBCT's of MS1M-V3's records, AdvBCT's of GLDv2's list.

They need the release's own input: for landmarks its `label_81313.txt`. A list with other class numbers or another order
of images, such as one made from `train_clean.csv`, is split by the same rule, into other images.
"""

import numpy as np

__all__ = ["first_images", "numbered_by_shuffle", "shuffled_images"]

SEED = 666


def first_images(labels: np.ndarray, ratio: float) -> np.ndarray:
    """MixBCT's split by image: which of the N images go to the old side, bool (N,).

    Of the k images of a class the first max(1, round(ratio k)). A class of one image is on both sides.
    """
    rank, counts = np.unique(labels, return_inverse=True, return_counts=True)[1:]
    return _place_in_class(rank, counts) < np.maximum(1, np.rint(ratio * counts))[rank]


def shuffled_images(labels: np.ndarray, ratio: float) -> np.ndarray:
    """AdvBCT's split by image: which of the N images go to the old side, bool (N,).

    Of a class c of up to three images the first; of k others floor(ratio k), by a shuffle with the seed 666 + c. A
    class of one image is on both sides.
    """
    classes, rank, counts = np.unique(labels, return_inverse=True, return_counts=True)
    place = _place_in_class(rank, counts)
    old = place == 0
    begin = np.cumsum(counts) - counts
    rows = np.argsort(rank, kind="stable")
    random = np.random.RandomState()  # each class has a seed of its own, so there is no way round a loop
    for i in np.flatnonzero(counts > 3).tolist():
        count = int(counts[i])
        random.seed(SEED + int(classes[i]))
        own = rows[begin[i] : begin[i] + count]
        old[own] = False
        old[own[random.permutation(count)[: int(count * ratio)]]] = True
    return old


def numbered_by_shuffle(labels: np.ndarray, ratio: float) -> tuple[np.ndarray, int]:
    """AdvBCT's split by class: new labels (N,), and how many classes C_old, which come first, go to the old side.

    The C classes, up to the largest label, are shuffled, and the first floor(ratio C) are old. Old and new ones are
    numbered in the order that they had.
    """
    num_classes = int(labels.max()) + 1
    num_old = int(num_classes * ratio)
    is_new = np.ones(num_classes, bool)
    is_new[np.random.RandomState(SEED).permutation(num_classes)[:num_old]] = False
    number = np.empty(num_classes, np.int64)
    number[np.argsort(is_new, kind="stable")] = np.arange(num_classes)
    return number[labels], num_old


def _place_in_class(rank: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """How many images of its class come before each image (N,)."""
    place = np.empty(len(rank), np.int64)
    place[np.argsort(rank, kind="stable")] = np.arange(len(rank)) - np.repeat(np.cumsum(counts) - counts, counts)
    return place
