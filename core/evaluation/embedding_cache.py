"""Embeddings made once for a model and a data set; those of the images of IJB-B or IJB-C and of their mirror images."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from core.errors import UserError
from core.evaluation.ijb_meta import IjbImages
from core.files import ROOT, replaced_atomically
from core.images.alignment import similarity_transforms, warp
from core.images.codec import read_image
from core.images.ordered_loader import load_in_order
from core.models.encoder import Encoder
from core.progress import Progress

__all__ = ["CACHE", "ImageEmbeddings", "aligned_batches", "cached_embeddings", "embed_images", "require_finite"]

logger = logging.getLogger(__name__)
CACHE = ROOT / "features" / "ijb"
ALIGNMENT_VERSION = 1
"""To be raised when alignment or decoding changes, so that older embeddings are not taken for new ones."""


@dataclass(frozen=True)
class ImageEmbeddings:
    """Float32 (N, D) each, memory-mapped, as the model gives them (not normalised): of the images, and mirrored."""

    plain: np.ndarray
    mirrored: np.ndarray


class _AlignedBatches(Dataset):
    """Maps a range of image rows to the tensor of their aligned crops; runs in the loader's workers."""

    def __init__(self, images: IjbImages, image_size: int):
        self.images, self.image_size = images, image_size
        self.transforms = similarity_transforms(images.landmarks, image_size)

    def __getitem__(self, rows: range) -> Tensor | UserError:
        batch = np.empty((len(rows), self.image_size, self.image_size, 3), dtype=np.uint8)
        try:
            for crop, row in zip(batch, rows):
                crop[:] = warp(read_image(self.images.path(row)), self.transforms[row], self.image_size)
        except UserError as error:
            return error
        return torch.from_numpy(batch)


def aligned_batches(
    images: IjbImages, image_size: int, batch_size: int, num_workers: int, pin_memory: bool = False
) -> Iterator[Tensor]:
    """Aligned crops of all images in order, uint8 (B, `image_size`, `image_size`, 3) RGB, read by worker processes.

    `UserError` naming the file of an image that cannot be read. Memory: two batches a worker.
    """
    dataset = _AlignedBatches(images, image_size)
    return load_in_order(dataset, len(images.names), batch_size, num_workers, pin_memory)


def cached_embeddings(
    encoder: Encoder,
    folder: Path,
    settings: Mapping[str, object],
    names: Sequence[str],
    shape: tuple[int, int],
    embed: Callable[..., None],
    about: Mapping[str, object],
) -> tuple[np.ndarray, ...]:
    """Arrays float32 of `shape` (N, D), one for each of `names`, memory-mapped from the cache below `folder`.

    `folder` is that of the data. The arrays' folder below it is named by the model (weights, network, image size, mean
    and std) and by `settings`, what else the embeddings depend on. If it is missing or damaged `embed` is called with
    the empty arrays, of which nothing is left if it fails. `about` is noted beside them for people.
    """
    made_by = {
        "model": encoder.fingerprint,
        "network": str(encoder.network),
        "image_size": encoder.image_size,
        "mean": [float(value) for value in encoder.mean],
        "std": [float(value) for value in encoder.std],
        **settings,
    }
    folder = folder / hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:16]
    if (folder / "info.json").is_file():
        try:
            arrays = _open(folder, names, shape)
        except Exception as error:  # whatever a missing or damaged file makes of NumPy
            logger.warning("%s: the cache %s is damaged (%s): embedding again", encoder.name, folder, error)
        else:
            logger.info("%s: embeddings from cache %s", encoder.name, folder)
            return arrays
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder of the embedding cache {folder.parent}: {error.strerror}") from error
    with replaced_atomically(folder) as temporary:
        temporary.mkdir()
        arrays = [
            np.lib.format.open_memmap(temporary / f"{name}.npy", mode="w+", dtype=np.float32, shape=shape)
            for name in names
        ]
        embed(*arrays)
        for array in arrays:
            array.flush()
        info = {**made_by, "name": encoder.name, **about}
        (temporary / "info.json").write_text(json.dumps(info, indent=2) + "\n")
    return _open(folder, names, shape)


def _open(folder: Path, names: Sequence[str], shape: tuple[int, int]) -> tuple[np.ndarray, ...]:
    arrays = tuple(np.lib.format.open_memmap(folder / f"{name}.npy", mode="r") for name in names)
    for name, array in zip(names, arrays):
        if (array.shape, array.dtype) != (shape, np.float32):
            raise ValueError(f"{name}.npy holds {array.dtype} {array.shape}, not float32 {shape}")
    return arrays


def require_finite(embeddings: np.ndarray, encoder: Encoder, first: Path) -> None:
    """`UserError` naming the model and the first image of a batch whose embeddings are not all finite."""
    if not np.isfinite(embeddings).all():
        raise UserError(
            f"the model {encoder.name} gives embeddings that are not finite for images from {first} on: its weights "
            "are damaged or its training diverged"
        )


def embed_images(
    encoder: Encoder, images: IjbImages, batch_size: int = 128, num_workers: int = 2, cache: Path = CACHE
) -> ImageEmbeddings:
    """The embeddings of all images, from the cache below `cache` if this model has embedded this data before.

    Memory: some batches; disk: 8 N D bytes. `UserError` if an image cannot be read or an embedding is not finite.
    """
    shape = (len(images.names), encoder.embedding_size)

    def embed(plain: np.ndarray, mirrored: np.ndarray) -> None:
        logger.info("%s: embedding %d images of %s", encoder.name, len(images.names), images.root)
        _embed(encoder, images, plain, mirrored, batch_size, num_workers)

    return ImageEmbeddings(
        *cached_embeddings(
            encoder,
            cache / images.subset.lower() / images.fingerprint[:16],
            {"alignment": ALIGNMENT_VERSION},
            ("plain", "mirrored"),
            shape,
            embed,
            {"data": images.fingerprint, "root": str(images.root)},
        )
    )


def _embed(
    encoder: Encoder,
    images: IjbImages,
    plain: np.ndarray,
    mirrored: np.ndarray,
    batch_size: int,
    num_workers: int,
) -> None:
    device = torch.device(encoder.device)
    done = 0
    batches = aligned_batches(images, encoder.image_size, batch_size, num_workers, device.type == "cuda")
    with Progress(f"embedding with {encoder.name}", len(images.names)) as progress:
        for batch in batches:
            batch = batch.to(device, non_blocking=True)
            rows = slice(done, done + len(batch))
            plain[rows] = encoder(batch).cpu().numpy()
            mirrored[rows] = encoder(batch.flip(2)).cpu().numpy()
            for embeddings in (plain[rows], mirrored[rows]):
                require_finite(embeddings, encoder, images.path(done))
            done += len(batch)
            progress.update(len(batch))
