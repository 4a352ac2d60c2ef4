"""Embedding all images of a source into a store, over any number of ranks, resumable."""

import json
import logging
import math
import os
import shutil
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from core.arrays import open_array, read_array
from core.claims import CLAIM
from core.data.samplers import evaluation_rows
from core.embeddings.store import FEATURES, PARTIAL, EmbeddingStore, StoreInfo, open_arrays
from core.errors import UserError
from core.files import ROOT
from core.images.loader import WorkersError, load_batches
from core.images.source import ImageSource
from core.json_files import read_json
from core.models.encoder import Encoder
from core.models.mapped import Rows
from core.outputs import flush, flush_folder, remove, require_replaceable, sweep, writing
from core.parallel.collectives import barrier, broadcast_object, rank
from core.parallel.ranks import Ranks, claimed_by_ranks
from core.progress import Progress
from core.room import require_room, reserve

__all__ = ["PLAIN_AND_MIRRORED", "Views", "default_store_path", "extract_embeddings", "extract_together",
           "require_writable_store"]  # fmt: skip

logger = logging.getLogger(__name__)
BLOCK = 4096
"""Rows that are embedded and marked as done together: the most that a killed extraction loses for each rank."""
PAGE = 4096
"""Bytes before the numbers of an array. A block is a multiple of them, so that no page of memory holds two blocks: on a
network disk each machine writes whole pages, with what it last knew of the rows of others."""

Views: TypeAlias = Mapping[str, Callable[[Encoder, Mapping[str, Tensor]], Tensor]]
"""By the name of its array: a function from a batch of a source, on the model's device, to float32 (B, D)."""
PLAIN: Views = {FEATURES: lambda encoder, batch: encoder(batch["image"])}
PLAIN_AND_MIRRORED: Views = {
    "plain": lambda encoder, batch: encoder(batch["image"]),
    "mirrored": lambda encoder, batch: encoder(batch["image"].flip(2)),
}
AS_STORED: Views = {FEATURES: lambda encoder, batch: batch["embedding"]}
"""Of `_StoredEmbeddings`."""


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

    A map's run folder reads no images where the embeddings that the map takes are at their default place.
    """
    (store,) = extract_together(
        [(encoder, path)], source, ranks, batch_size, num_workers, views=views, settings=settings, wait=wait
    )
    return store


def extract_together(
    models: Sequence[tuple[Encoder, Path]],
    source: ImageSource,
    ranks: Ranks,
    batch_size: int = 128,
    num_workers: int = 0,
    *,
    views: Views = PLAIN,
    settings: Mapping[str, object] | None = None,
    wait: bool = False,
) -> list[EmbeddingStore]:
    """`extract_embeddings` with several models on one device, all others' arguments as there: images are read once.

    What the stores lack is made in one pass over the images: a batch is embedded by each model whose store lacks it.
    """
    works = [
        _Work(encoder, path, StoreInfo.of(encoder, source, tuple(views), settings or {})) for encoder, path in models
    ]
    missing = [work for work in works if not work.is_finished()]
    stores = {work.path: work.open_found() for work in works if work not in missing}
    if ranks.is_first:
        for work in missing:
            _require_place(work.path)
    made, of_images = [], []
    for work in missing:
        rows = _mapped_rows(work.encoder, source) if views is PLAIN else None
        if rows is None:
            of_images.append(work)
        else:
            logger.info("%s: its base model's stored embeddings are mapped", work.encoder.name)
            made += _make([work], _StoredEmbeddings(source, rows), ranks, BLOCK, 0, AS_STORED, wait)
    if of_images:
        made += _make(of_images, source, ranks, batch_size, num_workers, views, wait)
    stores |= {work.path: EmbeddingStore.open(work.path) if work in made else work.open_found() for work in missing}
    return [stores[work.path] for work in works]


@dataclass(frozen=True, eq=False)
class _Work:
    """A model's store that is to be there in the end."""

    encoder: Encoder
    path: Path
    info: StoreInfo

    @property
    def partial(self) -> Path:
        return _partial(self.path)

    def is_finished(self) -> bool:
        """The first rank's answer: another may see the folder later. Collective."""
        return broadcast_object(_is_finished(self.path))

    def open_found(self) -> EmbeddingStore:
        """The store of an earlier run; `UserError` if it holds something else."""
        store = EmbeddingStore.open(self.path)
        store.require(self.info)
        logger.info("%s: embeddings from the store %s", self.info.model_name, self.path)
        if rank() == 0:
            _tidy(self.path)
        return store


class _StoredEmbeddings:
    """A source whose images are embedded already: it reads their embeddings (N, D)."""

    def __init__(self, source: ImageSource, rows: Rows):
        self.name, self.num_images, self.fingerprint = source.name, source.num_images, source.fingerprint
        self.labels, self.image_name = source.labels, source.image_name
        self._rows = rows

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """`embedding`: float32 (B, D)."""
        return {"embedding": self._rows[rows]}


