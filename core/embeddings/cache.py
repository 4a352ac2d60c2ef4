"""Stores that are named by what they hold and made again when they are damaged: what evaluation keeps of a model."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch

from core.embeddings.extraction import Views, extract_embeddings
from core.embeddings.store import EmbeddingStore
from core.errors import UserError
from core.images.source import ImageSource
from core.models.encoder import Encoder
from core.models.mapped import Rows
from core.outputs import remove, require_writable
from core.parallel import collectives
from core.parallel.ranks import Ranks

__all__ = ["cached_embeddings", "cached_views", "require_cache"]

logger = logging.getLogger(__name__)


def require_cache(folder: Path) -> None:
    """`UserError` unless embeddings can be kept in `folder`, or embeddings of earlier tests are there to be read."""
    try:
        require_writable(folder)
    except UserError as error:
        if not (folder.is_dir() and any(folder.iterdir())):
            raise
        logger.info("%s: only embeddings that are already there can be used", error)


def cached_embeddings(
    encoder: Encoder,
    source: ImageSource,
    folder: Path,
    views: Views,
    settings: Mapping[str, object],
    batch_size: int,
    num_workers: int,
) -> EmbeddingStore:
    """The store of `encoder`'s embeddings of `source` below `folder`, made if it is missing or damaged.

    It lies in `<data fingerprint>/<hash of the model and of settings>`; `settings` is what else the embeddings depend
    on. A run that finds another one at work on the same store waits for it. Errors, memory and disk as
    `extract_embeddings`.
    """
    settings = {"network": encoder.network, **settings}
    made_by = json.dumps([encoder.fingerprint, encoder.preprocessing, settings], sort_keys=True)
    path = folder / source.fingerprint[:16] / hashlib.sha256(made_by.encode()).hexdigest()[:16]
    if collectives.rank() == 0 and path.exists():
        try:
            EmbeddingStore.open(path)
        except UserError as error:
            logger.warning("%s: embedding again: %s", encoder.name, error)
            remove(path)
    ranks = Ranks(collectives.rank(), collectives.world_size(), torch.device(encoder.device))
    return extract_embeddings(
        encoder, source, path, ranks, batch_size, num_workers, views=views, settings=settings, wait=True
    )


def cached_views(
    encoder: Encoder,
    source: ImageSource,
    folder: Path,
    views: Views,
    settings: Mapping[str, object],
    batch_size: int,
    num_workers: int,
) -> dict[str, Rows]:
    """The arrays (N, D) of the store of `cached_embeddings`, for views that are embeddings of single images.

    Those of a map's run folder are those that the map takes, mapped when they are read: no image is embedded twice.
    """
    if encoder.base is not None:
        taken = [
            cached_views(model, source, folder, views, settings, batch_size, num_workers) for model in encoder.sources
        ]
        return {name: encoder.mapped(*(rows[name] for rows in taken)) for name in views}
    store = cached_embeddings(encoder, source, folder, views, settings, batch_size, num_workers)
    return {name: store.view(name) for name in views}
