"""Verification sets in InsightFace's `.bin` format (lfw.bin, cfp_fp.bin, agedb_30.bin): accuracy, rates, thresholds."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.embeddings.cache import cached_views
from core.embeddings.extraction import PLAIN_AND_MIRRORED
from core.errors import UserError
from core.evaluation.roc import RocResult, receiver_operating_characteristic
from core.files import ROOT
from core.images.codec import decode_image, resize_image
from core.models.encoder import Encoder
from core.restricted_pickle import load_plain_pickle

__all__ = ["CACHE", "THRESHOLDS", "VerificationImages", "VerificationResult", "embed_pairs", "evaluate_pairs",
           "find_verification_sets", "fold_accuracies", "read_verification_set", "verification_accuracy"]  # fmt: skip

CACHE = ROOT / "features" / "verification"
READING_VERSION = 1
"""To be raised when decoding or resizing changes, so that older embeddings are not used any more."""
THRESHOLDS = np.arange(0, 4, 0.01)
"""Squared distances of unit vectors that are tried as the limit below which a pair is taken for one person."""
NUM_FOLDS = 10


@dataclass(frozen=True)
class VerificationResult:
    """Accuracy, the share of pairs judged correctly: mean and deviation over the folds, and each fold's (10,)."""

    accuracy: float
    std: float
    folds: np.ndarray


def find_verification_sets(paths: Sequence[str | Path]) -> dict[str, Path]:
    """The `.bin` files among `paths` and in the folders among them, by their names without the ending.

    `UserError` for a path that is not there, a folder without such files, or two files of one name.
    """
    sets: dict[str, Path] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"verification set not found: {path} (a .bin file, or a folder of them)")
        files = sorted(path.glob("*.bin")) if path.is_dir() else [path]
        if not files:
            raise UserError(f"{path} has no verification sets: expected files such as lfw.bin in it")
        for file in files:
            if sets.setdefault(file.stem, file) != file:
                raise UserError(f"two verification sets are called {file.stem}: {sets[file.stem]} and {file}")
    return sets


def read_verification_set(path: str | Path) -> tuple[list[bytes], np.ndarray]:
    """The 2 P encoded images and P labels (bool, True: one person) of a `.bin` file; images 2i and 2i + 1 are pair i.

    `UserError` naming the file if it is missing, holds anything but plain data, or is built otherwise.
    """
    content = load_plain_pickle(path, encoding="bytes")
    if not (isinstance(content, tuple | list) and len(content) == 2):
        raise UserError(f"{path} is no verification set: expected a pickle of (images, labels)")
    images, same = content
    try:
        images = list(images)
        encoded = {key: _encoded(image) for key, image in {id(image): image for image in images}.items()}
        images = [encoded[id(image)] for image in images]  # once each: files can hold one in many places
        same = np.asarray(same, dtype=bool)  # of texts, without an array of texts between
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is no verification set: expected encoded images and labels ({error})") from error
    if same.ndim != 1 or len(images) != 2 * len(same) or len(same) < NUM_FOLDS:
        raise UserError(
            f"{path}: {len(images)} images and {same.size} labels; "
            f"expected two images for each of at least {NUM_FOLDS} labels"
        )
    return images, same


def _encoded(image: Any) -> bytes:
    return image.tobytes() if isinstance(image, np.ndarray) else bytes(memoryview(image))


class VerificationImages:
    """The 2 P images of a verification set as an image source, and which pairs are `same` (P,). Memory: the file.

    Images of another size than `image_size` x `image_size` are resized; None: the size of the first.
    """

    def __init__(self, path: str | Path, image_size: int | None = None):
        self.path = Path(path)
        self._payloads, self.same = read_verification_set(path)
        self.name, self.num_images = str(path), len(self._payloads)
        self.image_size = image_size or len(self._decode(0))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def labels(self) -> None:
        """None: images belong to pairs, not to classes."""

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """`image`: uint8 (B, `image_size`, `image_size`, 3) RGB. `UserError` naming one that cannot be decoded."""
        size = self.image_size
        images = [self._decode(row) for row in rows.tolist()]
        return {"image": np.stack([i if i.shape[:2] == (size, size) else resize_image(i, size) for i in images])}

    def image_name(self, row: int) -> str:
        """The image's number and the file."""
        return f"image {row} of {self.path}"

    def _decode(self, row: int) -> np.ndarray:
        try:
            return decode_image(self._payloads[row])
        except ValueError as error:
            raise UserError(f"{self.path}: image {row} cannot be decoded ({error})") from None