def _mapped_rows(encoder: Encoder, source: ImageSource) -> Rows | None:
    """The embeddings (N, D) of a mapped model from the stores of its base and side model, or of those behind them.

    None for another model, and if a store is not at its default place. Collective.
    """
    rows = [_stored_rows(model, source) for model in encoder.sources]
    found = [each for each in rows if each is not None]
    return encoder.mapped(*found) if rows and len(found) == len(rows) else None


def _stored_rows(encoder: Encoder, source: ImageSource) -> Rows | None:
    """The embeddings (N, D) of a model from its store at the default place, else as `_mapped_rows`. Collective."""
    path = default_store_path(encoder, source)
    if broadcast_object(_is_finished(path)):
        store = EmbeddingStore.open(path)
        store.require(StoreInfo.of(encoder, source, tuple(PLAIN), {}))
        return store.features
    return _mapped_rows(encoder, source)


def _make(
    missing: Sequence[_Work],
    source: ImageSource,
    ranks: Ranks,
    batch_size: int,
    num_workers: int,
    views: Views,
    wait: bool,
) -> list[_Work]:
    """Make the stores that are missing, but for those that another run finishes first; return which were made here."""
    with ExitStack() as claims:
        for work in sorted(missing, key=lambda work: work.path):  # two runs never wait for each other's claims
            if ranks.is_first:
                sweep(work.path.parent)
            claims.enter_context(claimed_by_ranks(work.partial, "extraction", ranks, wait=wait))
        unfinished = [work for work in missing if not work.is_finished()]
        if ranks.is_first:
            for work in missing:
                if work not in unfinished:
                    shutil.rmtree(work.partial, ignore_errors=True)
            _prepare([work for work in unfinished if not _can_go_on(work.partial, work.info)], source)
        barrier()
        try:
            _embed_missing_blocks(unfinished, source, ranks, batch_size, num_workers, views)
        except WorkersError:  # what is embedded stays: the same command goes on from there
            raise
        except UserError:  # the images or the model must be replaced, and then nothing here is of use
            for work in unfinished:
                _abandon(work.partial, ranks)
            raise
        barrier()
        if ranks.is_first:
            for work in unfinished:
                _finish(work.partial, work.path)
    barrier()
    return unfinished


