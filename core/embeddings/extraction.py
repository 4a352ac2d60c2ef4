"""Embedding all images of a source into a store, over any number of ranks, resumable."""

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from core.data.samplers import evaluation_rows
from core.embeddings.claim import LOCK, claimed
from core.embeddings.store import FEATURES, EmbeddingStore, StoreInfo, open_arrays
from core.errors import UserError
from core.files import ROOT, require_replaceable
from core.images.loader import load_batches
from core.images.source import ImageSource
from core.models.encoder import Encoder
from core.parallel.collectives import barrier, broadcast_object
from core.parallel.ranks import Ranks
from core.progress import Progress

__all__ = ["Views", "default_store_path", "extract_embeddings", "require_writable_store"]

logger = logging.getLogger(__name__)
BLOCK = 4096
"""Rows that are embedded and marked as done together: the most that a killed extraction loses for each rank."""

Views: TypeAlias = Mapping[str, Callable[[Encoder, Mapping[str, Tensor]], Tensor]]
"""By the name of its array: a function from a batch of a source, on the model's device, to float32 (B, D)."""
PLAIN: Views = {FEATURES: lambda encoder, batch: encoder(batch["image"])}


def default_store_path(encoder: Encoder, source: ImageSource) -> Path:
    """`features/<model>_<data>_<fingerprints>` below the repository root: one folder for a model and data."""
    name = f"{encoder.name}_{Path(source.name).name}_{encoder.fingerprint[:8]}_{source.fingerprint[:8]}"
    return ROOT / "features" / name


def extract_embeddings(
    encoder: Encoder,
    source: ImageSource,
    path: Path,
    ranks: Ranks,
    batch_size: int = 128,
    num_workers: int = 0,
    *,
    views: Views = PLAIN,
    settings: Mapping[str, object] | None = None,
    wait: bool = False,
) -> EmbeddingStore:
    """The store at `path` of `encoder`'s embeddings of `source`, made if it is not there; every rank must call this.

    A finished store of the same model and data is opened as it is; one of another model, of other data, views or
    settings is an error. Blocks of 4,096 rows are dealt to the ranks in turn and marked as done in `<path>.partial`,
    where a killed extraction goes on with any number of ranks. One run at a time works there: a second one is an error,
    or waits for the first (`wait`). `UserError` if an image cannot be read, an embedding is not finite, or the disk has
    no room, which is reserved before anything is embedded. Memory: a few batches a rank; disk: 4 N D bytes a view.
    """
    info = StoreInfo.of(encoder, source, tuple(views), settings or {})
    if broadcast_object(_is_finished(path)):  # the first rank's answer: another may see the folder later
        return _open_finished(path, info)
    if ranks.is_first and path.exists() and not _is_finished(path) and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path} exists and is no embedding store: name an empty folder or a new one")
    if ranks.is_first:
        require_writable_store(path)
    partial = path.with_name(path.name + ".partial")
    with claimed(partial, wait) if ranks.is_first else nullcontext():
        finished = broadcast_object(_is_finished(path))  # by another run, before this one's claim
        if not finished:
            if ranks.is_first:
                _prepare(partial, info, source)
            barrier()
            try:
                _embed_missing_blocks(encoder, source, info, partial, ranks, batch_size, num_workers, views)
            except UserError:  # the images or the model must be replaced, and then nothing here is of use
                shutil.rmtree(partial, ignore_errors=True)
                raise
            barrier()
            if ranks.is_first:
                _finish(partial, info, path)
        elif ranks.is_first:
            shutil.rmtree(partial, ignore_errors=True)
    if finished:
        return _open_finished(path, info)
    barrier()
    return EmbeddingStore.open(path)


def require_writable_store(path: Path) -> None:
    """`UserError` unless there is a finished store at `path`, which is only read, or one can be written."""
    if not _is_finished(path):
        require_replaceable(path, folder=True)


def _is_finished(path: Path) -> bool:
    return (path / "store.json").is_file()


def _open_finished(path: Path, info: StoreInfo) -> EmbeddingStore:
    store = EmbeddingStore.open(path)
    store.require(info)
    logger.info("%s: embeddings from the store %s", info.model_name, path)
    return store


