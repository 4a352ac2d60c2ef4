"""The features that a model in training has for its own training images."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import distributed, nn

from core.embeddings.extraction import extract_features
from core.embeddings.store import FeatureStore
from core.engine.method import Run
from core.images.transforms import NORMALIZATIONS
from core.models.encoder import Encoder
from core.models.weights import fingerprint

__all__ = ["current_features"]


@contextmanager
def current_features(run: Run, backbone: nn.Module) -> Iterator[FeatureStore]:
    """The features that a model in training has for all its training images, for as long as the context lasts.

    Embedded in evaluation mode, shared out over the ranks, into the folder `new_features` of the run folder (N x D x 4
    bytes; a file system that all ranks see), which is removed at the end. Batch statistics, training mode and the
    streams of random numbers are as before afterwards. Collective.
    """
    settings = run.settings
    path = settings.run_folder / "new_features"
    mean, std = NORMALIZATIONS[settings.normalization]
    encoder = Encoder(
        name="the model in training",
        network=settings.network,
        embedding_size=settings.embedding_size,
        image_size=run.data.image_size,
        mean=mean,
        std=std,
        fingerprint=fingerprint(backbone.state_dict()),
        device=run.device,
        module=backbone,
    )
    _remove(path, run)
    training = backbone.training
    backbone.eval()
    yield extract_features(encoder, run.data, path, run.ranks, settings.batch_size, settings.num_workers)
    backbone.train(training)
    _remove(path, run)


def _remove(path: Path, run: Run) -> None:
    """Remove a folder, when all ranks are done with it and before any goes on."""
    distributed.barrier()
    if run.ranks.is_first:
        shutil.rmtree(path, ignore_errors=True)
    distributed.barrier()