def _require_place(path: Path) -> None:
    """`UserError` unless a store can be made at `path`."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path} exists and is no embedding store: name an empty folder or a new one")
    require_writable_store(path)


def require_writable_store(path: Path) -> None:
    """`UserError` unless there is a finished store at `path`, which is only read, or one can be written."""
    if not _is_finished(path):
        require_replaceable(path, folder=True)
        if _partial(path).is_symlink():  # what it leads to would be emptied
            raise UserError(
                f"{_partial(path)} is a link, and is needed as a folder: remove it, then repeat the command"
            )


def _partial(path: Path) -> Path:
    return path.with_name(path.name + PARTIAL)


def _is_finished(path: Path) -> bool:
    return (path / "store.json").is_file()


def _prepare(works: Sequence[_Work], source: ImageSource) -> None:
    """Fill the folders of extractions that begin; `UserError`, and none is left, if there is no room for all."""
    try:
        for work in works:
            _reserve_arrays(work.partial, work.info, source)
    except UserError:
        for work in works:
            shutil.rmtree(work.partial, ignore_errors=True)
        raise


def _reserve_arrays(partial: Path, info: StoreInfo, source: ImageSource) -> None:
    """Empty the folder of an extraction, and make all its files: later it needs no more room."""
    sweep(partial)
    for name in ("plan.json", *os.listdir(partial)):  # without a plan nothing of what is left is gone on with
        if name != CLAIM:
            remove(partial / name)
    shape = (info.num_images, info.embedding_size)
    require_room(partial, shape[0] * (4 * shape[1] * len(info.views) + 8 * info.labelled))
    with writing(partial):
        for view in info.views:
            _reserve(partial / f"{view}.npy", np.float32, shape)
        labels = source.labels()
        if labels is not None:
            np.save(partial / "labels.npy", labels)
        _reserve(partial / "done.npy", np.bool_, (-(-info.num_images // BLOCK),))
        (partial / "store.json").write_text(json.dumps(asdict(info), indent=2) + "\n")
        (partial / "plan.json").write_text(json.dumps(asdict(info)))
        flush(partial)


def _can_go_on(partial: Path, info: StoreInfo) -> bool:
    """True if an earlier run of the same work left whole arrays."""
    try:
        plans = (read_json(partial / name, "plan of an extraction") for name in ("plan.json", "store.json"))
        if any(plan != asdict(info) for plan in plans):
            return False
        arrays = open_arrays(partial, info)
        if any(arrays[view].offset != PAGE for view in info.views):  # as an earlier version made them
            return False
        done = read_array(partial / "done.npy")
        return (done.dtype, done.shape) == (np.bool_, (-(-info.num_images // BLOCK),))
    except (FileNotFoundError, ValueError, RecursionError):
        return False


def _abandon(partial: Path, ranks: Ranks) -> None:
    """Remove an extraction. Of several ranks the others still write there, and would report that files are missing.

    Without a plan the next extraction begins anew.
    """
    if ranks.world_size == 1:
        shutil.rmtree(partial, ignore_errors=True)
    else:
        with suppress(OSError):
            (partial / "plan.json").unlink()


def _reserve(file: Path, dtype: type, shape: tuple[int, ...]) -> None:
    """Make an array of zeros, after a header of a `PAGE`, for which the disk has set its room aside."""
    kind = np.dtype(dtype)
    fields = {"descr": kind.str, "fortran_order": False, "shape": shape}
    start = np.lib.format.magic(1, 0) + struct.pack("<H", PAGE - 10)  # what is left after these 10 bytes
    size = PAGE + math.prod(shape) * kind.itemsize
    with open(file, "wb") as handle:
        handle.write(start + repr(fields).encode().ljust(PAGE - len(start) - 1) + b"\n")
        handle.truncate(size)
    reserve(file, size)


def _embed_missing_blocks(
    works: Sequence[_Work], source: ImageSource, ranks: Ranks, batch_size: int, num_workers: int, views: Views
) -> None:
    """Write the embeddings of this rank's blocks that no earlier run has done."""
    if not works:
        return
    arrays = [open_arrays(work.partial, work.info, mode="r+") for work in works]
    done = np.stack([read_array(work.partial / "done.npy") for work in works])
    mine = evaluation_rows(source.num_images, BLOCK, ranks.rank, ranks.world_size)
    blocks = [block for block in mine if not done[:, block.start // BLOCK].all()]
    batches = [block[start : start + batch_size] for block in blocks for start in range(0, len(block), batch_size)]
    total = sum(map(len, blocks))
    names = " and ".join(work.encoder.name for work in works)
    if total and ranks.is_first:
        logger.info("%s: embedding %d images of %s", names, total, source.name)
    device = torch.device(works[0].encoder.device)
    with Progress(f"embedding with {names}", total, quiet=not ranks.is_first) as progress:
        for batch in load_batches(source, batches, num_workers, pin_memory=device.type == "cuda"):
            rows = batch["row"].numpy()
            block = int(rows[-1]) // BLOCK
            on_device = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
            for work, own, is_done in zip(works, arrays, done[:, block]):
                if is_done:
                    continue
                for name, embed in views.items():
                    embeddings = embed(work.encoder, on_device).cpu().numpy()
                    _require_finite(embeddings, work.encoder, source, rows)
                    own[name][rows[0] : rows[-1] + 1] = embeddings
                if (rows[-1] + 1) % BLOCK == 0 or rows[-1] + 1 == source.num_images:
                    _mark_done(work.partial, [own[name] for name in views], block)
            progress.update(len(rows))


def _mark_done(partial: Path, arrays: Sequence[np.memmap], block: int) -> None:
    """Keep for later runs that a block is in the arrays.

    Machines that mark blocks at once may undo each other's marks, which only costs a later run some work.
    """
    for array in arrays:
        array.flush()
    done = open_array(partial / "done.npy", mode="r+")
    done[block] = True
    done.flush()


def _require_finite(embeddings: np.ndarray, encoder: Encoder, source: ImageSource, rows: np.ndarray) -> None:
    """`UserError` naming the model and the first image of a batch whose embedding is not finite."""
    finite = np.isfinite(embeddings).all(axis=1)
    if not finite.all():
        image = source.image_name(int(rows[~finite][0]))
        raise UserError(
            f"the model {encoder.name} gives an embedding that is not finite for {image}: its weights are damaged or "
            "its training diverged; name another model"
        )


def _finish(partial: Path, path: Path) -> None:
    """Turn the folder of a completed extraction into the store at `path`."""
    flush(partial)
    partial.rename(path)  # also where there is an empty folder
    flush_folder(path.parent)
    _tidy(path)
    flush_folder(path)


def _tidy(path: Path) -> None:
    """Remove from a finished store what only its extraction needed.

    Not before it has its name: until then a killed run goes on with it, and another one could claim the folder.
    """
    for name in ("plan.json", "done.npy", CLAIM):
        with suppress(OSError):  # of no consequence, and others' stores may be for reading alone
            (path / name).unlink()
    sweep(path)