def _prepare(partial: Path, info: StoreInfo, source: ImageSource) -> None:
    """Fill the folder of an extraction under way, or keep what an earlier run of the same work left."""
    if _can_go_on(partial, info):
        return
    for file in partial.iterdir():
        if file.name != LOCK:
            file.unlink()
    shape = (info.num_images, info.embedding_size)
    try:
        for view in info.views:
            _reserve(partial / f"{view}.npy", np.float32, shape)
        labels = source.labels()
        if labels is not None:
            np.save(partial / "labels.npy", labels)
        _reserve(partial / "done.npy", np.bool_, (-(-info.num_images // BLOCK),))
        (partial / "plan.json").write_text(json.dumps(asdict(info)))
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        needed = info.num_images * (4 * info.embedding_size * len(info.views) + 8 * info.labelled)
        raise UserError(
            f"cannot make the embedding store in {partial}: it needs {needed} bytes there ({error.strerror}); make "
            "room or name a folder on another disk"
        ) from error


def _can_go_on(partial: Path, info: StoreInfo) -> bool:
    """True if an earlier run of the same work left whole arrays."""
    try:
        if json.loads((partial / "plan.json").read_text()) != asdict(info):
            return False
        open_arrays(partial, info)
        return len(np.load(partial / "done.npy")) == -(-info.num_images // BLOCK)
    except (FileNotFoundError, ValueError, EOFError):
        return False


def _reserve(file: Path, dtype: type, shape: tuple[int, ...]) -> None:
    """Make an array of zeros and have the disk set its room aside.

    Where the disk is full, a write through a memory map kills the process.
    """
    np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)
    with open(file, "r+b") as handle:
        try:
            os.posix_fallocate(handle.fileno(), 0, file.stat().st_size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # from file systems that cannot reserve room
                raise


def _embed_missing_blocks(
    encoder: Encoder,
    source: ImageSource,
    info: StoreInfo,
    partial: Path,
    ranks: Ranks,
    batch_size: int,
    num_workers: int,
    views: Views,
) -> None:
    """Write the embeddings of this rank's blocks that no earlier run has done."""
    arrays = open_arrays(partial, info, mode="r+")
    done = np.load(partial / "done.npy", mmap_mode="r+")
    mine = evaluation_rows(info.num_images, BLOCK, ranks.rank, ranks.world_size)
    blocks = [block for block in mine if not done[block.start // BLOCK]]
    batches = [block[start : start + batch_size] for block in blocks for start in range(0, len(block), batch_size)]
    total = sum(map(len, blocks))
    if total and ranks.is_first:
        logger.info("%s: embedding %d images of %s", encoder.name, total, source.name)
    device = torch.device(encoder.device)
    with Progress(f"embedding with {encoder.name}", total, quiet=not ranks.is_first) as progress:
        for batch in load_batches(source, batches, num_workers, pin_memory=device.type == "cuda"):
            rows = batch["row"].numpy()
            on_device = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
            for name, embed in views.items():
                embeddings = embed(encoder, on_device).cpu().numpy()
                _require_finite(embeddings, encoder, source, rows)
                arrays[name][rows[0] : rows[-1] + 1] = embeddings
            if (rows[-1] + 1) % BLOCK == 0 or rows[-1] + 1 == info.num_images:
                for name in views:
                    arrays[name].flush()
                done[rows[-1] // BLOCK] = True
                done.flush()
            progress.update(len(rows))


def _require_finite(embeddings: np.ndarray, encoder: Encoder, source: ImageSource, rows: np.ndarray) -> None:
    """`UserError` naming the model and the first image of a batch whose embedding is not finite."""
    finite = np.isfinite(embeddings).all(axis=1)
    if not finite.all():
        image = source.image_name(int(rows[~finite][0]))
        raise UserError(
            f"the model {encoder.name} gives an embedding that is not finite for {image}: its weights are damaged or "
            "its training diverged; name another model"
        )


def _finish(partial: Path, info: StoreInfo, path: Path) -> None:
    """Turn the folder of a completed extraction into the store at `path`."""
    (partial / "store.json").write_text(json.dumps(asdict(info), indent=2) + "\n")
    for name in ("done.npy", "plan.json"):
        (partial / name).unlink()
    if path.exists():
        path.rmdir()
    partial.rename(path)
    (path / LOCK).unlink()  # last, or another run could claim the folder before it has its name