@torch.no_grad()
def verification_accuracy(
    encoder: Callable[[Tensor], Tensor], path: str | Path, batch_size: int = 128, image_size: int | None = None
) -> VerificationResult:
    """Accuracy of `encoder`, which maps uint8 (B, S, S, 3) RGB on the CPU to embeddings (B, D), on the set at `path`.

    Images are resized to `image_size` where they have another size (None: that of the first).
    Embeddings of image and mirrored image are summed. The encoder is called as it is: put a module into eval mode
    first. `UserError` naming file and image where one cannot be decoded. Memory: the file, and 8 D bytes an image.
    """
    images = VerificationImages(path, image_size)
    embeddings = []
    for rows in np.split(np.arange(images.num_images), range(batch_size, images.num_images, batch_size)):
        batch = torch.from_numpy(images.read(rows)["image"])
        embeddings.append((encoder(batch).float() + encoder(batch.flip(2)).float()).cpu())
    folds = fold_accuracies(torch.cat(embeddings).double().numpy(), images.same)
    return VerificationResult(float(folds.mean()), float(folds.std()), folds)


def embed_pairs(
    encoder: Encoder, path: str | Path, batch_size: int = 128, num_workers: int = 2, cache: Path = CACHE
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the embeddings of images and mirrored images, float64 (2 P, D), of the set at `path`, and `same` (P,).

    Embeddings come from the cache below `cache` if this model has embedded this file before. `UserError` naming file
    and image where one cannot be decoded or its embedding is not finite. Memory: the file, and 8 D bytes an image.
    """
    images = VerificationImages(path, encoder.image_size)
    settings = {"reading": READING_VERSION}
    views = cached_views(encoder, images, cache, PLAIN_AND_MIRRORED, settings, batch_size, num_workers)
    plain, mirrored = (np.asarray(views[name]) for name in ("plain", "mirrored"))
    return plain.astype(np.float64) + mirrored, images.same


def evaluate_pairs(query: np.ndarray, gallery: np.ndarray, same: np.ndarray) -> RocResult:
    """Verification of P pairs: of each the gallery's (the old model's) first image and the query's (the new's) second.

    Embeddings (2 P, D) each as of `embed_pairs`; give the same array twice for a self-test. To rates and thresholds by
    the cosine come `accuracy` and `accuracy_std` over ten folds, and the threshold called `accuracy`, at which most of
    all pairs are judged correctly.
    """
    embeddings = np.stack([gallery[0::2], query[1::2]], axis=1).reshape(len(query), -1)
    units = _unit(embeddings)
    cosines = np.einsum("pd,pd->p", units[0::2], units[1::2])
    roc = receiver_operating_characteristic(cosines[same], cosines[~same])
    right, sizes = _right_answers(units, same)
    folds = _at_best_of_the_others(right) / sizes
    metrics = {"accuracy": float(folds.mean()), "accuracy_std": float(folds.std()), **roc.metrics}
    best = round(float(1 - THRESHOLDS[right.sum(axis=0).argmax()] / 2), 4)
    return RocResult(metrics, {"accuracy": best, **roc.thresholds}, roc.fpr, roc.tpr)


def fold_accuracies(embeddings: np.ndarray, same: np.ndarray) -> np.ndarray:
    """The accuracy of each of ten folds (10,), at the threshold that is best on the nine others.

    `embeddings` (2 P, D), rows 2i and 2i + 1 are pair i, `same` (P,). Pairs are cut into ten runs in their order,
    sizes differing by one at the most. A pair is taken for one person if the squared distance of its unit vectors is
    below the threshold; of equally good thresholds the lowest counts.
    """
    right, sizes = _right_answers(_unit(embeddings), same)
    return _at_best_of_the_others(right) / sizes


def _unit(embeddings: np.ndarray) -> np.ndarray:
    """Rows divided by their length; a zero row stays zero."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / np.where(lengths > 0, lengths, 1)


def _right_answers(units: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Correct answers by fold and threshold (10, T), and the pairs of each fold (10,).

    Counted for all thresholds and folds at once, from one histogram of the distances.
    """
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
    return different[:, None] + np.cumsum(votes, axis=1)[:, : len(THRESHOLDS)], sizes


def _at_best_of_the_others(right: np.ndarray) -> np.ndarray:
    """Correct answers of each fold (10,) at the threshold that is best on the nine others."""
    best = np.argmax(right.sum(axis=0) - right, axis=1)
    return right[np.arange(NUM_FOLDS), best]
