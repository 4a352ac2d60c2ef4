"""Verification sets in InsightFace's `.bin` format (lfw.bin, cfp_fp.bin, agedb_30.bin): accuracy over ten folds."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from core.errors import UserError
from core.images.codec import decode_image, resize_image
from core.restricted_pickle import load_plain_pickle

__all__ = ["THRESHOLDS", "VerificationResult", "fold_accuracies", "read_verification_set", "verification_accuracy"]

THRESHOLDS = np.arange(0, 4, 0.01)
"""Squared distances of unit vectors that are tried as the limit below which a pair is taken for one person."""
NUM_FOLDS = 10


@dataclass(frozen=True)
class VerificationResult:
    """Accuracy, the share of pairs judged correctly: mean and deviation over the folds, and each fold's (10,)."""

    accuracy: float
    std: float
    folds: np.ndarray


def read_verification_set(path: str | Path) -> tuple[list[bytes], np.ndarray]:
    """The 2 P encoded images and P labels (bool, True: one person) of a `.bin` file; images 2i and 2i + 1 are pair i.

    `UserError` naming the file if it is missing, holds anything but plain data, or is built otherwise.
    """
    content = load_plain_pickle(path, encoding="bytes")
    if not (isinstance(content, tuple | list) and len(content) == 2):
        raise UserError(f"{path} is no verification set: expected a pickle of (images, labels)")
    images, same = content
    try:
        images = [image.tobytes() if isinstance(image, np.ndarray) else bytes(memoryview(image)) for image in images]
        same = np.asarray(same).astype(bool)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is no verification set: expected encoded images and labels ({error})") from error
    if same.ndim != 1 or len(images) != 2 * len(same) or len(same) < NUM_FOLDS:
        raise UserError(
            f"{path}: {len(images)} images and {same.size} labels; "
            f"expected two images for each of at least {NUM_FOLDS} labels"
        )
    return images, same


@torch.no_grad()
def verification_accuracy(
    encoder: Callable[[Tensor], Tensor], path: str | Path, batch_size: int = 128, image_size: int | None = None
) -> VerificationResult:
    """Accuracy of `encoder`, which maps uint8 (B, S, S, 3) RGB on the CPU to embeddings (B, D), on the set at `path`.

    Images are resized to `image_size` where they have another size (None: that of the first).
    Embeddings of image and mirrored image are summed. The encoder is called as it is: put a module into eval mode
    first. `UserError` naming file and image where one cannot be decoded. Memory: the file, and 8 D bytes an image.
    """
    payloads, same = read_verification_set(path)
    size = image_size or len(_decode(payloads[0], path, 0, None))
    embeddings = []
    for start in range(0, len(payloads), batch_size):
        crops = [
            _decode(payload, path, row, size) for row, payload in enumerate(payloads[start : start + batch_size], start)
        ]
        batch = torch.from_numpy(np.stack(crops))
        embeddings.append((encoder(batch).float() + encoder(batch.flip(2)).float()).cpu())
    folds = fold_accuracies(torch.cat(embeddings).double().numpy(), same)
    return VerificationResult(float(folds.mean()), float(folds.std()), folds)


def _decode(payload: bytes, path: str | Path, row: int, size: int | None) -> np.ndarray:
    try:
        image = decode_image(payload)
    except ValueError as error:
        raise UserError(f"{path}: image {row} cannot be decoded ({error})") from None
    return image if size is None or image.shape[:2] == (size, size) else resize_image(image, size)


def fold_accuracies(embeddings: np.ndarray, same: np.ndarray) -> np.ndarray:
    """The accuracy of each of ten folds (10,), at the threshold that is best on the nine others.

    `embeddings` (2 P, D), rows 2i and 2i + 1 are pair i, `same` (P,). Pairs are cut into ten runs in their order,
    sizes differing by one at the most. A pair is taken for one person if the squared distance of its unit vectors is
    below the threshold; of equally good thresholds the lowest counts. Correct answers are counted for all thresholds
    and folds at once, from one histogram of the distances.
    """
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    units = embeddings / np.where(lengths > 0, lengths, 1)
    distances = np.square(units[0::2] - units[1::2]).sum(axis=1)
    same = np.asarray(same, dtype=bool)
    # The folds of scikit-learn's KFold, without its import in the middle of a training: that takes a second and changes
    # the state of Python's random numbers.
    sizes = np.array([len(part) for part in np.array_split(same, NUM_FOLDS)])
    fold = np.repeat(np.arange(NUM_FOLDS), sizes)
    lowest_accepting = np.searchsorted(THRESHOLDS, distances, side="right")
    votes = np.zeros((NUM_FOLDS, len(THRESHOLDS) + 1), dtype=np.int64)
    np.add.at(votes, (fold, lowest_accepting), np.where(same, 1, -1))
    different = np.bincount(fold, ~same, minlength=NUM_FOLDS).astype(np.int64)
    right = different[:, None] + np.cumsum(votes, axis=1)[:, : len(THRESHOLDS)]
    best = np.argmax(right.sum(axis=0) - right, axis=1)
    return right[np.arange(NUM_FOLDS), best] / sizes
