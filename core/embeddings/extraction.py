"""Embedding all images of a data set into a feature store, over any number of ranks, resumable."""

import errno
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
from torch import distributed

from core.data.loader import load_batches
from core.data.open_dataset import ImageDataset
from core.data.samplers import evaluation_rows
from core.embeddings.store import FeatureStore, StoreInfo
from core.errors import UserError
from core.files import ROOT
from core.models.encoder import Encoder
from core.parallel.collectives import broadcast_object
from core.parallel.ranks import Ranks
from core.progress import Progress

__all__ = ["default_store_path", "extract_features"]

logger = logging.getLogger(__name__)
BLOCK = 4096
"""Rows that are embedded and marked as done together: what a killed extraction loses at the most for each rank."""
LOCK = "lock"


def default_store_path(encoder: Encoder, data: ImageDataset) -> Path:
    """`features/<model>_<data>_<fingerprints>` below the repository root: one folder for a model and data."""
    name = f"{encoder.name}_{Path(data.prefix).name}_{encoder.fingerprint[:8]}_{data.fingerprint[:8]}"
    return ROOT / "features" / name


def extract_features(
    encoder: Encoder, data: ImageDataset, path: Path, ranks: Ranks, batch_size: int = 128, num_workers: int = 0
) -> FeatureStore:
    """The store at `path` of `encoder`'s embeddings of `data`, made if it is not there; every rank must call this.

    A finished store of the same model and data is opened as it is; one of another model or data is an error. Blocks of
    4,096 rows are dealt to the ranks in turn and marked as done in `<path>.partial`, from where a killed extraction
    goes on with any number of ranks; one run at a time works on it. `UserError` if its room cannot be had on the disk,
    which is taken before anything is embedded. Memory: a few batches a rank; the array is written through a memory map.
    """
    if broadcast_object(_is_finished(path)):  # the first rank's answer: another may see the folder later
        return _open_finished(encoder, data, path)
    if ranks.is_first and path.exists() and not _is_finished(path) and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path} exists and is no feature store: name an empty folder or a new one")
    info = StoreInfo(
        data.fingerprint,
        encoder.fingerprint,
        data.num_images,
        encoder.embedding_size,
        str(data.prefix),
        encoder.name,
        encoder.preprocessing,
    )
    partial = path.with_name(path.name + ".partial")
    with _claimed(partial) if ranks.is_first else nullcontext():
        finished = broadcast_object(_is_finished(path))  # by another run, before this one's claim
        if not finished:
            _make_store(encoder, data, info, path, partial, ranks, batch_size, num_workers)
        elif ranks.is_first:
            shutil.rmtree(partial, ignore_errors=True)
    if finished:
        return _open_finished(encoder, data, path)
    distributed.barrier()
    return FeatureStore.open(path)


def _is_finished(path: Path) -> bool:
    return (path / "store.json").exists()


def _open_finished(encoder: Encoder, data: ImageDataset, path: Path) -> FeatureStore:
    store = FeatureStore.open(path)
    store.require_data(data)
    store.require_model(encoder.name, encoder.fingerprint, encoder.preprocessing)
    logger.info("old features: using the store %s", path)
    return store


def _make_store(
    encoder: Encoder,
    data: ImageDataset,
    info: StoreInfo,
    path: Path,
    partial: Path,
    ranks: Ranks,
    batch_size: int,
    num_workers: int,
) -> None:
    """Embed what is missing in the claimed folder `partial`, which then becomes `path`."""
    if ranks.is_first:
        _prepare_partial(partial, info, num_blocks=-(-data.num_images // BLOCK))
    distributed.barrier()
    try:
        _embed_missing_blocks(encoder, data, partial, ranks, batch_size, num_workers)
    except UserError:  # an unreadable image: the data must be mended first, and is then other data
        shutil.rmtree(partial, ignore_errors=True)
        raise
    distributed.barrier()
    if ranks.is_first:
        (partial / "store.json").write_text(json.dumps(asdict(info), indent=2) + "\n")
        for name in ("done.npy", "plan.json"):
            (partial / name).unlink()
        if path.exists():
            path.rmdir()
        partial.rename(path)
        (path / LOCK).unlink()  # last, or another run could claim the folder before it has its name


def _embed_missing_blocks(
    encoder: Encoder, data: ImageDataset, partial: Path, ranks: Ranks, batch_size: int, num_workers: int
) -> None:
    """Write the features and labels of this rank's blocks that no earlier run has done."""
    features = np.load(partial / "features.npy", mmap_mode="r+")
    labels = np.load(partial / "labels.npy", mmap_mode="r+")
    done = np.load(partial / "done.npy", mmap_mode="r+")
    mine = evaluation_rows(data.num_images, BLOCK, ranks.rank, ranks.world_size)
    blocks = [block for block in mine if not done[block.start // BLOCK]]
    batches = [block[start : start + batch_size] for block in blocks for start in range(0, len(block), batch_size)]
    total = sum(map(len, blocks))
    if total and ranks.is_first:
        logger.info("embedding %d images of %s with %s", total, data.prefix, encoder.name)
    with Progress("old features", total, quiet=not ranks.is_first) as progress:
        for batch in load_batches(data, batches, num_workers, pin_memory=ranks.device.type == "cuda"):
            rows = batch["row"].numpy()
            features[rows[0] : rows[-1] + 1] = encoder(batch["image"].to(ranks.device, non_blocking=True)).cpu().numpy()
            labels[rows[0] : rows[-1] + 1] = batch["label"].numpy()
            if (rows[-1] + 1) % BLOCK == 0 or rows[-1] + 1 == data.num_images:
                features.flush()
                labels.flush()
                done[rows[-1] // BLOCK] = True
                done.flush()
            progress.update(len(rows))


@contextmanager
def _claimed(partial: Path) -> Iterator[None]:
    """The folder of an extraction under way, made if it is missing, for one run alone; a kill sets it free too.

    Locks a file that is open for writing: NFS gives an exclusive lock for no other.
    """
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock = open(partial / LOCK, "w")
    except OSError as error:
        raise UserError(f"cannot make the feature store's folder {partial}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another run is making the feature store in {partial}: wait for it or name another"
            ) from None
        except OSError as error:
            logger.warning("%s cannot be locked (%s): let no other run make the same store", partial, error.strerror)
        yield


def _prepare_partial(partial: Path, info: StoreInfo, num_blocks: int) -> None:
    """Fill the folder of an extraction under way, or keep what an earlier run of the same work left."""
    plan = partial / "plan.json"
    if plan.exists() and json.loads(plan.read_text()) == asdict(info):
        return
    for file in partial.iterdir():
        if file.name != LOCK:
            file.unlink()
    try:
        for name, dtype, shape in (
            ("features", np.float32, (info.num_images, info.embedding_size)),
            ("labels", np.int64, (info.num_images,)),
            ("done", np.bool_, (num_blocks,)),
        ):
            file = partial / f"{name}.npy"
            np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)
            _reserve(file)
        plan.write_text(json.dumps(asdict(info)))
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        needed = info.num_images * (4 * info.embedding_size + 8)
        raise UserError(
            f"cannot make the feature store in {partial}: it needs {needed} bytes there ({error.strerror}); make room "
            "or name a folder on another disk"
        ) from error


def _reserve(file: Path) -> None:
    """Have the disk set the whole file aside: where it is full, a write through a memory map kills the process."""
    with open(file, "r+b") as handle:
        try:
            os.posix_fallocate(handle.fileno(), 0, file.stat().st_size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # what file systems say that cannot do it
                raise
