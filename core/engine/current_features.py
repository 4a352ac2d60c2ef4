"""The features of the training images by the model in training."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import distributed, nn

from core.embeddings.extraction import extract_embeddings
from core.embeddings.store import EmbeddingStore
from core.engine.method import Run
from core.images.transforms import NORMALIZATIONS
from core.models.encoder import Encoder
from core.models.weights import fingerprint
from core.outputs import remove

__all__ = ["current_features"]


@contextmanager
def current_features(run: Run, backbone: nn.Module) -> Iterator[EmbeddingStore]:
    """The features of all training images by the model in training; available within the context.

    Computed in evaluation mode, the images divided among the ranks, and written to the folder `new_features` of the run
    folder (N x D x 4 bytes; on a file system that all ranks see), which is removed at the end. Batch statistics,
    training mode and random number generators are left unchanged. Collective.
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
    yield extract_embeddings(encoder, run.data, path, run.ranks, settings.batch_size, settings.num_workers)
    backbone.train(training)
    _remove(path, run)


def _remove(path: Path, run: Run) -> None:
    """Remove a folder after all ranks have finished with it and before any continues."""
    distributed.barrier()
    if run.ranks.is_first:
        remove(path)
    distributed.barrier()
